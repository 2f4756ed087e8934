"""The objective: masked, weighted next-token loss, and the sums from which every reported number is made.

B rows, T tokens in a row, V vocabulary, D width, N = B*T.

One rule keeps every number exact under masks, accumulation and any number of ranks: nothing here is a mean but
`loss` itself, and that one is divided by the number of valid targets of the *whole* optimizer step, which the caller
knows before the first forward. Everything else is a sum; `metrics` turns sums into means, in one place.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import LossConfig
from .terms import TERMS, check

IGNORE = -100


class Head(NamedTuple):
    """What turns hidden states into logits: `softcap * tanh((hidden @ weight.T + bias) / softcap)`."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    softcap: float | None = None
    shard: Any = None  # collectives of a head split over ranks by vocabulary

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        if self.shard is not None:
            raise ValueError("the reference head holds the whole vocabulary; it cannot be sharded")
        logits = F.linear(hidden, self.weight, self.bias)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class LossOutput:
    loss: Tensor
    """Scalar, fp32 (fp64 for fp64 input), differentiable: sum of weight * total over targets, over `denom`."""
    sums: dict[str, Tensor]
    """Detached scalars, additive over batches and ranks: `nll` (plain, unweighted), `tokens`, `correct`, `loss`
    (weighted total), one for each term, and with `detail` also `entropy`."""
    per_token: dict[str, Tensor] | None = None
    """On request, in the shape of the targets: `nll`, `loss` and `correct`; 0 where there is no target."""


def build_objective(
    config: LossConfig | Mapping[str, Any] | str, *, vocab_size: int, counts: Tensor | None = None
) -> "Objective":
    """The objective that a loss config describes.

    `config` is a `LossConfig`, the same as a mapping, or one term's name. `counts` (V,) are corpus counts for terms
    with a unigram prior; no term registered so far reads them. Raises ValueError naming every mistake.
    """
    if isinstance(config, str):
        config = {"base": config}
    if isinstance(config, Mapping):
        spread = {**config, "base": _long(config.get("base", "ce")), "add": tuple(map(_long, config.get("add", ())))}
        config = LossConfig(**spread)
    if problems := check(config):
        raise ValueError("; ".join(f"loss.{'.'.join(map(str, path))}: {message}" for path, message in problems))
    return Objective(config, vocab_size)


def _long(named: Any) -> dict[str, Any]:
    return {named: {}} if isinstance(named, str) else {name: options or {} for name, options in named.items()}


class Objective:
    """`base + sum(add)` on the reference head, which holds all logits of a batch at once.

    This is the definition; any faster head has to agree with it.
    """

    def __init__(self, config: LossConfig, vocab_size: int):
        named = [item for part in (config.base, *config.add) for item in part.items()]
        self.terms = [(name, TERMS[name], options) for name, options in named]
        self.needs_prior = any(known.needs_prior for _, known, _ in self.terms)
        self.vocab_size = vocab_size

    def __call__(
        self, hidden: Tensor, head: Head | Tensor, targets: Tensor, weights: Tensor | None = None, **options: Any
    ) -> LossOutput:
        """Loss of `hidden` (..., D) against `targets` (...); `options` as for `from_logits`.

        `head` is a `Head` or its weight alone, (V, D).
        """
        head = head if isinstance(head, Head) else Head(head)
        # A masked row may hold anything, NaN too: it is replaced before it can reach a product or a gradient.
        hidden = torch.where((targets != IGNORE).unsqueeze(-1), hidden, 0.0)
        return self._measure(head.logits(hidden), targets, weights, **options)

    def from_logits(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, **options: Any) -> LossOutput:
        """Loss of `logits` (..., V) against `targets` (...), int64, already shifted; -100 is not a target.

        weights (...)  importance of each target; changes `loss` alone, never nll, tokens or the denominator
        denom          valid targets of the whole optimizer step, over micro-batches and ranks; None: of this call
        progress       fraction of the run done, for coefficients that vary; those registered so far are constant
        detail         also sum the entropy of the prediction: one more pass over the vocabulary
        per_token      also return each target's numbers
        extra          inputs of dense-target terms; none is registered so far

        Raises ValueError for a wrong vocabulary size, dtype or (on the CPU, where looking is free) target.
        """
        logits = torch.where((targets != IGNORE).unsqueeze(-1), logits, 0.0)
        return self._measure(logits, targets, weights, **options)

    def _measure(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        *,
        denom: int | Tensor | None = None,
        progress: float = 0.0,
        detail: bool = False,
        per_token: bool = False,
        extra: None = None,
    ) -> LossOutput:
        if extra is not None:
            raise ValueError("no registered loss term takes extra inputs")
        self._check(logits, targets)
        valid = targets != IGNORE
        index = targets.clamp_min(0).unsqueeze(-1)
        lp, lse, lu, log_p = Statistics.apply(logits, index, self.needs_prior)
        arguments = {"lp": lp, "lse": lse}
        prior = {"lu": lu} if self.needs_prior else {}

        zero = torch.zeros((), dtype=lp.dtype, device=lp.device)
        parts = [
            torch.where(valid, known.function(**arguments, **(prior if known.needs_prior else {}), **options), zero)
            for _, known, options in self.terms
        ]
        total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        weighted = total if weights is None else total * torch.where(valid, weights.to(total.dtype), zero)
        tokens = valid.sum()
        divisor = tokens.clamp_min(1) if denom is None else max(denom, 1) if isinstance(denom, int) else denom
        loss = weighted.sum() / divisor

        with torch.no_grad():
            nll = torch.where(valid, -lp, zero)
            correct = (log_p.argmax(-1) == targets) & valid
            values = {"nll": nll, "tokens": valid, "correct": correct, "loss": weighted}
            # A term used twice, such as z with two coefficients, is one sum.
            for (name, _, _), part in zip(self.terms, parts, strict=True):
                values[f"term/{name}"] = values.get(f"term/{name}", 0) + part
            if detail:
                values["entropy"] = torch.where(valid, -(log_p.exp() * log_p).sum(-1), zero)
            sums = {name: _sum(value.detach()) for name, value in values.items()}
        each = {"nll": nll, "loss": weighted.detach(), "correct": correct} if per_token else None
        return LossOutput(loss, sums, each)

    def _check(self, logits: Tensor, targets: Tensor) -> None:
        if logits.shape[-1] != self.vocab_size:
            raise ValueError(f"logits over {logits.shape[-1]} ids for a vocabulary of {self.vocab_size}")
        if targets.dtype != torch.int64:
            raise ValueError(f"targets are {targets.dtype}, not int64")
        if logits.shape[:-1] != targets.shape:
            raise ValueError(f"logits of shape {tuple(logits.shape)} for targets of shape {tuple(targets.shape)}")
        if targets.device.type == "cpu":  # elsewhere looking would wait for the device, and gather asserts there
            wrong = (targets != IGNORE) & ((targets < 0) | (targets >= self.vocab_size))
            if wrong.any():
                place = wrong.nonzero()[0].tolist()
                value = int(targets[tuple(place)])
                raise ValueError(f"target {value} at {place} is neither {IGNORE} nor in [0, {self.vocab_size})")


