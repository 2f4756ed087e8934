"""Losses of pairs of sequences, of the log-probabilities of their tokens: Bradley-Terry and DPO.

B sequences, T tokens in a sequence, V vocabulary, D width, n valid targets, C rows of a chunk.

Where the fused head knows the gradient of its one sum when the forward pass ends, here every token has an upstream
gradient of its own, known only in the backward pass. So the forward pass keeps no logits and the backward pass makes
them again, a chunk at a time: with the upstream g of a row, d logits = g (onehot - p). No (n, V) tensor exists.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .head import Head
from .products import Once, Products, chunk_rows, eager
from .rows import IGNORE, Selection


@eager
def token_log_probs(hidden: Tensor, head: Head | Tensor, targets: Tensor, *, chunk: int | None = None) -> Tensor:
    """log p(target) in nats, in the shape of the targets: 0 where there is none, differentiable for each token.

    hidden   (..., D); what stands in rows without a target, NaN too, is not read
    head     a `Head`, not split over ranks, or its weight (V, D) alone
    targets  int64 (...), already shifted; -100 is not a target
    chunk    rows of a chunk; None: as many as suit the caches

    The result is fp32, or fp64 for fp64 input; under autocast the products are computed in its dtype, in the backward
    pass too. Differentiable once. Raises ValueError for a wrong shape or dtype, a head split over ranks, a chunk below
    1 or (on the CPU, where looking is free) a target that is no id.
    """
    head = head if isinstance(head, Head) else Head(head)
    _check(hidden, head, targets, chunk)
    chosen = Selection.of(targets)
    picked, ids = chosen.pick(hidden), chosen.pick(targets).clamp_min(0)
    size = chunk or chunk_rows(len(head.weight), hidden.device)
    lp = _TokenLogProbs.apply(picked, head.weight, head.bias, ids, head.softcap, size)
    if chosen.index is None:  # all rows were computed, those without a target too
        lp = torch.where(chosen.flat, lp, 0.0)
    return chosen.spread(lp)


def _check(hidden: Tensor, head: Head, targets: Tensor, chunk: int | None) -> None:
    if head.shard is not None:
        raise ValueError("token_log_probs needs the whole vocabulary: the head cannot be split over ranks")
    if chunk is not None and chunk < 1:
        raise ValueError(f"a chunk of {chunk} rows; it needs at least 1")
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}, not int64")
    if hidden.shape != (*targets.shape, head.weight.shape[1]):
        raise ValueError(
            f"hidden states of shape {tuple(hidden.shape)} for targets of shape {tuple(targets.shape)} "
            f"and a head of shape {tuple(head.weight.shape)}"
        )
    if targets.device.type == "cpu":
        wrong = targets[(targets != IGNORE) & ((targets < 0) | (targets >= len(head.weight)))]
        if len(wrong):
            raise ValueError(f"target {int(wrong[0])} is neither {IGNORE} nor in [0, {len(head.weight)})")


class _TokenLogProbs(torch.autograd.Function):
    """log p(target) (n,) of hidden (n, D); both passes go over the rows in chunks."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, softcap: float | None, size: int
    ) -> Tensor:
        kind = hidden.device.type
        # The backward pass may run outside of autocast, or inside of another.
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.softcap, ctx.size = softcap, size
        ctx.save_for_backward(hidden, weight, bias, ids)
        head = Head(weight, bias, softcap)
        products = Products(hidden, head, [False, False, False])
        found = hidden.new_empty(len(hidden), dtype=products.exact)
        with torch.autocast(kind, enabled=False):
            for part, logits in products.chunks(size):
                log_p = head.cap(logits.to(products.exact)).log_softmax(1)
                found[part] = log_p.gather(1, ids[part].unsqueeze(1)).squeeze(1)
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids = inputs = ctx.saved_tensors
        kind, dtype, enabled = ctx.autocast
        with torch.no_grad():
            with torch.autocast(kind, dtype=dtype, enabled=enabled):
                products = Products(hidden, Head(weight, bias, ctx.softcap), list(ctx.needs_input_grad[:3]))
            with torch.autocast(kind, enabled=False):
                for part, logits in products.chunks(ctx.size):
                    # The upstream goes to the D-wide side: p - onehot alone is rounded to the products' dtype.
                    d_logits = _softmax_minus_target(products, logits, ids[part].unsqueeze(1))
                    products.add(part, d_logits, -upstream[part].unsqueeze(1), logits)
            pairs = zip(products.gradients(), inputs, strict=False)
            made = [None if gradient is None else gradient.to(tensor.dtype) for gradient, tensor in pairs]
        if torch.is_grad_enabled():  # someone may want to differentiate again
            made = [None if gradient is None else Once.apply(gradient, upstream, *inputs[:3]) for gradient in made]
        return *made, None, None, None


