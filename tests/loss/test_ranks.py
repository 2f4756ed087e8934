"""Losses over two processes: rows split, the vocabulary split, and gradients that accumulate under DDP and FSDP2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from loss import Head, build_objective
from scripts.doctor import ROOT


def test_two_ranks_equal_one_process(tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.loss.two_ranks", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(f"rank {rank} is content" in done.stdout for rank in (0, 1))


class OneRank:
    """The collectives of a single process."""

    start = 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    max = sum


@pytest.mark.parametrize("config", [{"base": "confidence"}, {"base": "ce", "logits": ["softcap"]}])
def test_what_needs_whole_rows_is_refused_on_a_split_head(config):
    hidden, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    head = Head(torch.randn(5, 3), shard=OneRank())
    with pytest.raises(ValueError, match="no whole row"):
        build_objective(config, vocab_size=5)(hidden, head, targets)
    plain = build_objective("ce", vocab_size=5)
    torch.testing.assert_close(
        plain(hidden, head, targets).loss, plain(hidden, head._replace(shard=None), targets).loss
    )
    for wrong in ({"detail": True}, {}):
        capped = head if wrong else head._replace(softcap=3.0)
        with pytest.raises(ValueError, match="no whole row"):
            plain(hidden, capped, targets, **wrong)