class Statistics(torch.autograd.Function):
    """The numbers that terms are made of, with their gradient in closed form.

    Of logits x (..., V) and target ids (..., 1): lp = log p(target), lse = logsumexp(x) and lu = mean of log p, each
    (...), and all of log p (..., V), which is not differentiable. With gradients a, b and c of the first three,

        dx = a * onehot + (b - a - c) * p + c / V

    in one pass, where autograd would make a dense gradient for each of the three and add them up. fp32, or fp64 for
    fp64 logits; lp comes from log-softmax and not as x_target - lse, which cancels under a common offset.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, index: Tensor, needs_prior: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        log_p = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        lp = log_p.gather(-1, index).squeeze(-1)
        lse = logits.gather(-1, index).squeeze(-1) - lp
        ctx.save_for_backward(log_p, index)
        ctx.mark_non_differentiable(log_p)
        ctx.set_materialize_grads(False)
        ctx.dtype = logits.dtype
        return lp, lse, log_p.mean(-1) if needs_prior else None, log_p

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, a: Tensor | None, b: Tensor | None, c: Tensor | None, _: None
    ) -> tuple[Tensor | None, None, None]:
        log_p, index = ctx.saved_tensors
        if a is None and b is None and c is None:
            return None, None, None
        zero = log_p.new_zeros(())
        a, b, c = (zero if g is None else g.unsqueeze(-1) for g in (a, b, c))
        dx = log_p.exp().mul_(b - a - c)
        if c is not zero:
            dx.add_(c, alpha=1 / log_p.shape[-1])
        if a is not zero:
            dx.scatter_add_(-1, index, a)
        return dx.to(ctx.dtype), None, None


def _sum(values: Tensor) -> Tensor:
    """Sum in float64, so that no order of additions shows; MPS has none and keeps float32."""
    return values.sum(dtype=torch.float32 if values.device.type == "mps" else torch.float64)


def metrics(sums: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Means from sums over any number of batches and ranks: the only place where a sum becomes a mean.

    nll       nats per target, plain and unweighted
    ppl       exp(nll)
    accuracy  share of targets that were the most likely id
    loss      weighted objective per target, and `term/...` for each of its parts
    bpb       bits per UTF-8 byte, from `nll_text` (nats on targets that have bytes) and `bytes`, when given

    Without a target every mean is NaN.
    """
    have = {name: float(value) for name, value in sums.items()}
    tokens = have.pop("tokens")
    text, size = have.pop("nll_text", None), have.pop("bytes", None)
    means = {name: value / tokens if tokens else math.nan for name, value in have.items()}
    if "correct" in means:
        means["accuracy"] = means.pop("correct")
    means["ppl"] = _exp(means["nll"])
    if text is not None and size is not None:
        means["bpb"] = text / (math.log(2) * size) if size else math.nan
    return means


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
