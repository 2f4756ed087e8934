"""How fast a run goes: tokens per second, data wait, model FLOP utilization, memory, time left.

Everything measured here depends on the clock or the machine, so its keys are listed in `WALL_CLOCK`: they are the
only ones in `metrics.jsonl` that differ between two runs of one config.
"""

import contextlib
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

WALL_CLOCK: frozenset[str] = frozenset(
    {"train/tokens_per_s", "train/mfu", "train/memory", "train/data_wait", "time/elapsed"}
)
"""The keys of `metrics.jsonl` that do not repeat bit for bit. All others do."""

# Dense bf16 tensor-core peaks in TFLOP/s with fp32 accumulation, from NVIDIA's data sheets and architecture white
# papers (where those quote a figure with sparsity, half of it). The first entry whose words are all in the device's
# name wins, so the narrow names come first.
_BF16_TFLOPS: tuple[tuple[str, float], ...] = (
    ("gb300", 2500), ("b300", 2250), ("gb200", 2500), ("b200", 2250), ("b100", 1750),
    ("gh200", 989.4), ("h200 nvl", 835.5), ("h200", 989.4), ("h100 nvl", 835.5), ("h100 pcie", 756), ("h100", 989.4),
    ("h800 pcie", 756), ("h800", 989.4), ("h20", 148),
    ("a100", 312), ("a800", 312), ("a40", 149.7), ("a30", 165), ("a10g", 70), ("a10", 125), ("a6000", 154.8),
    ("l40s", 362), ("l40", 181), ("l20", 119.5), ("l4", 121),
    ("5090", 209.5), ("4090", 165.2), ("3090", 71),
)  # fmt: skip


def listed_peak(name: str) -> float | None:
    """Dense bf16 peak in FLOP/s of the GPU that calls itself `name`, or None when it is not in the table."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & {"laptop", "max", "mig", "ada"}:  # other clocks, fewer units, or another chip under the same number
        return None
    for key, tflops in _BF16_TFLOPS:
        if words.issuperset(key.split()):
            return tflops * 1e12
    return None


def measured_peak(
    device: "torch.device | str", dtype: "torch.dtype", size: int | None = None, seconds: float = 0.1
) -> float:
    """FLOP/s of the fastest of several (size, size) matrix products on `device` in `dtype`, run for `seconds`.

    By default they are 1024 wide on a CPU, and 8192 elsewhere, where a small one is over before the device is busy.
    """
    import torch

    device = torch.device(device)
    size = size or (1024 if device.type == "cpu" else 8192)
    # Not of ones: a GPU multiplies them with less power, and so faster than anything in training.
    a, b = (torch.arange(size * size, device=device).sin().view(size, size).to(dtype) for _ in range(2))
    synchronize = torch.get_device_module(device).synchronize  # does nothing on a CPU
    best, rounds, end = float("inf"), 0, time.monotonic() + seconds
    with torch.no_grad():
        while rounds < 3 or time.monotonic() < end:  # the first rounds also warm the kernels up
            synchronize()
            start = time.perf_counter()
            a @ b
            synchronize()
            best = min(best, time.perf_counter() - start)
            rounds += 1
    return 2 * size**3 / max(best, 1e-9)


def peak_flops(device: "torch.device | str", dtype: "torch.dtype") -> tuple[float, str]:
    """FLOP/s that count as 100 % on one device, and where the figure is from: `"data sheet"` or `"measured"`.

    The data sheet is used for 16-bit types on a GPU that the table knows; anything else is measured.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        listed = listed_peak(torch.cuda.get_device_name(device))
        if listed is not None:
            return listed, "data sheet"
    return measured_peak(device, dtype), "measured"


def memory(device: "torch.device | str") -> float:
    """Largest memory so far in GiB: allocated on a CUDA device, else resident in this process."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / (2**30 if sys.platform == "darwin" else 2**20)  # bytes on macOS, KiB elsewhere


class Throughput:
    """Rates over the window since the last `read`, without the time spent inside `paused()`.

    `tokens` are valid targets of all ranks, so padding lowers the rate and the MFU, as it should.
    `flops_per_token` is for forward and backward; `peak` in FLOP/s is of one device, `world_size` of them work.
    `elapsed` are the seconds that earlier starts of the run took.
    """

    def __init__(
        self,
        flops_per_token: float,
        peak: float,
        *,
        world_size: int = 1,
        device: "torch.device | str" = "cpu",
        elapsed: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._flops_per_token, self._peak = flops_per_token, peak * world_size
        self._device, self._clock = device, clock
        self._window = clock()
        self._start = self._window - elapsed
        self._tokens, self._waited, self._paused = 0, 0.0, 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the start, and of the starts before it."""
        return self._clock() - self._start

    def add(self, tokens: int) -> None:
        """Count the targets of a finished step."""
        self._tokens += tokens

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for data."""
        start = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - start

    def waits(self, steps: Iterator[T]) -> Iterator[T]:
        """The items of `steps`, timing the wait for each."""
        while True:
            with self.waiting():
                step = next(steps, None)
            if step is None:
                return
            yield step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is not training: evaluations, samples, saves."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def rate(self) -> float:
        """Tokens per second in the open window (0 before any time has passed)."""
        seconds = self._clock() - self._window - self._paused
        return self._tokens / seconds if seconds > 0 else 0.0

    def read(self) -> dict[str, float]:
        """The `WALL_CLOCK` metrics of the window, which is then closed; `time/elapsed` goes on over starts."""
        now, rate = self._clock(), self.rate()
        seconds = now - self._window - self._paused
        row = {
            "train/tokens_per_s": rate,
            "train/mfu": rate * self._flops_per_token / self._peak,
            "train/memory": memory(self._device),
            "train/data_wait": self._waited / seconds if seconds > 0 else 0.0,
            "time/elapsed": self.elapsed,
        }
        self._window, self._tokens, self._waited, self._paused = now, 0, 0.0, 0.0
        return row


def seconds_left(start: int, step: int, total: int, elapsed: float) -> float | None:
    """Seconds until step `total` at the pace of steps `start` to `step` in `elapsed` s; None before the first one."""
    if step >= total:
        return 0.0
    if step <= start or elapsed < 0:
        return None
    return (total - step) * elapsed / (step - start)


def clock_text(seconds: float | None) -> str:
    """`0:07`, `12:03`, `1:02:03`; `?` for None."""
    if seconds is None:
        return "?"
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} days {hours % 24} h"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
