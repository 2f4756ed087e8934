"""What does harm to a run from the inside: batches and weights that go bad (F13, F14), a clock that jumps (F18)."""

import dataclasses
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor, nn

from data import Batch
from learner import Learner
from loss import LossOutput

Forward = Callable[[Batch], LossOutput]


def poison(forward: Forward, batch: Batch, value: float = math.nan) -> LossOutput:
    """A micro-batch whose loss, and with it the gradient, is not finite."""
    out = forward(batch)
    sums = {name: total * value for name, total in out.sums.items()}
    return dataclasses.replace(out, loss=out.loss * value, sums=sums)


def poison_with_infinity(forward: Forward, batch: Batch) -> LossOutput:
    return poison(forward, batch, math.inf)


def shuffle(forward: Forward, batch: Batch) -> LossOutput:
    """A micro-batch whose labels are in another order."""
    order = torch.randperm(batch.targets.numel(), generator=torch.Generator().manual_seed(0))
    return forward(dataclasses.replace(batch, targets=batch.targets.flatten()[order].view_as(batch.targets)))


SPOIL = {"nan": poison, "infinity": poison_with_infinity, "labels": shuffle}


def spoiled(
    calls: Container[int], how: Callable[[Forward, Batch], LossOutput]
) -> tuple[Callable[..., LossOutput], list[dict[str, Tensor]]]:
    """A `Learner.forward` that is spoiled at some of its calls, and a list that gets the weights before each of them.

    Calls are counted over all learners, from 0.
    """
    real, count, before = Learner.forward, itertools.count(), list[dict[str, Tensor]]()

    def forward(learner: Learner, batch: Batch, **options: Any) -> LossOutput:
        if next(count) not in calls:
            return real(learner, batch, **options)
        before.append({name: p.detach().clone() for name, p in learner.model.named_parameters()})
        return how(lambda changed: real(learner, changed, **options), batch)

    return forward, before


@torch.no_grad()
def spoil_weight(model: nn.Module) -> None:
    """A weight goes bad, without a sign in any loss or gradient so far."""
    next(model.parameters()).view(-1)[0] = math.inf


def digest(learner: Learner) -> str:
    """Of what this rank has of the weights and of the optimizer's state."""
    found = hashlib.sha256()
    for tensors in (learner.weights(), learner.optimizers.state()):
        for name, tensor in sorted(tensors.items()):
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            copy = local.detach().clone().cpu().contiguous()  # of a shard that may be resized any moment
            found.update(name.encode() + copy.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def jumping_clock() -> tuple[Callable[[], float], Callable[[], int]]:
    """`time.time` and `time.time_ns` of a clock that goes hours forth and back between any two looks at it."""
    jumps, real = itertools.count(1), time.time

    def now() -> float:
        jump = next(jumps)
        return real() + (-1) ** jump * jump * 3600

    return now, lambda: int(1e9 * now())
