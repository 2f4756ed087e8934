"""No update from a loss or gradient that is not finite, on any rank; and no endless skipping."""

from collections.abc import Callable

import torch
from torch import Tensor

LIMIT = 20
"""Skipped steps in a row after which a run has diverged. An fp16 loss scale settles within fewer."""


class Guard:
    """Counts skipped steps on the device, so that asking costs no wait until somebody reads."""

    def __init__(self, device: torch.device, skipped: int = 0, in_a_row: int = 0):
        self.skipped = torch.tensor(skipped, device=device)
        self.in_a_row = torch.tensor(in_a_row, device=device)

    def check(self, norm: Tensor, loss: Tensor, agree: Callable[[Tensor], Tensor]) -> Tensor:
        """Whether the step may be applied: a boolean scalar, the same on every rank by `agree`."""
        finite = agree(torch.isfinite(norm) & torch.isfinite(loss))
        self.skipped = self.skipped + ~finite
        self.in_a_row = torch.where(finite, 0, self.in_a_row + 1)
        return finite

    def read(self) -> int:
        """Steps skipped so far; waits for the device."""
        return int(self.skipped)

    def gives_up(self, step: int) -> bool:
        """Whether `LIMIT` steps in a row were skipped; looks, and so waits for the device, each `LIMIT` / 2 steps."""
        return step % (LIMIT // 2) == 0 and int(self.in_a_row) >= LIMIT

    def state(self) -> dict[str, int]:
        return {"skipped": int(self.skipped), "in_a_row": int(self.in_a_row)}
