"""The fused head: the head's product, the loss and both gradients, a chunk of rows at a time.

n rows, K targets of a row, D width, V vocabulary, C rows of a chunk, J priors.

Logits of a chunk are made, used for the loss *and* for the gradient of the loss, and forgotten: no (n, V) tensor
exists. The gradients are ready when the forward pass ends; the backward pass multiplies them by its upstream scalar.

Of logits x, a term is a function of lp = x_t - lse, lse = logsumexp(x) and lu = sum_j u_j x_j - lse. With gradients
a, b, c of the loss by these three, for one row,

    dx = sum_k a_k onehot(t_k) + (b - sum_k a_k - c) p + c u  =  r (p + sum_k a_k / r onehot(t_k)) + c u

The factor r goes to the D-wide side of each product, and c u is of rank one: the only passes over V are the softmax
and a scatter. Other terms get dx from autograd on the chunk; the rest is the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .head import Head, Shard
from .measure import Measure, first_of_the_best
from .passes import compiled as compiled_passes
from .products import Products, WithGradients, chunk_rows, eager
from .rows import Rows, sum_dtype


@eager
def fused(
    measure: Measure,
    hidden: Tensor,
    head: Head,
    rows: Rows,
    *,
    chunk: int | None = None,
    detail: bool = False,
    divisor: int | Tensor = 1,
    compiled: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum over rows of `measure`'s loss over `divisor`, differentiable by hidden (n, D), weight and bias; and what
    `Measure.of_logits` gives for each row, with `loss`, detached.

    Divided here and not afterwards, so that the gradient of the weight need not be gone through once more.
    `compiled`: the passes over the vocabulary by kernels made by the compiler, where they can be.
    Differentiable once. Raises ValueError for what a sharded head cannot do.
    """
    if head.shard is not None and (measure.whole or detail or head.softcap is not None):
        raise ValueError("a head split over ranks has no whole row: only terms of (lp, lse, lu), without detail")
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, head.weight, head.bias)]
    with torch.no_grad():
        products = Products(hidden, head, wanted)
        size = chunk or chunk_rows(len(head.weight), hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            by_autograd = measure.whole or head.softcap is not None or detail
            make = (
                _Whole(measure, head, divisor, detail)
                if by_autograd
                else _Vectors(measure, head, divisor, products, compiled)
            )
            values = [make(logits, rows[part], products, part) for part, logits in products.chunks(size)]
            make.finish(products)
        joined = {name: torch.cat([value[name] for value in values]) for name in values[0]}
    loss = joined["loss"].sum(dtype=sum_dtype(hidden.device)).to(products.exact) / divisor
    if any(wanted):
        loss = WithGradients.apply(loss, hidden, head.weight, head.bias, *products.gradients())
    return loss, joined


class _Whole:
    """Chunks of a loss that needs whole rows: the definition on a chunk, with autograd for the gradient by logits."""

    def __init__(self, measure: Measure, head: Head, divisor: int | Tensor, detail: bool):
        self.measure, self.head, self.divisor, self.detail = measure, head, divisor, detail

    def __call__(self, logits: Tensor, rows: Rows, products: Products, part: slice) -> dict[str, Tensor]:
        wanted = any(products.wanted)
        with torch.set_grad_enabled(wanted):
            x = logits.detach().to(products.exact, copy=True).requires_grad_(wanted)
            total, values = self.measure.of_logits(self.head.cap(x), rows, detail=self.detail)
            summed = total.sum() / self.divisor
        if wanted:
            (d_logits,) = torch.autograd.grad(summed, x)
            products.add(part, d_logits, None, logits)
        return {**values, "loss": total.detach()}

    def finish(self, products: Products) -> None:
        """Nothing is left over."""


class _Vectors:
    """Chunks of a loss whose terms read one number a target, with the gradient in closed form."""

    def __init__(self, measure: Measure, head: Head, divisor: int | Tensor, products: Products, compiled: bool):
        self.measure, self.head, self.divisor, self.shard = measure, head, divisor, head.shard
        # Probabilities in fp16 would lose those below its range before they are scaled.
        self.passes = compiled_passes() if compiled and not head.shard and products.dtype != torch.float16 else None
        self.wanted = any(products.wanted)
        self.priors: dict[str, Tensor] = {}
        self.masses: dict[str, Tensor] = {}
        self.mean_weights: dict[str, Tensor] = {}
        self.mean_logits: dict[str, Tensor] = {}
        self.c: dict[str, list[Tensor]] = {name: [] for name in measure.mixed}
        for name in measure.mixed:
            self._add_prior(name, products)
        self._scratch: Tensor | None = None

    def _add_prior(self, name: str, products: Products) -> None:
        """W^T u and the mean logit of every row, for this rank's part of a prior, without the ids that a bias bans."""
        weight, bias = self.head.weight.to(products.exact), self.head.bias
        prior = self.measure.priors[name]
        if self.shard is not None:
            prior = prior[self.shard.start : self.shard.start + len(weight)]
        mass = prior.new_ones(())
        if bias is not None:
            prior = torch.where(bias > -torch.inf, prior, 0.0)
            mass = _sum(prior.sum(), self.shard)
            prior = prior / mass
        mean = weight.t().mv(prior)
        logits = products.hidden.to(products.exact).mv(mean)
        if bias is not None:  # 0 times -inf where the bias bans
            logits = logits + (prior * torch.where(prior > 0, bias.to(products.exact), 0.0)).sum()
        self.priors[name], self.masses[name], self.mean_weights[name] = prior, mass, mean
        self.mean_logits[name] = _sum(logits, self.shard).unsqueeze(1)

    def __call__(self, logits: Tensor, rows: Rows, products: Products, part: slice) -> dict[str, Tensor]:
        p = None
        if self.passes:
            found = _Found.compiled(*self.passes[0](logits, rows.targets), rows)
        else:
            p, top = self._softmax(logits, products.exact)
            if self.shard is None:
                found = _Found.whole(logits, p, top, rows)
            else:
                found = _Found.split(logits, p, top, rows, self.shard)
        fixed = {f"ut/{name}": self.measure.priors[name][rows.targets] / self.masses[name] for name in self.priors}
        vectors = {"lp": found.lp, "lse": found.lse}
        vectors |= {f"lu/{name}": mean[part] - found.lse for name, mean in self.mean_logits.items()}
        with torch.set_grad_enabled(self.wanted):
            leaves = {name: value.detach().requires_grad_(self.wanted) for name, value in vectors.items()}
            total, parts = self.measure.of_vectors({**leaves, **fixed}, rows)
            summed = total.sum() / self.divisor
        if self.wanted:
            grads = torch.autograd.grad(summed, list(leaves.values()), allow_unused=True, materialize_grads=True)
            self._spread(dict(zip(leaves, grads, strict=True)), found, p, logits, products, part)
        nll = torch.where(rows.valid[:, 0], -found.lp[:, 0], 0.0)
        correct = found.correct & rows.valid[:, 0]
        return {**parts, "nll": nll, "tokens": rows.valid[:, 0], "correct": correct, "loss": total.detach()}

    def _softmax(self, logits: Tensor, exact: torch.dtype) -> tuple[Tensor, Tensor]:
        """p (C, V) of this rank's logits, until the next call, and the largest logit (C, 1)."""
        if self._scratch is None:
            self._scratch = torch.empty_like(logits, dtype=exact)
        p = self._scratch[: len(logits)]
        if logits.device.type == "cpu" and logits.dtype != exact:
            # Given a dtype, a CPU's softmax converts into a new tensor first; row by row it may write over its input.
            top = p.copy_(logits).amax(1, keepdim=True)
            return torch.softmax(p, 1, out=p), top
        return torch.softmax(logits, 1, dtype=exact, out=p), logits.amax(1, keepdim=True).to(exact)

    def _spread(
        self,
        by: dict[str, Tensor],
        found: "_Found",
        p: Tensor | None,
        logits: Tensor,
        products: Products,
        part: slice,
    ) -> None:
        """From the gradients by the vectors to those of the head's inputs; writes over `p`, if any, and `logits`."""
        a = by["lp"]
        r = by["lse"] - a.sum(1, keepdim=True)
        for name in self.priors:
            r = r - by[f"lu/{name}"]
            self.c[name].append(by[f"lu/{name}"])
        if found.share is not None:  # p over this rank's ids is `share` times its own softmax
            r = r * found.share
            a = torch.where(found.inside, a, 0.0)
        # Where r is lost in a's rounding a / r would overflow: there p may as well count that little.
        floor = torch.finfo(a.dtype).eps * a.abs().amax(1, keepdim=True)
        r = torch.where(r.abs() < floor, floor, r)
        ratio = torch.where(r == 0, 0.0, a / r)
        if p is None:
            assert self.passes is not None
            d_logits = self.passes[1](logits, found.top, found.log_top, found.index, ratio)
        else:
            d_logits = p.scatter_add_(1, found.index, ratio)
        products.add(part, d_logits, r, logits)

    def finish(self, products: Products) -> None:
        """The rank-one parts, and the other ranks' share of the gradient by the hidden states."""
        if self.wanted:
            for name, prior in self.priors.items():
                products.add_rank_one(prior, self.mean_weights[name], torch.cat(self.c[name]))
        if products.d_hidden is not None:
            products.d_hidden = _sum(products.d_hidden, self.shard)


@dataclass(frozen=True)
class _Found:
    """What the logits of a chunk and their softmax say of its targets.

    With the largest logit x_top and its p_top, lse = x_top - log p_top and lp = (x_t - x_top) + log p_top. Neither
    cancels when all logits are large, as x_t - lse does, nor underflows, as log p_t does.
    """

    lp: Tensor
    """(C, K)."""
    top: Tensor
    """(C, 1): x_top."""
    log_top: Tensor
    """(C, 1): log p_top."""
    correct: Tensor
    """bool (C,)."""
    index: Tensor
    """int64 (C, K): the targets' columns in this rank's logits."""
    inside: Tensor
    """bool (C, K): whether the target is this rank's."""
    share: Tensor | None = None
    """(C, 1): the mass of this rank's ids, when there are other ranks."""

    @property
    def lse(self) -> Tensor:
        """(C, 1)."""
        return self.top - self.log_top

    @classmethod
    def compiled(cls, top: Tensor, log_top: Tensor, x: Tensor, guess: Tensor, rows: Rows) -> "_Found":
        correct = guess == rows.targets[:, 0]
        return cls((x - top) + log_top, top, log_top, correct, rows.targets, rows.valid)

    @classmethod
    def whole(cls, logits: Tensor, p: Tensor, top: Tensor, rows: Rows) -> "_Found":
        log_top = p.amax(1, keepdim=True).log()
        x = logits.gather(1, rows.targets).to(p.dtype)
        correct = first_of_the_best(logits, x[:, :1] >= top, rows.targets[:, :1])
        return cls((x - top) + log_top, top, log_top, correct, rows.targets, rows.valid)

    @classmethod
    def split(cls, logits: Tensor, p: Tensor, own: Tensor, rows: Rows, shard: Shard) -> "_Found":
        """The same of a vocabulary split over ranks; `logits`, `p` and `own` are of this rank's ids."""
        place = logits.argmax(1, keepdim=True)
        nothing_here = own == -torch.inf  # every id of this rank is banned: padding of the vocabulary
        p.masked_fill_(nothing_here, 0.0)
        own_lse = torch.where(nothing_here, own, own - p.amax(1, keepdim=True).log())
        top = shard.max(own.clone())
        log_top = -shard.sum((own_lse - top).exp()).log()  # top - lse
        inside = (rows.targets >= shard.start) & (rows.targets < shard.start + logits.shape[1])
        index = torch.where(inside, rows.targets - shard.start, 0)
        lp = shard.sum(torch.where(inside, (logits.gather(1, index).to(p.dtype) - top) + log_top, 0.0))
        # The first of equals, as argmax over the whole vocabulary has it: the smallest id, by a maximum.
        nothing = torch.iinfo(torch.int64).min
        first = -shard.max(torch.where(own >= top, -(place + shard.start), nothing))
        share = ((own_lse - top) + log_top).exp()
        return cls(lp, top, log_top, (first == rows.targets[:, :1]).squeeze(1), index, inside, share)


def _sum(values: Tensor, shard: Shard | None) -> Tensor:
    return values if shard is None else shard.sum(values)
