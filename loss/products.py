"""The three matrix products of a head, a chunk of rows at a time, and gradients that are known in advance.

n rows, D width, V vocabulary, C rows of a chunk.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .head import Head

# Bytes of a chunk's logits in fp32: on a CPU near its caches, elsewhere enough to fill the device.
_CPU_BYTES, _DEVICE_BYTES = 48 << 20, 1 << 30
# Every chunk lays out the whole weight for its product and goes once over the weight's gradient: fewer rows than
# these would spend their time there.
_MIN_ROWS, _MAX_ROWS = 256, 4096
_BLOCK = 4096  # rows of the weight's gradient that are added at once: their bf16 product stays in the cache

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function out of `torch.compile`: it takes gradients while it runs, which a graph cannot hold.

    As `torch.compiler.disable`, which starts the compiler on import.
    """

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **options)
        return function(*args, **options)

    return run


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Rows of a chunk, a power of two."""
    budget = _CPU_BYTES if device.type == "cpu" else _DEVICE_BYTES
    rows = max(1, budget // (4 * vocab_size))
    return min(max(1 << (rows.bit_length() - 1), _MIN_ROWS), _MAX_ROWS)


class Products:
    """The three matrix products of a head, in chunks, in the dtype that autocast asks for; sums are fp32 or fp64."""

    def __init__(self, hidden: Tensor, head: Head, wanted: list[bool]):
        self.hidden, self.head = hidden, head
        self.dtype = _product_dtype(hidden, head.weight)
        self.exact = torch.promote_types(self.dtype, torch.float32)
        self.left, self.right = hidden.to(self.dtype), head.weight.to(self.dtype)
        self.bias = None if head.bias is None else head.bias.to(self.dtype)
        self.wanted = wanted
        # In bf16 on a CPU the weight's gradient, the largest tensor here, is empty until its first chunk is written.
        self._empty = wanted[1] and self.dtype == torch.bfloat16 and hidden.device.type == "cpu"
        makers = torch.zeros_like, torch.empty_like if self._empty else torch.zeros_like, torch.zeros_like
        self.d_hidden, self.d_weight, self.d_bias = (
            make(t, dtype=self.exact) if wants and t is not None else None
            for make, t, wants in zip(makers, (hidden, head.weight, head.bias), wanted, strict=True)
        )
        self._buffer: Tensor | None = None

    def chunks(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the rows with their logits (C, V), without softcap; the next chunk is written over them."""
        n, v = len(self.hidden), len(self.right)
        buffer = self.right.new_empty(min(size, n), v)
        for start in range(0, max(n, 1), size):  # once when there is no row, so that sums exist
            part = slice(start, min(start + size, n))
            logits, rows = buffer[: part.stop - start], self.left[part]
            if self.bias is None:
                torch.mm(rows, self.right.t(), out=logits)
            else:
                torch.addmm(self.bias, rows, self.right.t(), out=logits)
            yield part, logits

    def add(self, part: slice, d_logits: Tensor, scale: Tensor | None, reuse: Tensor) -> None:
        """Add the gradients of a chunk whose logits have the gradient `d_logits` (C, V) times `scale` (C, 1).

        `reuse` (C, V) is of the products' dtype and may be overwritten.
        """
        if not any(self.wanted) or not len(d_logits):  # a micro-batch of padding has no targets
            return
        unit = None
        if self.dtype == torch.float16:  # small weights would vanish below its range: keep size apart from shape
            size = d_logits.abs().amax(1, keepdim=True).clamp_min(torch.finfo(self.exact).tiny)
            d_logits, scale = d_logits / size, size if scale is None else size * scale
            unit = scale.abs().amax().clamp_min(torch.finfo(self.exact).tiny)
        if self.d_bias is not None:
            by_row = self.d_bias.new_ones(len(d_logits)) if scale is None else scale.squeeze(1)
            self.d_bias.addmv_(d_logits.t().to(self.exact), by_row)
        grad = d_logits if d_logits.dtype == self.dtype else reuse.copy_(d_logits)
        if self.d_hidden is not None:
            product = torch.mm(grad, self.right)
            self.d_hidden[part] = product if scale is None else product * scale
        if self.d_weight is not None:
            rows = self.hidden[part].to(self.exact)
            rows = rows if scale is None else rows * (scale if unit is None else scale / unit)
            self._add_weight(grad, rows.to(self.dtype), unit)

    def _add_weight(self, grad: Tensor, rows: Tensor, unit: Tensor | None) -> None:
        """Add grad^T rows, times `unit` where there is one."""
        assert self.d_weight is not None
        if unit is not None:
            self.d_weight.addcmul_(torch.mm(grad.t(), rows).to(self.exact), unit)
            return
        if self.dtype == self.exact:
            self.d_weight.addmm_(grad.t(), rows)
            return
        # Rounded to bf16 a chunk is, as the whole would be; the sum over chunks is not.
        if self.d_weight.device.type == "cuda" and torch.version.hip is None:  # which adds up in fp32 as it multiplies
            torch.addmm(self.d_weight, grad.t(), rows, out_dtype=self.exact, out=self.d_weight)
            return
        if self.d_weight.device.type != "cpu":
            self.d_weight.add_(torch.mm(grad.t(), rows))
            return
        if self._buffer is None:
            self._buffer = rows.new_empty(min(_BLOCK, len(self.d_weight)), rows.shape[1])
        for start in range(0, len(self.d_weight), _BLOCK):
            block = self.d_weight[start : start + _BLOCK]
            product = torch.mm(grad[:, start : start + _BLOCK].t(), rows, out=self._buffer[: len(block)])
            block.copy_(product) if self._empty else block.add_(product)
        self._empty = False

    def add_rank_one(self, prior: Tensor, mean_weight: Tensor, c: Tensor) -> None:
        """Add the gradients of logits with the gradient c (n, 1) times `prior` (V,); `mean_weight` (D,) = W^T u."""
        if self.d_hidden is not None:
            self.d_hidden.addr_(c.squeeze(1), mean_weight)
        if self.d_weight is not None:
            self._zero_if_empty()
            self.d_weight.addr_(prior, self.hidden.to(self.exact).t().mv(c.squeeze(1)))
        if self.d_bias is not None:
            self.d_bias.add_(prior * c.sum())

    def _zero_if_empty(self) -> None:
        """For a batch without targets, of which no chunk was added."""
        if self._empty and self.d_weight is not None:
            self.d_weight.zero_()
        self._empty = False

    def gradients(self) -> list[Tensor | None]:
        self._zero_if_empty()
        return [self.d_hidden, self.d_weight, self.d_bias]


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """What `F.linear` would compute in, here and under autocast, which leaves fp64 alone."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and torch.float64 not in (hidden.dtype, weight.dtype):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(hidden.dtype, weight.dtype)


class WithGradients(torch.autograd.Function):
    """A scalar whose gradients are known: by each of three tensors, any of which may be None."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gradients = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        # Not in place: the graph may be walked again. Times 1, as in training by one process, a gradient is passed on
        # as it is, which saves a copy of the largest; to ask a GPU whether it is 1 would be to wait for it.
        same = upstream.device.type == "cpu" and bool(upstream == 1)
        with torch.no_grad():
            pairs = zip(gradients, inputs, strict=True)
            made = [g if g is None else (g if same else g * upstream).to(t.dtype) for g, t in pairs]
        if torch.is_grad_enabled():  # someone may want to differentiate again
            made = [None if gradient is None else Once.apply(gradient, upstream, *inputs) for gradient in made]
        return None, *made, None, None, None


class Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated by anything that it was made of.

    torch's `once_differentiable` refuses only where the upstream gradient depends on something, and otherwise passes
    for a constant: a penalty on the gradient would silently be wrong.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *made_of: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        raise RuntimeError("a fused loss is differentiable once; loss.fused: off can be differentiated again")
