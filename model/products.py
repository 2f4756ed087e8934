"""Products of a few rows with weight matrices, as decoding needs them: the fastest form of each, made once.

B rows, I inputs, O outputs. A product is bound to its input and output; calling it computes it anew.

Measured on 2 cores of an EPYC (Zen 5), torch 2.13, matrices of 0.6 to 6 MB from memory: `F.linear` of one row in fp32
reads 12 GB/s, as MKL takes one thread and a slow kernel; cut into blocks of rows, as a batch of products, it reads 35,
and 47 in huge pages (`pages`). oneDNN's packed form reads 25, and still does with 8 rows, where MKL's reads 10; in bf16
`F.linear` reads 12, packed 28. int8 is at 20: of a quarter of the bytes. So with one row int8 is twice as fast as fp32
and bf16 a little faster; with 8 rows bf16 is the fastest, and int8 about as fast as fp32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .pages import Pages

Weights = Literal["fp32", "bf16", "int8"]
Product = Callable[[], object]


def product(
    parts: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    out: Tensor,
    weights: Weights,
    pages: Pages | None = None,
) -> Product:
    """A function that writes x (B, I) times the `parts` (O, I) below one another, plus their biases, to out (B, O).

    On a GPU fp32 takes weights as they are; else the function has a copy, in `pages` where that is possible. Raises
    ValueError for other `weights`, and for int8 away from the CPU.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights must be {', '.join(get_args(Weights))}, not {weights!r}")
    parts, pages = [part.detach() for part in parts], pages or Pages()
    bias = None if biases[0] is None else torch.cat([b.detach() for b in biases if b is not None])
    cpu = x.device.type == "cpu"
    if weights == "int8":
        if not cpu:
            raise ValueError(f"int8 weights are for the cpu, not {x.device.type}; bf16 works")
        return _int8(torch.cat(parts), bias, x, out, pages)
    if weights == "fp32" and not cpu:
        return _plain(parts, bias, x, out)
    if weights == "fp32" and (len(x) == 1 or x.dtype != torch.float32 or not _packs(x.dtype)):
        return _plain([pages.joined(parts)], bias, x, out)
    weight = torch.cat(parts).to(torch.bfloat16 if weights == "bf16" else x.dtype)
    return (_packed if cpu and _packs(weight.dtype) else _cast)(weight, bias, x, out)


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out weights of a dtype for its kernels: bf16 only where the CPU has what those need."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers from -127 to 127 (O, I), int8, and a scale for each row (O,), bf16: their product is nearest to weight.

    The scale is the row's largest magnitude / 127, rounded up to a bf16 number, and integers are found with the scale
    as it is stored: an entry is off by half a scale at most.
    """
    top = weight.abs().amax(1).double() / 127
    scale = top.bfloat16()
    scale = torch.where(scale.double() < top, torch.nextafter(scale, torch.tensor(torch.inf).bfloat16()), scale)
    scale = torch.where(scale == 0, 1.0, scale)
    return (weight / scale[:, None].to(weight.dtype)).round().to(torch.int8), scale


def _plain(parts: Sequence[Tensor], bias: Tensor | None, x: Tensor, out: Tensor) -> Product:
    steps: list[Product] = []
    start = 0
    for part in parts:
        place = slice(start, start := start + len(part))
        given = None if bias is None else bias[place]
        if len(x) == 1 and x.device.type == "cpu" and torch.backends.mkl.is_available():
            steps += _blocks(part, given, x[0], out[0, place])
        elif given is None:
            steps.append(partial(torch.mm, x, part.t(), out=out[:, place]))
        else:
            steps.append(partial(torch.addmm, given, x, part.t(), out=out[:, place]))
    return _in_order(steps)


def _blocks(weight: Tensor, bias: Tensor | None, x: Tensor, out: Tensor) -> list[Product]:
    """x (I,), out (O,): a batch of products with equal blocks of rows, and one with the rows that are left."""
    count = 8
    while count < torch.get_num_threads():
        count *= 2
    height = len(weight) // count
    even = count * height
    steps: list[Product] = []
    if height:
        blocks, y = weight[:even].view(count, height, -1), out[:even].view(count, height, 1)
        columns = x[None].t().expand(count, -1, 1)  # with strides (0, 1, I): with (0, 1, 1) MKL takes its slow way
        if bias is None:
            steps.append(partial(torch.bmm, blocks, columns, out=y))
        else:
            steps.append(partial(torch.baddbmm, bias[:even].view_as(y), blocks, columns, out=y))
    if even < len(weight):
        if bias is None:
            steps.append(partial(torch.mv, weight[even:], x, out=out[even:]))
        else:
            steps.append(partial(torch.addmv, bias[even:], weight[even:], x, out=out[even:]))
    return steps


def _in_order(steps: Sequence[Product]) -> Product:
    if len(steps) == 1:
        return steps[0]

    def run() -> None:
        for step in steps:
            step()

    return run


def _packed(weight: Tensor, bias: Tensor | None, x: Tensor, out: Tensor) -> Product:
    """By oneDNN, with the weight in its own layout: what torch.compile makes of a frozen layer on a CPU."""
    pack, run = torch.ops.mkldnn._reorder_linear_weight.default, torch.ops.mkldnn._linear_pointwise.default
    packed, narrow = pack(weight), x.to(weight.dtype)
    bias = None if bias is None else bias.to(weight.dtype)

    def multiply() -> None:
        if narrow is not x:
            narrow.copy_(x)
        out.copy_(run(narrow, packed, bias, "none", [], ""))

    return multiply


def _cast(weight: Tensor, bias: Tensor | None, x: Tensor, out: Tensor) -> Product:
    narrow, result = x.to(weight.dtype), out.to(weight.dtype)
    multiply = _plain([weight], None if bias is None else bias.to(weight.dtype), narrow, result)

    def run() -> None:
        narrow.copy_(x)
        multiply()
        out.copy_(result)

    return run


def _int8(weight: Tensor, bias: Tensor | None, x: Tensor, out: Tensor, pages: Pages) -> Product:
    """Integers times activations in bf16. The kernel reads 16 inputs at a time, beyond the end if need be: padded."""
    integers, scale = quantize(weight)
    width = weight.shape[1]
    wide = pages.joined([F.pad(integers, (0, -width % 64))])
    padded = x.new_zeros(len(x), wide.shape[1], dtype=torch.bfloat16)
    narrow, multiply = padded[:, :width], torch._weight_int8pack_mm

    def run() -> None:
        narrow.copy_(x)
        out.copy_(multiply(padded, wide, scale))
        if bias is not None:
            out.add_(bias)

    return run
