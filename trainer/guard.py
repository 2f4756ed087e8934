"""No update from a step that would do harm: a loss or gradient that is not finite, or a loss that jumps.

The verdict is a tensor on the device, the same on every rank, so that training never waits for it; the host looks at
what happened when it reads metrics anyway, and on a GPU at the streak of some steps ago.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

LIMIT = 10
"""Skipped steps in a row after which a run goes back to its last checkpoint."""
FP16_LIMIT = 30
"""The same under fp16, whose loss scale settles by skipping steps: from 2^16 down, one power of two each."""
WINDOW = 128
"""Applied steps that a loss is compared with; none is a spike before there are so many."""
LEAST_SPREAD = 0.01
"""The least standard deviation, as a fraction of the mean: losses that hardly vary make no spike of a small rise."""
_BEHIND = 4  # steps that the host may be ahead of the GPU when it asks for the streak

Reason = Literal["not finite", "spike"]


@dataclass(frozen=True)
class Skip:
    """A step that was not applied."""

    step: int
    """Its index, from 0."""
    reason: Reason
    loss: float
    """Training loss per target, over all ranks."""


class Guard:
    """Judges every step of a run, and counts what it skips.

    `sigma`: how many standard deviations above the mean of the last `WINDOW` applied steps a loss is a spike; None:
    never. `limit`: see `exhausted`. `skipped`, `in_a_row` and `losses` are those of `state()`.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        sigma: float | None,
        limit: int = LIMIT,
        skipped: int = 0,
        in_a_row: int = 0,
        losses: Sequence[float] = (),
    ) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.device, self.sigma, self.limit = device, sigma, limit
        self.skipped = torch.tensor(skipped, device=device)
        self.in_a_row = torch.tensor(in_a_row, device=device)
        self.losses = torch.tensor([*[float("nan")] * (WINDOW - len(losses)), *losses], dtype=dtype, device=device)
        self._open: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self._looks: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def check(self, step: int, norm: Tensor, loss: Tensor, targets: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Whether step `step` may be applied: a boolean scalar, the same on every rank.

        `norm` is the gradient's, already over all ranks; `loss` this rank's sum over its part of the step's `targets`,
        which `reduce` adds up: one NaN on one rank makes all of it NaN.
        """
        mean_loss = (reduce(loss.detach()) / max(targets, 1)).to(self.losses.dtype)
        finite = torch.isfinite(norm) & torch.isfinite(mean_loss)
        good = finite
        if self.sigma is not None:
            std, mean = torch.std_mean(self.losses)  # NaN until the window is full: then nothing is a spike
            good = finite & ~(mean_loss > mean + self.sigma * torch.maximum(std, LEAST_SPREAD * mean.abs()))
            self.losses = torch.where(good, torch.cat((self.losses[1:], mean_loss.view(1))), self.losses)
        self.skipped = self.skipped + ~good
        self.in_a_row = torch.where(good, 0, self.in_a_row + 1)
        self._open.append((step, good, finite, mean_loss))
        return good

    def forget(self) -> None:
        """Compare with no loss before this: those to come are of other data, or of another objective."""
        self.losses = torch.full_like(self.losses, float("nan"))

    def read(self) -> list[Skip]:
        """What was skipped since the last call, in order; waits for the device."""
        if not self._open:
            return []
        steps, *columns = zip(*self._open, strict=True)
        self._open = []
        rows = zip(steps, *(torch.stack(column).tolist() for column in columns), strict=True)
        return [Skip(step, "spike" if finite else "not finite", loss) for step, good, finite, loss in rows if not good]

    def streak(self) -> int:
        """Steps skipped in a row up to now; waits for the device."""
        return int(self.in_a_row)

    def exhausted(self) -> bool:
        """Whether `limit` steps in a row were skipped; on a GPU some steps ago, so that nothing waits for it."""
        if self.device.type != "cuda":
            return self.streak() >= self.limit
        event = torch.cuda.Event()
        self._looks.append((self.in_a_row.to("cpu", non_blocking=True), event))
        event.record()
        if len(self._looks) <= _BEHIND:
            return False
        streak, done = self._looks.popleft()
        done.synchronize()
        return int(streak) >= self.limit

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; waits for the device."""
        losses = [loss for loss in self.losses.tolist() if loss == loss]  # without the NaNs of a window not yet full
        return {"skipped": int(self.skipped), "in_a_row": int(self.in_a_row), "losses": losses}
