"""GELU for blocks that are compiled for a CPU: one operator, which the compiler calls and does not look into."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("thimble::gelu", mutates_args=())
def whole_gelu(x: Tensor, approximate: str) -> Tensor:
    """`F.gelu` of any shape, and its gradient.

    Fused into loops, erf would be computed four times: forward, again for the gradient of the next weight, in the
    gradient itself, and again where that is summed for a bias. That takes 1.6 times as long as torch's two kernels.
    """
    return F.gelu(x, approximate=approximate)


@torch.library.custom_op("thimble::gelu_backward", mutates_args=())
def whole_gelu_backward(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x, approximate=approximate)


@whole_gelu.register_fake
def _(x: Tensor, approximate: str) -> Tensor:
    return F.gelu(x, approximate=approximate)


@whole_gelu_backward.register_fake
def _(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x, approximate=approximate)


def _keep(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    x, ctx.approximate = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return whole_gelu_backward(grad, *ctx.saved_tensors, ctx.approximate), None


whole_gelu.register_autograd(_backward, setup_context=_keep)
