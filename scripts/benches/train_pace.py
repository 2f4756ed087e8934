"""What every entrant of `python -m scripts.bench train` shares: the shape, the tokens, the clock and the memory.

Needs torch and the standard library only, so that it runs beside the peers in an interpreter of theirs.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BATCHES = 8
"""Batches of random tokens, gone through again and again: in memory, so that nobody's files are timed."""
WARM = {"cpu": 2, "cuda": 6}
"""Steps before the clock starts: they load or compile kernels, and the first one makes the optimizer's state."""
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
    device: str = "cpu"

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


def batches_on(device: str, shape: Shape) -> Iterator[tuple["Tensor", "Tensor"]]:
    """The same on a device, where each is copied from pinned memory without waiting."""
    if device == "cpu":
        yield from batches(shape)
    for tokens, targets in batches(shape):
        yield tokens.pin_memory().to(device, non_blocking=True), targets.pin_memory().to(device, non_blocking=True)


def load_compiler() -> None:
    """Import all of torch's compiler, as the others are imported before their memory is measured."""
    import torch

    torch.compile(lambda x: x + 1, dynamic=False)(torch.ones(8))


class Pace:
    """Times steps until `seconds` have passed, and tells the memory at most since it was made.

    Make it when all libraries are imported and the model is not there yet. A GPU is waited for where the clock starts
    and where it stops, not in between; its memory is then told, in tensors and with what torch's allocator keeps.
    """

    def __init__(self, seconds: float, device: str = "cpu") -> None:
        self._seconds, self._device = seconds, device
        self._ends: list[float] = []
        if device == "cpu":
            self._before, self._peak_before = resident("VmRSS"), resident("VmHWM")
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew

    def done(self) -> bool:
        """Call at the end of each step: whether it was the last one."""
        if len(self._ends) == WARM[self._device] - 1:
            self._wait()
        self._ends.append(time.perf_counter())
        timed = self._timed()
        if len(timed) <= LEAST or timed[-1] - timed[0] < self._seconds:
            return False
        if self._device != "cpu":
            self._wait()
            self._ends[-1] = time.perf_counter()
        return True

    def _wait(self) -> None:
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()

    def _timed(self) -> list[float]:
        return self._ends[WARM[self._device] - 1 :]

    def _memory(self) -> tuple[int, int]:
        """Bytes at most: of a step, and of the process."""
        if self._device == "cpu":
            peak = resident("VmHWM")
            return peak - self._before, max(peak, self._peak_before)
        import torch

        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    def answer(self, shape: Shape, losses: "Sequence[Tensor | float]", parameters: int) -> dict[str, Any]:
        """What is told of a finished measurement; `losses` of its steps may be their mean alone."""
        import torch

        timed, (above, whole) = self._timed(), self._memory()
        return {
            "tokens_per_s": shape.tokens * (len(timed) - 1) / (timed[-1] - timed[0]),
            "steps": len(timed) - 1,
            "loss": sum(map(float, losses)) / len(losses),
            "parameters": parameters,
            "above": above,
            "whole": whole,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def resident(name: str) -> int:
    """Bytes of resident memory of this process: `VmRSS` now, `RssAnon` without mapped files, `VmHWM` at most."""
    lines = (line.partition(":")[::2] for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(value.split()[0]) * 1024 for key, value in lines if key == name)
