"""What `auto` comes to on this machine: precision, the kernel of attention, compiled blocks.

A rule chooses, by the device and the shape. On a CPU, which comes in more kinds than any rule knows, a short trial of
the other choice follows. It is taken where it is clearly faster, never on a narrow lead: two equal runs are to compute
equal numbers, so noise must not choose. What a run has chosen it keeps, in every checkpoint.
"""

import math
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from configs import RunConfig
from model import Transformer, attend, compiler_fails, float8_fails, tiles_fail, use_float8
from trainer.distributed import Ranks
from trainer.precision import DTYPES, Name, resolve

Choice = TypeVar("Choice", bound=str)
CLEARLY = 2.5
"""Times as fast as the rule's choice that another has to be: more than the 1.8 of products over the flash kernel where
the rule changes, at 1,024 keys, so that shapes around it are not decided by noise."""
TURNS = 3
"""Of each choice, in turns; the fastest counts, as a disturbance only ever makes one slower."""
ROWS_TRIED, KEYS_TRIED = 512, 1024
"""Of a matrix product, and of attention: enough to tell, in some milliseconds."""
LEAST_TRIED = 128
"""Width of a model, and keys, below which the rule holds: there a trial times calls more than what they compute."""


def pick_precision(config: RunConfig, ranks: Ranks, device: torch.device, decided: dict[str, Any]) -> Name:
    """The configured precision; for `auto` the one `decided` by an earlier start, or by rule and trial.

    The trial is a product of the model's width, from fp32 weights as in training.
    """
    wanted, model = config.train.precision, config.model
    if wanted == "auto" and "precision" in decided:
        return decided["precision"]
    rule = resolve(wanted, device)
    if wanted != "auto" or device.type != "cpu" or config.run.deterministic or model.dim < LEAST_TRIED:
        return rule
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS_TRIED, model.dim, generator=generator)
    weight = torch.randn(model.ffn_dim, model.dim, generator=generator)

    def multiply(name: Name) -> None:
        x.to(DTYPES[name]) @ weight.to(DTYPES[name]).t()

    return ranks.share(clearly_faster("train.precision", rule, "fp32" if rule == "bf16" else "bf16", multiply))


def pick_attention(
    config: RunConfig, model: Transformer, ranks: Ranks, device: torch.device, precision: Name, decided: dict[str, Any]
) -> str | None:
    """Have a CPU compute attention in bf16 by `products` or by torch's `flash` kernel; None where torch chooses.

    What is `decided` holds; else the rule of `model.attend` and a trial of both, forward and backward.
    """
    if device.type != "cpu" or precision != "bf16":
        return None
    rule, other = ("products", "flash") if config.model.context <= model.products else ("flash", "products")
    chosen = decided.get("attention", rule)
    if "attention" not in decided and not config.run.deterministic and config.model.context >= LEAST_TRIED:
        keys, shape = min(config.model.context, KEYS_TRIED), config.model
        generator = torch.Generator().manual_seed(0)
        q, k, v = (
            torch.randn(1, heads, keys, shape.head_dim, generator=generator).bfloat16().requires_grad_()
            for heads in (shape.heads, shape.num_kv_heads, shape.num_kv_heads)
        )

        def learn(name: str) -> None:
            y = attend(q, k, v, None, 0.0, keys if name == "products" else 0)
            torch.autograd.grad(y.sum(), (q, k, v))  # of a scalar: gradients given by hand import sympy

        chosen = ranks.share(clearly_faster("attention", rule, other, learn))
    if chosen != rule:
        model.products = config.model.context if chosen == "products" else 0
    return chosen


def clearly_faster(what: str, rule: Choice, other: Choice, act: Callable[[Choice], None]) -> Choice:
    """`rule`, unless `act` takes clearly less time with the `other`; then that is said."""
    least = {rule: math.inf, other: math.inf}
    for _ in range(TURNS):
        for name in least:
            start = time.perf_counter()
            act(name)
            least[name] = min(least[name], time.perf_counter() - start)
    if least[other] * CLEARLY >= least[rule]:
        return rule
    print(f"{what}: {other}, which is {least[rule] / least[other]:.1f} times as fast as {rule} here", file=sys.stderr)
    return other


def set_up_blocks(
    config: RunConfig, model: Transformer, ranks: Ranks, device: torch.device, precision: Name, decided: dict[str, Any]
) -> bool:
    """Recomputation, float8, attention and, last, the compiler, before several ranks share the blocks.

    Returns whether they are compiled. What `auto` would like and one rank's machine cannot do is left out on all, so
    that all compute alike, with a warning. What `decided` tells holds: FlexAttention, whose trial takes a GPU some
    seconds, is not tried again. Raises ValueError, on every rank, for float8 that cannot be had.
    """
    train = config.train
    model.recompute = train.activation_checkpointing

    def anywhere(reason: str | None) -> str | None:
        return next((told for told in ranks.each(reason) if told is not None), None)

    def works(what: str, instead: str, reason: str | None) -> bool:
        reason = anywhere(reason)
        if reason is not None and ranks.rank == 0:
            print(f"warning: {what} does not work on {device.type}, {instead}: {reason}", file=sys.stderr)
        return reason is None

    if train.fp8:
        reason = anywhere(float8_fails(device) or float8_misfits(config, precision))
        if reason or not use_float8(model.blocks):
            raise ValueError(f"train.fp8: {reason or 'no matrix in the blocks has widths that 16 divides'}")
    compiled = train.compile is True
    if train.compile == "auto" and device.type == "cuda" and decided.get("compile", True):
        compiled = works("torch.compile", "blocks run eagerly", compiler_fails(device))
    if compiled and device.type == "cuda" and config.data.pack.document_mask:
        known = decided.get("attention")
        model.tiles = known == "flex" if known else works(
            "FlexAttention", "a dense mask keeps documents apart", tiles_fail(config.model, device, DTYPES[precision])
        )  # fmt: skip
    if compiled:
        from torch._dynamo import config as dynamo  # takes a second to import

        dynamo.optimize_ddp = False  # it cuts models that are compiled whole at DDP's buckets, and would cut each block
        for block in model.blocks:
            block.compile(dynamic=False)
    return compiled


def float8_misfits(config: RunConfig, precision: str) -> str | None:
    """Why a run is not one for float8, in one line."""
    if precision != "bf16":
        return f"it needs train.precision bf16, not {precision}"
    return "it needs a model.context that 16 divides" if config.model.context % 16 else None
