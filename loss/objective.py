"""The objective: masked, weighted next-token loss, and the sums from which every reported number is made.

B rows, T tokens in a row, V vocabulary, D width, N = B*T, K targets of a place.

One rule keeps every number exact under masks, accumulation and any number of ranks: nothing here is a mean but
`loss` itself, and that one is divided by the number of valid targets of the *whole* optimizer step, which the caller
knows before the first forward. Everything else is a sum; `metrics` turns sums into means, in one place.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import plugins
from .config import LossConfig
from .detail import decile_of, detail_sums, worst
from .fused import fused
from .head import Head
from .liger import liger, serves
from .measure import PER_ROW_DETAIL, Measure, Use
from .registry import File, Ids, Part, check_options, hint, marked, value_at
from .rows import IGNORE, Rows, Selection, select
from .tables import load_prior, load_table
from .terms import TERMS, TRANSFORMS, WEIGHTS, check

Counts = Tensor | Callable[[], Tensor]


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
        self.sources = tuple(sources)
        self._counts = counts
        self.plugins: dict[str, str] = {}
        """sha256 of each file that parts were loaded from."""
        self._priors: dict[str, Tensor] = {}
        self._tables: dict[str, Tensor] = {}
        self._at: dict[tuple[Any, ...], dict[str, Tensor]] = {}
        self.terms = [
            self._known(named, TERMS, "base" if i == 0 else "add") for i, named in enumerate((config.base, *config.add))
        ]
        self.weights = [self._known(named, WEIGHTS, "weights") for named in config.weights]
        self.transforms = [self._known(named, TRANSFORMS, "logits") for named in config.logits]

    def with_config(self, config: LossConfig) -> "Objective":
        """Another loss on the same vocabulary, corpus counts and sources."""
        return build_objective(config, vocab_size=self.vocab_size, counts=self._counts, sources=self.sources)

    def _known(self, named: Mapping[str, Any], known: Mapping[str, Part], key: str) -> tuple[Part, dict[str, Any]]:
        """A part with its options; the files that they name are read."""
        ((name, given),) = named.items()
        if name in known:
            part = known[name]
        else:
            part = plugins.load(name, 1.0 if known is TERMS else None)
            self.plugins |= plugins.digest(name)
        if problems := check_options(part, given):
            raise ValueError("; ".join(f"loss.{key}.{name}.{'.'.join(map(str, p))}: {m}" for p, m in problems))
        options = {**{k: v for k, v in part.options.items() if v is not inspect.Parameter.empty}, **given}
        for option, value in options.items():
            try:
                self._read(part, option, value)
            except ValueError as error:
                raise ValueError(f"loss.{key}.{name}.{option}: {error}") from None
        if "source" in part.reads and "by" in options:
            unknown = [source for source in options["by"] if source not in self.sources]
            if unknown:
                have = ", ".join(self.sources) or "none"
                raise ValueError(f"loss.{key}.{name}.by: no source {unknown[0]!r}; there are: {have}")
            options["by"] = {self.sources.index(source): value for source, value in options["by"].items()}
        return part, options

    def _read(self, part: Part, option: str, value: Any) -> None:
        """Read the file or make the prior that an option names, and check ids; most options are none of these."""
        hint_of = part.hints[option]
        if (mark := marked(hint_of, File)) and value not in self._tables:
            self._tables[value] = load_table(value, mark, self.vocab_size)
        if marked(hint_of, Ids) and (strange := [i for i in value if i >= self.vocab_size]):
            raise ValueError(f"{strange[0]} is no id of a vocabulary of {self.vocab_size}")
        if option != "prior":
            return
        if value not in self._priors:
            counts = self.counts if value == "unigram" else None
            self._priors[value] = load_prior(value, self.vocab_size, counts)
        if "log_u" in part.reads and not bool((self._priors[value] > 0).all()):
            raise ValueError(f"{value} has ids of probability 0, whose logarithm is infinite")

    @cached_property
    def counts(self) -> Tensor | None:
        """(V,) how often each id occurs in the corpus."""
        counts = self._counts() if callable(self._counts) else self._counts
        if counts is not None and counts.shape != (self.vocab_size,):
            raise ValueError(f"counts of shape {tuple(counts.shape)} for a vocabulary of {self.vocab_size}")
        return counts

    @cached_property
    def deciles(self) -> Tensor | None:
        """int64 (V,): each id's tenth of the corpus by frequency."""
        return None if self.counts is None else decile_of(self.counts)

    @property
    def reads(self) -> set[str]:
        """Names of the inputs that a call has to find in `extra`."""
        parts = [part for part, _ in (*self.terms, *self.weights, *self.transforms)]
        own = {"lp", "lse", "lu", "ut", "u", "log_u", "target", "log_p", "logits"}
        needed = {name for part in parts for name in part.reads if name not in part.optional} - own
        return needed | ({"position"} if self.config.ahead else set())

    def at(self, progress: float, device: torch.device, dtype: torch.dtype) -> Measure:
        """The loss at a moment of the run: coefficients as numbers, priors and tables on the device."""
        here = self._at.setdefault((device, dtype), {})
        if not here:
            here |= {name: value.to(device, dtype) for name, value in {**self._priors, **self._tables}.items()}

        def use(part: Part, options: Mapping[str, Any]) -> Use:
            now = {name: value_at(value, progress) for name, value in options.items()}
            now = {name: here[value] if marked(part.hints[name], File) else value for name, value in now.items()}
            coef, prior = now.pop("coef", 1.0), now.pop("prior", None)
            return Use(part.name, part, now, coef, prior)

        return Measure(
            terms=[use(*item) for item in self.terms],
            weights=[use(*item) for item in self.weights],
            transforms=[use(*item) for item in self.transforms],
            priors=here,
            ahead=(1.0, *(value_at(value, progress) for value in self.config.ahead)),
        )

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
        call = self._call(hidden, targets, weights, progress, detail, extra or {})
        picked = call.chosen.pick(hidden)
        if self.config.fused == "off" and head.shard is None:
            loss, values = _reference(call, head.logits(picked))
        elif (
            self.config.fused == "auto" and not (detail or per_token) and serves(call.measure, head, call.rows, picked)
        ):
            loss, values = liger(picked, head, call.rows)
        else:
            chunk = None if self.config.chunk == "auto" else self.config.chunk
            loss, values = fused(call.measure, picked, head, call.rows, chunk=chunk, detail=detail)
        return self._output(call, loss, values, denom, per_token)

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
        call = self._call(logits, targets, weights, progress, detail, extra or {})
        loss, values = _reference(call, call.chosen.pick(logits))
        return self._output(call, loss, values, denom, per_token)

    def _check_vocabulary(self, size: int) -> None:
        if size != self.vocab_size:
            raise ValueError(f"logits over {size} ids for a vocabulary of {self.vocab_size}")

    def _call(
        self,
        features: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        progress: float,
        detail: bool,
        extra: Mapping[str, Any],
    ) -> "_Call":
        self._check_targets(features, targets)
        inputs = dict(extra)
        teacher = _teacher(inputs.pop("teacher_head")) if "teacher_head" in inputs else None
        known = self.reads | {name for part, _ in self.terms for name in part.optional} | {"source", "position"}
        if "teacher_logits" in known and teacher is not None:
            known |= {"teacher_hidden"}
        if strange := sorted(inputs.keys() - known):
            raise ValueError(
                f"loss: nothing reads extra {strange[0]!r}; this loss reads {sorted(self.reads) or 'none'}"
            )
        used = known - {"source", "position"} | self.reads | ({"position"} if detail else set())
        inputs = {name: value for name, value in inputs.items() if name in used}
        exact = torch.promote_types(features.dtype, torch.float32)
        measure = self.at(progress, targets.device, exact)
        chosen, rows = select(targets, weights, inputs, len(measure.ahead))
        return _Call(replace(measure, teacher=teacher), chosen, rows, detail)

    def _output(
        self,
        call: "_Call",
        loss: Tensor,
        values: dict[str, Tensor],
        denom: int | Tensor | None,
        per_token: bool,
    ) -> LossOutput:
        """Divide, sum and spread what a head has computed of each row."""
        numbers = {name: value for name, value in values.items() if name not in PER_ROW_DETAIL}
        sums = {name: value.sum(dtype=_exact(value)) for name, value in numbers.items()}
        if denom is None:
            denom = sums["tokens"].clamp_min(1)
        divisor = max(denom, 1) if isinstance(denom, int) else denom.clamp_min(1).to(loss.dtype)
        each, extremes = None, None
        if call.detail:
            deciles = None if self.deciles is None else self.deciles.to(call.rows.targets.device)
            sums |= detail_sums(values, call.rows, deciles)
            extremes = worst(call.chosen.spread(values["nll"]))
        if per_token:
            each = {name: call.chosen.spread(value) for name, value in values.items() if name != "tokens"}
        return LossOutput(loss / divisor, sums, each, extremes)

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


def _reference(call: _Call, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the loss over all rows at once, by plain autograd, and what is reported of each row."""
    total, values = call.measure.of_logits(logits, call.rows, detail=call.detail)
    return total.sum(dtype=_exact(total)).to(total.dtype), {**values, "loss": total.detach()}


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


def _exact(values: Tensor) -> torch.dtype:
    """Sums are float64, so that no order of additions shows; MPS has none and keeps float32."""
    return torch.float32 if values.device.type == "mps" else torch.float64
