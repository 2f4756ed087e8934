"""What every entrant of `python -m scripts.bench train` shares: the shape, the tokens, the clock and the memory.

Needs torch and the standard library only, so that it runs beside the peers in an interpreter of theirs.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BATCHES = 8
"""Batches of random tokens, gone through again and again: in memory, so that nobody's files are timed."""
WARM = 2
"""Steps before the clock starts: they load kernels, and the first one makes the optimizer's state."""
LEAST = 3
"""Steps that are timed at least."""
RATE = 1e-4
"""Learning rate of everyone: small, so that the loss on random tokens stays where it begins."""


@dataclass(frozen=True)
class Shape:
    """A GPT-2-shaped model and its batch."""

    layers: int
    dim: int
    heads: int
    context: int
    rows: int
    vocab: int

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.context


@dataclass(frozen=True)
class Request:
    """One measurement in a process of its own."""

    who: str
    precision: str
    shape: Shape
    seconds: float
    """To time steps for, after the first ones."""
    options: dict[str, Any]

    def words(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, words: str) -> "Request":
        asked = json.loads(words)
        return cls(**asked | {"shape": Shape(**asked["shape"])})


def batches(shape: Shape) -> Iterator[tuple["Tensor", "Tensor"]]:
    """Endless (tokens, targets), each (rows, context) int64: the same for every entrant."""
    import torch

    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, shape.vocab, (BATCHES, shape.rows, shape.context + 1), generator=generator)
    while True:
        for rows in drawn:
            yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


class Pace:
    """Times steps until `seconds` have passed, and tells the memory at most since it was made.

    Make it when all libraries are imported and the model is not there yet.
    """

    def __init__(self, seconds: float) -> None:
        self.before, self.peak_before = resident("VmRSS"), resident("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._seconds = seconds
        self._ends: list[float] = []

    def done(self) -> bool:
        """Call at the end of each step: whether it was the last one."""
        self._ends.append(time.perf_counter())
        timed = self._timed()
        return len(timed) > LEAST and timed[-1] - timed[0] >= self._seconds

    def _timed(self) -> list[float]:
        return self._ends[WARM - 1 :]

    def answer(self, shape: Shape, losses: list[float], parameters: int) -> dict[str, Any]:
        """What is told of a finished measurement; `losses` may be their mean alone."""
        import torch

        peak, timed = resident("VmHWM"), self._timed()
        return {
            "tokens_per_s": shape.tokens * (len(timed) - 1) / (timed[-1] - timed[0]),
            "steps": len(timed) - 1,
            "loss": sum(losses) / len(losses),
            "parameters": parameters,
            "above": peak - self.before,
            "whole": max(peak, self.peak_before),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def resident(name: str) -> int:
    """Bytes of resident memory of this process: `VmRSS` now, `RssAnon` without mapped files, `VmHWM` at most."""
    lines = (line.partition(":")[::2] for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(value.split()[0]) * 1024 for key, value in lines if key == name)
