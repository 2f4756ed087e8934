"""Faults that are injected into real runs, and whether the runs survive: used by the tests and by the bench.

Processes are killed, disks are full, bytes of real checkpoints flip. `scripts.benches.faults` does
it often and writes the report, `tests/test_faults.py` runs the same scenarios with small counts.
"""