def _softmax_minus_target(products: Products, logits: Tensor, ids: Tensor) -> Tensor:
    """The gradient of -log p(target) by the logits (C, V) before the softcap, in the dtype of sums."""
    capped = products.head.softcap is not None
    with torch.set_grad_enabled(capped):
        before = logits.detach().to(products.exact).requires_grad_(capped)
        after = products.head.cap(before)
    d_logits = after.detach().softmax(1)
    d_logits.scatter_add_(1, ids, d_logits.new_full(ids.shape, -1.0))
    return torch.autograd.grad(after, before, d_logits)[0] if capped else d_logits


def sequence_log_probs(per_token: Tensor, targets: Tensor, *, average: bool = False) -> Tensor:
    """(B,) nats: the sum of each row of `per_token` (B, T) over its targets (B, T), or their mean; -100 is no target.

    The sum is log p(sequence). The mean does not favor short sequences (SimPO, Meng et al. 2024, arXiv:2405.14734).
    A row without targets gives 0. Raises ValueError for shapes that differ or have no axis of tokens.
    """
    if per_token.shape != targets.shape or not targets.dim():
        raise ValueError(
            f"log-probabilities of shape {tuple(per_token.shape)} for targets of shape {tuple(targets.shape)}"
        )
    valid = targets != IGNORE
    total = torch.where(valid, per_token, 0.0).sum(-1)
    return total / valid.sum(-1).clamp_min(1) if average else total


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: float | Tensor = 0.0) -> Tensor:
    """-log P(chosen beats rejected) of each pair in nats: -log sigmoid(chosen - rejected - margin).

    The model is that of Bradley and Terry (1952), the loss that of reward models (Ouyang et al. 2022,
    arXiv:2203.02155, equation 1), the margin that of Llama 2 (Touvron et al. 2023, arXiv:2307.09288, equation 2).

    chosen, rejected  scores of the same shape, such as (B,): rewards or log-probabilities
    margin            by how much the chosen one should win: a number, or one for each pair

    Raises ValueError for shapes that differ.
    """
    _same_shapes(chosen=chosen, rejected=rejected)
    if isinstance(margin, Tensor) and margin.dim():
        _same_shapes(chosen=chosen, margin=margin)
    return -F.logsigmoid(_exact(chosen) - _exact(rejected) - margin)


class DPOOutput(NamedTuple):
    """What `dpo` gives for each pair."""

    losses: Tensor
    """Nats, differentiable."""
    chosen_rewards: Tensor
    """beta (log policy - log reference) of the chosen sequence, up to a constant of the prompt; detached."""
    rejected_rewards: Tensor
    """The same of the rejected one."""


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> DPOOutput:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, equation 7) of pairs of sequences.

    With the rewards r = beta (log policy - log reference) and their difference d = r_chosen - r_rejected, a pair costs
    -(1 - eps) log sigmoid(d) - eps log sigmoid(-d): eps = `label_smoothing` is the share of pairs taken to be labeled
    the wrong way round (conservative DPO, Mitchell 2023, "A note on DPO with noisy preferences").

    All four are log-probabilities of whole sequences in nats, of one shape such as (B,); the reference's have no
    gradient. Raises ValueError for shapes that differ, beta not above 0 or label_smoothing outside [0, 0.5).
    """
    _same_shapes(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    if not beta > 0:
        raise ValueError(f"dpo: beta {beta} is not above 0")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"dpo: label_smoothing {label_smoothing} is not in [0, 0.5)")
    chosen = beta * (_exact(policy_chosen) - _exact(reference_chosen).detach())
    rejected = beta * (_exact(policy_rejected) - _exact(reference_rejected).detach())
    losses = (1 - label_smoothing) * bradley_terry(chosen, rejected)
    if label_smoothing:
        losses = losses + label_smoothing * bradley_terry(rejected, chosen)
    return DPOOutput(losses, chosen.detach(), rejected.detach())


def _same_shapes(**tensors: Tensor) -> None:
    (first, like), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != like.shape:
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} for {first} of shape {tuple(like.shape)}")


def _exact(scores: Tensor) -> Tensor:
    """fp32 or better: sums of log-probabilities are large, and it is their difference that counts."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
