"""A rule of thumb for the memory of a step, and so for the rows of one micro-batch."""

import contextlib
import ctypes
import os
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import torch

# Bytes kept for the backward pass per token, layer and unit of width, under autocast: about 17 activations of the
# width (two norms, q k v, attention output, two residual sums and a three-times-wide feed-forward, some in fp32).
_PER_WIDTH = 80
# Bytes per token and id of the vocabulary: logits, log-probabilities and their two gradients, in fp32 and bf16.
_PER_ID = 16
CPU_BYTES = 384 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def estimate(parameters: int, muon_parameters: int, tokens: int, layers: int, dim: int) -> dict[str, int]:
    """Bytes of a training step by part: weights, gradients, optimizer, activations; `logits` tells the rest.

    AdamW keeps two fp32 moments of a parameter, Muon one. `tokens` are those of one micro-batch.
    """
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * (parameters - muon_parameters) + 4 * muon_parameters,
        "activations": tokens * layers * dim * _PER_WIDTH,
    }


def logits(rows: int, vocab_size: int) -> int:
    """Bytes of the logits of `rows` tokens and what is made of them, as many as are held at once."""
    return rows * vocab_size * _PER_ID


def inputs(tokens: int, layers: int, dim: int) -> int:
    """Bytes of the residual stream as each of `layers` takes it in: all that recomputation keeps."""
    return 4 * tokens * layers * dim


def free_bytes(device: torch.device) -> int:
    """What may be used: most of a GPU's free memory; on a CPU little, for what a micro-batch makes, since big ones
    leave its caches."""
    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info(device)[0])
    return min(CPU_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)


def largest_micro_rows(rows: int, fits: Callable[[int], bool]) -> int:
    """Rows of a micro-batch such that `fits` says yes, which it says up to some number; at least one.

    The largest divisor of `rows` that fits, unless that wastes half of the room: then as few micro-batches as
    possible, the last of them padded.
    """
    fit = max(1, bisect_left(range(1, rows + 1), True, key=lambda count: not fits(count)))
    divisor = next(m for m in range(fit, 0, -1) if rows % m == 0)
    return divisor if 2 * divisor > fit else -(-rows // -(-rows // fit))


def release(device: torch.device) -> None:
    """Give a GPU's unused blocks back, so that what another size left behind is not in the way."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Gauge:
    """Measures the most memory that this process takes, from now on and beyond what it has now.

    On a GPU what the allocator reserves there; else resident memory, with all that the allocator keeps of what is
    freed and libraries load when first used.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: int | None = None
        if device.type == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_reserved(device)
        elif device.type == "cpu":
            with contextlib.suppress(OSError):  # Linux only
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
                self._before = _resident("VmRSS")

    def peak(self) -> int | None:
        """Bytes; None where it cannot be told."""
        if self._before is None:
            return None
        on_gpu = self._device.type == "cuda"
        return (torch.cuda.max_memory_reserved(self._device) if on_gpu else _resident("VmHWM")) - self._before


def _resident(name: str) -> int:
    """Bytes of resident memory: `VmRSS` now, `VmHWM` at most."""
    lines = (line.partition(":")[::2] for line in Path("/proc/self/status").read_text().splitlines())
    return next(int(value.split()[0]) * 1024 for key, value in lines if key == name)


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the kernel (elsewhere: nothing).

    A training step on a CPU allocates the same large tensors each time; by default every one is mapped anew and its
    pages are zeroed on first touch, which costs a fifth of a step. The price is holes that nothing fits into: a process
    takes up to half more than its tensors, or twice as much with recomputation. Call before the first large allocation.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        # Older versions take no more than 32 MiB. Setting only the other would freeze this one at 128 KiB.
        if libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20):
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
