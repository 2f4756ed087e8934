"""What turns hidden states into logits, whole or split over ranks."""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Shard(Protocol):
    """One rank's part of a head that is split over ranks by vocabulary, with what it needs of the others.

    Both collectives take and return a tensor, in place or not, that every rank of the group passes in the same shape.
    """

    @property
    def start(self) -> int:
        """First id of this rank's part."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        ...

    def max(self, values: Tensor) -> Tensor:
        """The largest over ranks."""
        ...


class Head(NamedTuple):
    """What turns hidden states into logits: `softcap * tanh((hidden @ weight.T + bias) / softcap)`."""

    weight: Tensor  # (V, D), or this rank's rows of it
    bias: Tensor | None = None  # (V,); -inf bans an id
    softcap: float | None = None
    shard: Shard | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        if self.shard is not None:
            raise ValueError("the reference head holds the whole vocabulary; it cannot be sharded")
        return self.cap(F.linear(hidden, self.weight, self.bias))

    def cap(self, logits: Tensor) -> Tensor:
        """The softcap, if there is one; an id that a bias of -inf bans stays banned."""
        if self.softcap is None:
            return logits
        capped = self.softcap * torch.tanh(logits / self.softcap)
        return capped if self.bias is None else torch.where(logits > -torch.inf, capped, logits)
