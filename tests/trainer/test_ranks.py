"""Training with several processes equals training with one: see `ranks_agree.py`, all in one start."""

import os
import subprocess
import sys

import pytest

from scripts.doctor import ROOT


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.soak), 3])
def test_ranks_agree(count: int):
    """Three share nothing evenly, and some of them have no part of the smallest weights."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [*command, "-m", "tests.trainer.ranks_agree"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert all(f"rank {rank} is content" in done.stdout for rank in range(count))
