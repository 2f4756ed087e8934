"""Products of block matrices in float8, for GPUs whose tensor cores take twice as much of it as of bf16.

Every tensor is scaled by its own largest entry, anew in each product ("dynamic, tensorwise"): values of the forward
pass as e4m3 (3 bits of mantissa, up to 448), gradients as e5m2 (2 bits, up to 57344), sums in fp32 (Micikevicius et
al. 2022, arXiv:2209.05433). Weights and gradients stay what they are outside of the product.

By `torch._scaled_mm`, as torchao does it: `torch.nn.functional.scaled_mm` is not traced by the compiler of torch 2.11.

M tokens, I and O widths of a layer's input and output.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""Of the lengths that the kernels take."""


class Float8Linear(nn.Linear):
    """A linear layer that multiplies in float8 wherever autocast is on, and is an ordinary one elsewhere.

    The backward pass needs a number of tokens that `MULTIPLE` divides.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(x)
        x = x.to(torch.get_autocast_dtype(device))
        y = _Linear.apply(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


def use_float8(blocks: Iterable[nn.Module]) -> int:
    """Replace the linear layers inside `blocks` whose widths the kernels take, and say how many; parameters stay."""
    replaced = 0
    for block in blocks:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                widths = (layer.in_features, layer.out_features) if type(layer) is nn.Linear else (1,)
                if not any(width % MULTIPLE for width in widths):
                    setattr(parent, name, _replacement(layer))  # type: ignore[arg-type]
                    replaced += 1
    return replaced


def _replacement(layer: nn.Linear) -> Float8Linear:
    new = Float8Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    new.weight, new.bias = layer.weight, layer.bias
    return new


class _Linear(torch.autograd.Function):
    """x W^T for x (M, I) and W (O, I), and its two gradients, each a product in float8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(_scaled(x, VALUES), _scaled(weight, VALUES), x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (small, back), (w, w_back), (v, v_back) = _scaled(grad, GRADIENTS), _scaled(weight, VALUES), _scaled(x, VALUES)
        by_input = _product((small, back), (w.t().contiguous(), w_back), x.dtype, fast=False)
        by_weight = _product((small.t().contiguous(), back), (v.t().contiguous(), v_back), x.dtype, fast=False)
        return by_input, by_weight.to(weight.dtype)


def _scaled(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in a float8 `dtype` that it fills, and the fp32 scalar that takes it back. NaN stays NaN, infinity becomes it.

    The division is in fp32: a compiled graph, which fuses it, rounds like an eager one.
    """
    top = torch.finfo(dtype).max
    back = x.abs().amax().float().clamp_min(1e-12) / top
    return (x.float() / back).clamp(-top, top).to(dtype), back  # before torch 2.12 a cast did not saturate


def _product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype, *, fast: bool) -> Tensor:
    """a b^T of (m, k) and (n, k), each with its scale. `fast` sums on Hopper in fewer bits, which gradients are not."""
    return torch._scaled_mm(a[0], b[0].t(), a[1], b[1], out_dtype=dtype, use_fast_accum=fast)
