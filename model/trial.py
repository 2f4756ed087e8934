"""Whether this machine can do what a GPU run would like to: each trial says why not in one line, or None.

B rows, T tokens of a row, H heads, K head width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attention import TILE, Mask, attend, document_mask, document_tiles
from .config import ModelConfig
from .float8 import use_float8

_LEAST_WIDTH = 16  # of a head, for FlexAttention
_TOLERANCE = 0.02  # of a norm: bf16 rounds to 0.004, and TF32 multiplies as coarsely
_FLOAT8_TOLERANCE = 0.15  # e5m2 rounds each gradient by up to an eighth


def compiler_fails(device: torch.device) -> str | None:
    """Why `torch.compile` cannot serve on a device, tried on two additions: no Triton, no C compiler, an old GPU."""

    def compile_something() -> None:
        made = torch.compile(lambda x: x + 1 + x, dynamic=False)(torch.ones(8, device=device))
        if made.tolist() != [3.0] * 8:
            raise ArithmeticError("1 + 1 + 1 is not 3 there")

    return _failure(compile_something)


def tiles_fail(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why FlexAttention cannot keep documents apart in a model that is compiled for a device.

    Where the shape allows it, it is compiled and tried on two rows of the model's heads, forward and backward; what it
    makes has to agree with the dense mask.
    """
    if config.dropout:
        return "it has no dropout"
    if config.head_dim < _LEAST_WIDTH:
        return f"heads are {config.head_dim} wide, and it takes {_LEAST_WIDTH} or more"
    return _failure(lambda: _compare(config, device, dtype))


def _compare(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raises ArithmeticError when the two ways to keep documents apart differ."""
    T = min(config.context, 2 * TILE + TILE // 2)
    generator = torch.Generator().manual_seed(0)

    def random(heads: int) -> Tensor:
        made = torch.randn(2, heads, T, config.head_dim, generator=generator)
        return made.to(device, dtype).requires_grad_()

    inputs = random(config.heads), random(config.num_kv_heads), random(config.num_kv_heads)
    positions = torch.cat((torch.arange(T // 3), torch.arange(T - T // 3))).expand(2, T).to(device)

    def results(attention: Callable[..., Tensor], mask: Mask) -> list[Tensor]:
        y = attention(*inputs, mask, 0.0)
        return [y.detach(), *torch.autograd.grad(y.float().pow(3).sum(), inputs)]

    dense = results(attend, document_mask(positions))
    tiled = results(torch.compile(attend, dynamic=False), document_tiles(positions))
    for what, ours, theirs in zip(("output", "dq", "dk", "dv"), tiled, dense, strict=True):
        error = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
        if not error < _TOLERANCE:
            raise ArithmeticError(f"its {what} differs from the dense mask's by {error:.1g} of its size")


def float8_fails(device: torch.device) -> str | None:
    """Why a device cannot multiply in float8: a GPU too old for it, or of whose products it is not true."""
    if device.type != "cuda" or torch.version.hip is not None:  # AMD's first format of that name has other exponents
        return f"it needs an NVIDIA GPU, and this is {'an AMD GPU' if device.type == 'cuda' else device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        have = f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}"
        return f"it needs compute capability 8.9 (Ada, Hopper, Blackwell), and {have}"
    return _failure(lambda: _compare_float8(device))


def _compare_float8(device: torch.device) -> None:
    """Raises ArithmeticError when a layer's output or gradients in float8 are not near those in fp32."""
    generator = torch.Generator().manual_seed(0)
    holder = nn.Sequential(nn.Linear(64, 48, bias=False)).to(device)
    weight = next(holder.parameters())
    x = torch.randn(32, 64, generator=generator).to(device).requires_grad_()
    results = []
    for low in (False, True):
        if low:
            use_float8([holder])
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            y = holder(x)
        results.append([y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, weight])])
    for what, exact, ours in zip(("output", "dx", "dw"), *results, strict=True):
        error = float((ours.float() - exact).norm() / exact.norm())
        if not error < _FLOAT8_TOLERANCE:
            raise ArithmeticError(f"its {what} differs from fp32 by {error:.1g} of its size")


def _failure(attempt: Callable[[], None]) -> str | None:
    """How `attempt` fails, in one line: a compiler raises errors of every kind."""
    try:
        attempt()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"[:200]
    return None
