"""The targets of a call as flat rows, without those that are none.

N rows, n valid ones, K targets of a row (one, or more with multi-token prediction).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100


def sum_dtype(device: torch.device) -> torch.dtype:
    """Sums are float64, so that no order of additions shows; MPS has none and keeps float32."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Rows:
    """What terms and weights read of each row besides its logits, and where the rows came from."""

    targets: Tensor
    """int64 (n, K), each an id; 0 where `valid` is false."""
    valid: Tensor
    """bool (n, K). On a CPU the first column is all true."""
    weight: Tensor | None
    """(n,) importance given by the caller."""
    inputs: dict[str, Tensor]
    """(n, ...) the caller's other inputs by name."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: slice) -> "Rows":
        return Rows(
            self.targets[index],
            self.valid[index],
            None if self.weight is None else self.weight[index],
            {name: value[index] for name, value in self.inputs.items()},
        )


@dataclass(frozen=True)
class Selection:
    """Which of the call's N rows are computed, and how to go there and back."""

    shape: torch.Size
    """Of the targets as the caller gave them."""
    flat: Tensor
    """bool (N,): rows with a target."""
    index: Tensor | None
    """int64 (n,): the rows that are computed; None: all of them."""
    masked: bool
    """Whether some rows that are computed may have no target."""

    @classmethod
    def of(cls, targets: Tensor) -> "Selection":
        """On a CPU the rows with a target alone, so that masked ones cost nothing. Elsewhere to count them would make
        the host wait for the device: there all rows are computed, the masked ones on zeros."""
        flat = (targets != IGNORE).flatten()
        if targets.device.type != "cpu":
            return cls(targets.shape, flat, None, masked=True)
        return cls(targets.shape, flat, None if bool(flat.all()) else flat.nonzero().squeeze(1), masked=False)

    def pick(self, values: Tensor) -> Tensor:
        """(..., *) of the call to (n, *), differentiable. What stood in rows without a target, NaN too, is gone."""
        rows = values.reshape(len(self.flat), *values.shape[len(self.shape) :])
        if self.index is not None:
            return rows.index_select(0, self.index)
        if not self.masked:
            return rows
        keep = self.flat.view(-1, *[1] * (rows.dim() - 1))
        return torch.where(keep, rows, torch.zeros((), dtype=rows.dtype, device=rows.device))

    def spread(self, values: Tensor) -> Tensor:
        """(n,) back to the shape of the targets, 0 in rows without one."""
        if self.index is not None:
            values = values.new_zeros(len(self.flat)).index_copy_(0, self.index, values)
        return values.view(self.shape)


def select(targets: Tensor, weights: Tensor | None, extra: Mapping[str, Tensor], depth: int) -> tuple[Selection, Rows]:
    """The rows of a call with `depth` targets each.

    `weights` and every `extra` start with the shape of the targets, or with as much of its beginning as they have:
    (B,) says one number for each row of (B, T).
    """
    chosen = Selection.of(targets)
    inputs = {name: _widen(name, value, targets.shape) for name, value in extra.items()}
    stack = targets.unsqueeze(-1) if depth == 1 else ahead(targets, _position(extra), depth)
    picked = chosen.pick(stack)
    valid = picked != IGNORE
    if chosen.masked:
        valid = valid & chosen.flat.unsqueeze(-1)
    weight = None if weights is None else chosen.pick(_widen("weights", weights, targets.shape))
    return chosen, Rows(
        picked.clamp_min(0), valid, weight, {name: chosen.pick(value) for name, value in inputs.items()}
    )


def _position(extra: Mapping[str, Tensor]) -> Tensor:
    if "position" not in extra:
        raise ValueError("loss.ahead: later targets need extra={'position': ...}, to stay inside a document")
    return extra["position"]


def _widen(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    if value.dim() < len(shape):
        value = value.reshape(*value.shape, *[1] * (len(shape) - value.dim()))
    rest = value.shape[len(shape) :]
    try:
        return value.expand(*shape, *rest)
    except RuntimeError:
        raise ValueError(f"{name} of shape {tuple(value.shape)} for targets of shape {tuple(shape)}") from None


def ahead(targets: Tensor, position: Tensor, depth: int) -> Tensor:
    """(..., T) to (..., T, depth): the target of each place and those of the places after it in the same document."""
    stack = targets.new_full((*targets.shape, depth), IGNORE)
    stack[..., 0] = targets
    for k in range(1, min(depth, targets.shape[-1])):
        # A row of several documents counts positions anew in each.
        same = position[..., k:] == position[..., :-k] + k
        stack[..., :-k, k] = torch.where(same, targets[..., k:], IGNORE)
    return stack
