"""Plain cross-entropy on a GPU by Liger's kernel, where it is installed (extra `liger`) and found to be right.

It reads the logits of a chunk once and writes their gradient over them. It knows the denominator alone, neither
importance of single targets nor the plain nll of a smoothed loss, so that it serves `loss: ce` and nothing else; and it
waits for the device once a call, to count targets. Its backward pass works in place: the graph can be walked once.

torch's own `linear_cross_entropy` (2.13) is not used: it sums the loss in bf16 for bf16 inputs, ignores autocast, and
with label smoothing falls back to all logits.
"""

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .head import Head
from .measure import Measure
from .rows import IGNORE, Rows

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def serves(measure: Measure, head: Head, rows: Rows, hidden: Tensor) -> bool:
    """Whether this loss is plain cross-entropy, on a device that has the kernel, and the kernel was found right."""
    plain = [(use.part.name, use.coef) for use in measure.terms] == [("ce", 1.0)]
    plain &= not measure.weights and not measure.transforms and len(measure.ahead) == 1
    if not plain or rows.weight is not None or head.shard is not None or hidden.device.type != "cuda":
        return False
    autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    return found_right(hidden.device, hidden.dtype, head.weight.dtype, autocast, head.bias is not None, head.softcap)


def cross_entropy(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the loss over hidden (n, D) and targets (n,), differentiable, and the likeliest ids (n,).

    Raises ImportError where the kernel is not installed.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    options: dict[str, Any] = {
        "bias": head.bias, "ce_weight": None, "ignore_index": IGNORE, "lse_square_scale": 0.0, "label_smoothing": 0.0,
        "reduction": "sum", "softcap": head.softcap, "return_z_loss": False,
        "accum_dtype": torch.float32,  # its default sums the weight's gradient in bf16, chunk by chunk
        "use_token_scaling": False, "return_token_accuracy": False, "return_predicted_tokens": True,
    }  # fmt: skip
    found = LigerFusedLinearCrossEntropyFunction.apply(hidden, head.weight, targets, *options.values())
    return found[0], found[3]


def liger(hidden: Tensor, head: Head, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
    """As `fused.fused`, but that the numbers are of all rows together: each a tensor of one."""
    targets = torch.where(rows.valid[:, 0], rows.targets[:, 0], IGNORE)
    loss, guess = cross_entropy(hidden, head, targets)
    total = loss.detach().unsqueeze(0)
    correct = (guess == targets) & rows.valid[:, 0]
    return loss, {"term/ce": total, "nll": total, "tokens": rows.valid[:, 0], "correct": correct, "loss": total}


@functools.cache
def found_right(
    device: torch.device,
    hidden_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    autocast: torch.dtype | None,
    biased: bool,
    softcap: float | None,
) -> bool:
    """Whether the kernel gives plain autograd's loss, gradients and guesses on a small random batch, under these
    conditions.

    Tried once; where it is installed and does not, a warning says so.
    """
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(96, 64), (300, 64), *([(300,)] if biased else [])]
    tensors = [torch.randn(shape, generator=generator).to(device, weight_dtype) for shape in shapes]
    tensors[0] = tensors[0].to(hidden_dtype)
    targets = torch.randint(0, 300, (96,), generator=generator).to(device)
    targets[::5] = IGNORE
    try:
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in tensors]
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                loss, guess = cross_entropy(leaves[0], _head(leaves, softcap), targets)
            found = [loss, *torch.autograd.grad(loss, leaves)]
            with torch.autocast(device.type, enabled=False):
                exact = [t.detach().double().requires_grad_() for t in tensors]
                logits = _head(exact, softcap).logits(exact[0])
                truth = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
                wanted = [truth, *torch.autograd.grad(truth, exact)]
    except ImportError:
        return False
    except Exception as error:  # a kernel may fail in any way on hardware that it was not made for
        warnings.warn(f"liger-kernel is not used: {type(error).__name__}: {error}".splitlines()[0], stacklevel=2)
        return False
    errors = [float((a.double() - b).norm().detach() / b.norm().detach()) for a, b in zip(found, wanted, strict=True)]
    keep = targets != IGNORE
    missed = float((guess != logits.argmax(1))[keep].double().mean())
    if max(errors) <= _TOLERANCE.get(autocast or weight_dtype, 0.0) and missed <= 0.05:  # bf16 logits tie
        return True
    warnings.warn(f"liger-kernel is not used: its results differ by {max(errors):.1e} here", stacklevel=2)
    return False


def _head(leaves: list[Tensor], softcap: float | None) -> Head:
    return Head(leaves[1], leaves[2] if len(leaves) > 2 else None, softcap)
