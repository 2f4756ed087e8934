"""All faults, in words and as functions."""

from . import damage, kills, places, ranks, trackers
from .scenario import Scenario

MATRIX = (
    Scenario(
        "F1", "Killed", "kill -9 at random steps and moments of one run",
        "goes on alone; the metrics, samples, weights and optimizer of an unbroken run, bit for bit",
        kills.killed, 20, 3,
    ),
    Scenario(
        "F4", "A file cut off", "every file of the newest checkpoint cut to 0, 50 and 99 %",
        "the checkpoint before it is taken and the reason said; then as unbroken, bit for bit",
        damage.truncated, 5, 1,
    ),
    Scenario(
        "F5", "A bit flipped", "one bit at a random place, in all files of the newest checkpoint in turn",
        "the checkpoint before it is taken and the reason said; then as unbroken, bit for bit",
        damage.flipped, 200, 50,
    ),
    Scenario(
        "F6", "Every checkpoint bad", "all of a run's checkpoints cut, emptied, flipped, or missing files",
        "exit code 3 with the reasons; no file of the run changes, and it is never begun anew",
        damage.ruined, 5, 2,
    ),
    Scenario(
        "F12", "Ctrl-C", "SIGINT once; SIGINT twice, in the middle of a long step",
        "once: saves, exit code 75; twice: ends at once with 130; then as unbroken, bit for bit",
        kills.interrupted, 6, 2,
    ),
    Scenario(
        "F16", "wandb fails", "not installed, no key, its process killed, unreachable",
        "one warning; training ends with the same numbers",
        trackers.wandb_fails, 4, 3,
    ),
    Scenario(
        "F19", "Two processes on one run", "a second start while the first lives",
        "exit code 2 that names the holder; the run is not touched, and the first ends as if alone",
        places.locked, 10, 1,
    ),
    Scenario(
        "F21", "Another number of processes", "stopped twice, gone on with by 2, 1 and 3 ranks, DDP and FSDP2",
        f"the same rows in the same order, losses within {ranks.WITHIN:g} nats of one process",
        ranks.resharded, 3, 1,
    ),
    Scenario(
        "F24", "Metrics cut in a line", "metrics.jsonl cut at every byte after the checkpoint",
        "no row is lost, none is there twice",
        kills.cut_metrics, 100_000, 100,
    ),
)  # fmt: skip
