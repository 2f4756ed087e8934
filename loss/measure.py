"""The definition of every loss: from logits of some rows to the loss of each, in plain differentiable tensor code.

n rows, K targets of a row, V vocabulary. The reference head is this on all rows at once. The fused head is this on a
chunk at a time, or, for terms of `VECTORS` alone, the part from the vectors on with a gradient in closed form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .registry import Part
from .rows import Rows

PER_ROW_DETAIL = ("entropy", "confidence", "rank")
"""What `observe` adds with `detail`."""


@dataclass(frozen=True)
class Use:
    """A part as one call uses it: its options are numbers and tensors by now."""

    name: str
    part: Part
    options: dict[str, Any]
    coef: float
    prior: str | None
    """Which prior it reads."""


@dataclass(frozen=True)
class Measure:
    """A loss at one moment of a run, on one device."""

    terms: Sequence[Use]
    weights: Sequence[Use]
    transforms: Sequence[Use]
    priors: Mapping[str, Tensor]
    """(V,) fp64 or fp32, by name."""
    ahead: tuple[float, ...] = (1.0,)
    """Weights of the K targets of a row."""
    teacher: Callable[[Tensor], Tensor] | None = None
    """From the teacher's hidden states (n, D) to its logits (n, V)."""

    @cached_property
    def read(self) -> set[str]:
        """Names of everything that is read."""
        return {name for use in (*self.terms, *self.weights, *self.transforms) for name in use.part.reads}

    @cached_property
    def whole(self) -> bool:
        """Whether something is read that a row's `VECTORS` do not tell, or the logits are changed."""
        return bool(self.transforms) or any(use.part.whole for use in (*self.terms, *self.weights))

    @cached_property
    def mixed(self) -> list[str]:
        """Priors under which a mean of log p, or the target's share, is read."""
        uses = (*self.terms, *self.weights)
        return sorted({use.prior for use in uses if use.prior and {"lu", "ut"} & set(use.part.reads)})

    def of_logits(self, logits: Tensor, rows: Rows, *, detail: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of each row (n,), differentiable, and its other numbers, each (n,) and detached.

        logits (n, V). The numbers are those of `of_vectors` and of `observe`.
        """
        plain = logits.to(torch.promote_types(logits.dtype, torch.float32))
        x = plain
        for use in self.transforms:
            x = use.part.function(**self._arguments(use, {"logits": x}, rows), **use.options)
        log_p = x.log_softmax(-1)
        with torch.no_grad():
            seen = observe(plain, log_p if x is plain else plain.log_softmax(-1), rows, detail=detail)
        vectors: dict[str, Tensor] = {"lp": log_p.gather(-1, rows.targets)}
        if "lse" in self.read:
            vectors["lse"] = x.logsumexp(-1, keepdim=True)
        for name in self.mixed:
            vectors |= under_prior(name, self.priors[name], log_p, rows.targets)
        total, parts = self.of_vectors(vectors, rows, {"log_p": log_p, "logits": x})
        return total, parts | seen

    def of_vectors(
        self, vectors: Mapping[str, Tensor], rows: Rows, whole: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss of each row (n,), and of each term by name what it added to it, unweighted.

        vectors  `lp` (n, K); `lse` (n, 1), `lu/<prior>` (n, 1) and `ut/<prior>` (n, K) where they are read
        whole    `log_p` and `logits` (n, V), if any term reads them
        """
        n, zero = len(rows), vectors["lp"].new_zeros(())
        whole = dict(whole or {})
        # What stands for a target that is none must not make a NaN, which even a gradient of 0 would not remove.
        lp = torch.where(rows.valid, vectors["lp"], -1.0)
        columns = [
            {name: (lp if name == "lp" else value)[:, min(k, value.shape[1] - 1)] for name, value in vectors.items()}
            for k in range(len(self.ahead))
        ]
        parts: dict[str, Tensor] = {}
        total = zero.expand(n)
        for use in self.terms:
            added = zero.expand(n)
            for k, factor in enumerate(self.ahead if {"lp", "ut"} & set(use.part.reads) else (1.0,)):
                have = {**columns[k], **whole, "target": rows.targets[:, k]}
                value = self._call(use, have, rows)
                added = added + torch.where(rows.valid[:, k], value, zero) * (factor * use.coef)
            name = f"term/{use.name}"  # a term used twice, such as z with two coefficients, is one number
            parts[name] = parts[name] + added.detach() if name in parts else added.detach()
            total = total + added
        weight = rows.weight
        fixed = {name: value.detach() for name, value in {**columns[0], **whole}.items()}
        for use in self.weights:
            factors = self._call(use, {**fixed, "target": rows.targets[:, 0]}, rows).to(total.dtype)
            weight = factors if weight is None else weight * factors
        if weight is not None:
            weight = torch.where(rows.valid[:, 0], weight.to(total.dtype), 0.0)
            total = torch.where(weight == 0, 0.0, total * weight)  # 0 times an infinite loss is 0 here
        return total, parts

    def _call(self, use: Use, have: Mapping[str, Tensor], rows: Rows) -> Tensor:
        """What a part says of each row, (n,)."""
        value = use.part.function(**self._arguments(use, have, rows), **use.options)
        if value.shape != (len(rows),):
            told = f"{tuple(value.shape)} for {len(rows)} targets; one number a target is meant"
            raise ValueError(f"loss: {use.name} gives a tensor of shape {told}")
        return value

    def _arguments(self, use: Use, have: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
        """What a part reads, by parameter name."""
        found = {name: self._value(name, use, have, rows) for name in use.part.reads}
        return {name: value for name, value in found.items() if value is not None}

    def _value(self, name: str, use: Use, have: Mapping[str, Tensor], rows: Rows) -> Tensor | None:
        if name in have:
            return have[name]
        if name in ("lu", "ut"):
            return have[f"{name}/{use.prior}"]
        if name in ("u", "log_u"):
            prior = self.priors[str(use.prior)]
            return prior.log() if name == "log_u" else prior
        if name == "teacher_logits" and self.teacher is not None:
            return self.teacher(rows.inputs["teacher_hidden"])
        if name in rows.inputs:
            value = rows.inputs[name]
            return value.to(have["lp"].dtype) if name == "position" and "lp" in have else value
        if name in use.part.optional:
            return None
        raise ValueError(f"loss: {use.name} reads {name}: pass it as extra={{{name!r}: ...}}")


def under_prior(name: str, prior: Tensor, log_p: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`lu/<name>` (n, 1), the mean of log p under the prior, and `ut/<name>` (n, K), the targets' share of it.

    An id whose logit is -inf cannot occur, and is not in the prior either: the others share what it had. Without
    that, smoothing over a banned or padded id would cost infinitely much.
    """
    possible = log_p > -torch.inf
    mass = (prior * possible).sum(-1, keepdim=True)
    lu = (prior * torch.where(possible, log_p, 0.0)).sum(-1, keepdim=True) / mass
    return {f"lu/{name}": lu, f"ut/{name}": prior[targets] / mass}


def observe(logits: Tensor, log_p: Tensor, rows: Rows, *, detail: bool) -> dict[str, Tensor]:
    """What is reported of each row whatever is trained on, (n,): `nll`, `tokens` and `correct`.

    Both (n, V) of the model itself. With `detail` also `entropy`, `confidence` (the largest p) and `rank` of the
    target, from 0.
    """
    target, valid = rows.targets[:, :1], rows.valid[:, 0]
    x, top = logits.gather(1, target), logits.amax(1, keepdim=True)
    found = {"nll": torch.where(valid, -log_p.gather(1, target).squeeze(1), 0.0), "tokens": valid}
    found["correct"] = first_of_the_best(logits, x >= top, target) & valid
    if detail:
        p = log_p.exp()
        found["entropy"] = torch.where(valid, -(p * log_p.clamp_min(-1e30)).sum(1), 0.0)
        found["confidence"] = torch.where(valid, p.amax(1), 0.0)
        before = torch.arange(logits.shape[1], device=logits.device) < target
        found["rank"] = torch.where(valid, ((logits > x) | ((logits == x) & before)).sum(1), 0)
    return found


def first_of_the_best(logits: Tensor, best: Tensor, target: Tensor) -> Tensor:
    """bool (n,): whether the target is what argmax takes, the first of equals; `best` (n, 1): it is one of them."""
    best = best.squeeze(1)
    if logits.device.type != "cpu":
        return logits.argmax(1) == target.squeeze(1)
    # Here argmax is five times as slow as amax, thirty times in bf16, and most targets are not among the best.
    index = best.nonzero().squeeze(1)
    rows = logits.index_select(0, index).to(torch.promote_types(logits.dtype, torch.float32))
    return best.index_put((index,), rows.argmax(1) == target[index, 0])
