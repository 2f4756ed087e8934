"""The open sums of a run: what has been counted since the last row of metrics."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class Window:
    """Sums over the steps since the last `read`, on the device, as float64 where the device has it.

    A skipped step is left out: one NaN would otherwise hide the whole window. Sums are additive over ranks, and are
    part of a checkpoint, so that a row after a resume is the row that would have been.
    """

    def __init__(self, device: torch.device, saved: Mapping[str, float] | None = None):
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.device = device
        self.sums = {name: self._tensor(value) for name, value in (saved or {}).items()}
        self.step: dict[str, Tensor] = {}

    def _tensor(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.dtype, device=self.device)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Count one micro-batch into the step that is going on."""
        for name, value in sums.items():
            self.step[name] = self.step[name] + value if name in self.step else value.to(self.dtype)

    def close_step(self, finite: Tensor, norm: Tensor) -> None:
        """End the step: keep its sums where `finite`, with its gradient norm."""
        self.add({"grad_norm": norm, "steps": torch.ones_like(norm)})
        for name, value in self.step.items():
            kept = torch.where(finite, value, 0.0)
            self.sums[name] = self.sums[name] + kept if name in self.sums else kept
        self.step = {}

    def read(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The sums over ranks; the window is then empty."""
        totals = self.state(reduce)
        self.sums = {}
        return totals

    def state(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The sums over ranks, by one reduction and one wait for the device; the window stays open."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        totals = reduce(torch.stack([self.sums[name] for name in names])).tolist()
        return dict(zip(names, totals, strict=True))
