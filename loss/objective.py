"""The objective: masked, weighted next-token loss, and the sums from which every reported number is made.

B rows, T tokens in a row, V vocabulary, D width, N = B*T, K targets of a place.

One rule keeps every number exact under masks, accumulation and any number of ranks: nothing here is a mean but
`loss` itself, and that one is divided by the number of valid targets of the *whole* optimizer step, which the caller
knows before the first forward. Everything else is a sum; `metrics` turns sums into means, in one place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .config import LossConfig
from .detail import detail_sums, worst
from .fused import fused
from .head import Head
from .liger import liger, serves
from .measure import PER_ROW_DETAIL, Measure
from .recipe import Counts, Recipe
from .registry import LISTS, hint
from .rows import IGNORE, Rows, Selection, select, sum_dtype
from .terms import check


@dataclass(frozen=True)
class LossOutput:
    loss: Tensor
    """Scalar, fp32 (fp64 for fp64 input), differentiable: sum of weight * total over targets, over `denom`."""
    sums: dict[str, Tensor]
    """Detached and additive over batches and ranks: `nll` (plain, unweighted), `tokens`, `correct`, `loss` (weighted
    total), one for each term, and with `detail` those of `detail_sums`, some of them by bins."""
    per_token: dict[str, Tensor] | None = None
    """On request, in the shape of the targets: `nll`, `loss` and `correct`, one for each term, and with `detail` also
    `entropy`, `confidence` and `rank`; 0 where there is no target."""
    worst: dict[str, Tensor] | None = None
    """With `detail`: the targets of the largest nll, see `detail.worst`."""


def build_objective(
    config: LossConfig | Mapping[str, Any] | str,
    *,
    vocab_size: int,
    counts: Counts | None = None,
    sources: Sequence[str] = (),
) -> "Objective":
    """The objective that a loss config describes.

    config   a `LossConfig`, the same as a mapping, or one term's name
    counts   (V,) how often each id occurs in the corpus, for unigram priors and frequency deciles; or a function that
             counts, called when something reads them
    sources  names of the data sources that `extra["source"]` indexes, for weights by source

    Files and plugins that the config names are read here. Raises ValueError naming every mistake.
    """
    if isinstance(config, str):
        config = {"base": config}
    if isinstance(config, Mapping):
        known = [field.name for field in fields(LossConfig)]
        if strange := [key for key in config if key not in known]:
            raise ValueError(f"loss: unknown key {strange[0]!r}{hint(strange[0], known)}")
        for key in LISTS:
            if not isinstance(config.get(key, ()), (list, tuple)):
                raise ValueError(f"loss.{key}: takes a list, not {config[key]!r}")
        lists = {key: tuple(map(_long, config.get(key, ()))) for key in ("add", "weights", "logits")}
        config = LossConfig(**{**config, "base": _long(config.get("base", "ce")), **lists})
    if problems := check(config):
        raise ValueError("; ".join(f"loss.{'.'.join(map(str, path))}: {message}" for path, message in problems))
    return Objective(config, vocab_size, counts, sources)


def _long(named: Any) -> dict[str, Any]:
    return {named: {}} if isinstance(named, str) else {name: options or {} for name, options in named.items()}


class Objective:
    """`base + sum(add)` of every target, times its weights, on the reference head or on the fused one.

    The reference head holds all logits and is plain autograd: it is the definition. The fused head agrees with it to
    rounding and holds a chunk of logits at a time.
    """

    def __init__(self, config: LossConfig, vocab_size: int, counts: Counts | None, sources: Sequence[str]):
        self.config, self.vocab_size = config, vocab_size
        self.recipe = Recipe(config, vocab_size, counts, sources)
        self._whole_when_joined = False
        self.compiled = False
        """Whether the fused head has the compiler make its passes over the vocabulary, which pays on GPUs."""

    @property
    def reads(self) -> set[str]:
        """Names of the inputs that a call has to find in `extra`."""
        return self.recipe.reads

    def with_config(self, config: LossConfig) -> "Objective":
        """Another loss on the same vocabulary, corpus counts and sources."""
        return Objective(config, self.vocab_size, self.recipe.given_counts, self.recipe.sources)

    def __call__(
        self,
        hidden: Tensor,
        head: Head | Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        *,
        denom: int | Tensor | None = None,
        progress: float = 0.0,
        detail: bool = False,
        per_token: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> LossOutput:
        """Loss of `hidden` (..., D) against `targets` (...), int64, already shifted; -100 is not a target.

        head       a `Head`, or its weight (V, D) alone
        weights    (...) importance of each target; changes `loss` alone, never nll, tokens or the denominator
        denom      valid targets of the whole optimizer step, over micro-batches and ranks; None: of this call
        progress   fraction of the run done, for coefficients that move
        detail     also sum what costs another pass over the vocabulary
        per_token  also return each target's numbers
        extra      inputs by name, each (..., *), or with fewer dimensions than the targets, from the left: `source`,
                   `position`, `teacher_logits`, or `teacher_hidden` with `teacher_head`, and what plugins read

        Raises ValueError for a wrong shape, dtype or vocabulary size, a missing input or (on the CPU, where looking is
        free) a target that is no id.
        """
        head = head if isinstance(head, Head) else Head(head)
        if head.shard is None:
            self._check_vocabulary(len(head.weight))
        elif not self._whole_when_joined:  # once: it takes a collective and waits for it
            self._check_vocabulary(int(head.shard.sum(torch.tensor(len(head.weight), device=hidden.device))))
            self._whole_when_joined = True
        dtype = torch.promote_types(hidden.dtype, head.weight.dtype)
        call = self._call(hidden, dtype, targets, weights, progress, detail, extra or {})
        picked, divisor = call.chosen.pick(hidden), _divisor(call, denom, dtype)
        if self.config.fused == "off" and head.shard is None:
            loss, values = _reference(call, head.logits(picked), divisor)
        elif (
            not (self.compiled or detail or per_token or self.config.fused != "auto")
            and serves(call.measure, head, call.rows, picked)
        ):  # fmt: skip
            loss, values = liger(picked, head, call.rows)
            loss = loss / divisor
        else:
            chunk = None if self.config.chunk == "auto" else self.config.chunk
            options: dict[str, Any] = {"divisor": divisor, "detail": detail, "compiled": self.compiled}
            loss, values = fused(call.measure, picked, head, call.rows, chunk=chunk, **options)
        return self._output(call, loss, values, per_token)

    def from_logits(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        *,
        denom: int | Tensor | None = None,
        progress: float = 0.0,
        detail: bool = False,
        per_token: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> LossOutput:
        """The same for logits (..., V): the definition of the loss."""
        self._check_vocabulary(logits.shape[-1])
        call = self._call(logits, logits.dtype, targets, weights, progress, detail, extra or {})
        loss, values = _reference(call, call.chosen.pick(logits), _divisor(call, denom, logits.dtype))
        return self._output(call, loss, values, per_token)

    def _check_vocabulary(self, size: int) -> None:
        if size != self.vocab_size:
            raise ValueError(f"logits over {size} ids for a vocabulary of {self.vocab_size}")

    def _call(
        self,
        features: Tensor,
        dtype: torch.dtype,
        targets: Tensor,
        weights: Tensor | None,
        progress: float,
        detail: bool,
        extra: Mapping[str, Any],
    ) -> "_Call":
        self._check_targets(features, targets)
        inputs = dict(extra)
        teacher = _teacher(inputs.pop("teacher_head")) if "teacher_head" in inputs else None
        known = self.reads | self.recipe.may_read | {"source", "position"}
        if "teacher_logits" in known and teacher is not None:
            known |= {"teacher_hidden"}
        if strange := sorted(inputs.keys() - known):
            raise ValueError(
                f"loss: nothing reads extra {strange[0]!r}; this loss reads {sorted(self.reads) or 'none'}"
            )
        used = known - {"source", "position"} | self.reads | ({"position"} if detail else set())
        inputs = {name: value for name, value in inputs.items() if name in used}
        for name in ("soft_labels", "teacher_logits"):
            if name in inputs and inputs[name].shape[-1] != self.vocab_size:
                raise ValueError(f"{name} over {inputs[name].shape[-1]} ids for a vocabulary of {self.vocab_size}")
        measure = self.recipe.at(progress, targets.device, torch.promote_types(dtype, torch.float32))
        chosen, rows = select(targets, weights, inputs, len(measure.ahead))
        return _Call(replace(measure, teacher=teacher), chosen, rows, detail)

    def _output(self, call: "_Call", loss: Tensor, values: dict[str, Tensor], per_token: bool) -> LossOutput:
        """Sum and spread what a head has computed of each row."""
        numbers = {name: value for name, value in values.items() if name not in PER_ROW_DETAIL}
        sums = {name: value.sum(dtype=sum_dtype(value.device)) for name, value in numbers.items()}
        each, extremes = None, None
        if call.detail:
            deciles = self.recipe.deciles
            deciles = None if deciles is None else deciles.to(call.rows.targets.device)
            sums |= detail_sums(values, call.rows, deciles)
            extremes = worst(call.chosen.spread(values["nll"]))
        if per_token:
            each = {name: call.chosen.spread(value) for name, value in values.items() if name != "tokens"}
        return LossOutput(loss, sums, each, extremes)

    def _check_targets(self, features: Tensor, targets: Tensor) -> None:
        if targets.dtype != torch.int64:
            raise ValueError(f"targets are {targets.dtype}, not int64")
        if features.shape[:-1] != targets.shape:
            raise ValueError(
                f"logits or hidden states of shape {tuple(features.shape)} for targets of shape {tuple(targets.shape)}"
            )
        if targets.device.type == "cpu":  # elsewhere looking would wait for the device, and gather asserts there
            wrong = (targets != IGNORE) & ((targets < 0) | (targets >= self.vocab_size))
            if wrong.any():
                place = wrong.nonzero()[0].tolist()
                value = int(targets[tuple(place)])
                raise ValueError(f"target {value} at {place} is neither {IGNORE} nor in [0, {self.vocab_size})")


@dataclass(frozen=True)
class _Call:
    """One call: the loss as it is now, and the rows that it is computed of."""

    measure: Measure
    chosen: Selection
    rows: Rows
    detail: bool


def _divisor(call: _Call, denom: int | Tensor | None, dtype: torch.dtype) -> int | Tensor:
    """What the sum of the loss is divided by, at least 1: `denom`, or the targets of the call."""
    if denom is not None and not isinstance(denom, Tensor):
        return max(denom, 1)
    targets = call.chosen.flat.sum() if denom is None else denom
    return targets.clamp_min(1).to(torch.promote_types(dtype, torch.float32))


def _reference(call: _Call, logits: Tensor, divisor: int | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the loss over all rows at once over `divisor`, by plain autograd, and what is reported of each row."""
    total, values = call.measure.of_logits(logits, call.rows, detail=call.detail)
    return total.sum(dtype=sum_dtype(total.device)).to(total.dtype) / divisor, {**values, "loss": total.detach()}


def _teacher(head: Head | Tensor) -> Callable[[Tensor], Tensor]:
    """From a teacher's hidden states to its logits, without a gradient."""
    given = head if isinstance(head, Head) else Head(head)
    cast: dict[torch.dtype, Head] = {}

    @torch.no_grad()
    def logits(hidden: Tensor) -> Tensor:
        if hidden.dtype not in cast:
            bias = None if given.bias is None else given.bias.to(hidden.dtype)
            cast[hidden.dtype] = given._replace(weight=given.weight.to(hidden.dtype), bias=bias)
        return cast[hidden.dtype].logits(hidden)

    return logits
