"""Learning-rate schedules and lengths: pure functions of the step. No torch."""

import math
import re
from fractions import Fraction

from .config import Length, OptimConfig, ScheduleConfig

_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([kMBG]?)(?:\s+tokens?)?")
LOW_MOMENTUM = 0.85
"""What a warm-up of the momentum begins with."""
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


def parse_tokens(text: int | str) -> int:
    """Tokens in `5000000`, `"5M"` or `"5M tokens"` (k, M, B). Raises ValueError otherwise."""
    if isinstance(text, int):
        return text
    if not (match := _TOKENS.fullmatch(text.strip())):
        raise ValueError(f"{text!r} is not a number of tokens such as '5M tokens' (k, M or B)")
    return math.ceil(Fraction(match[1]) * _UNITS[match[2]])


def steps_of(length: Length, total: int, batch_tokens: int) -> int:
    """Steps in a length: `0.1` of `total`, `500` steps, or `"5M tokens"`; fractions and tokens round up.

    Raises ValueError for what is none of the three.
    """
    if isinstance(length, str):
        return -(-parse_tokens(length) // batch_tokens)
    if isinstance(length, float) and not length.is_integer():
        if not 0 < length < 1:
            raise ValueError(f"{length} is neither a fraction below 1 nor a whole number of steps")
        # 0.1 * 30 is 3.0000000000000004 in binary; what was meant is decimal.
        return math.ceil(Fraction(repr(length)) * total)
    if length < 0:
        raise ValueError(f"{length} is negative")
    return int(length)


def due(step: int, every: int, total: int) -> bool:
    """Whether something that happens each `every` steps, and at the end, happens after `step` steps are done."""
    return step == total or step % every == 0


def rate_factor(step: int, total: int, config: ScheduleConfig, batch_tokens: int) -> float:
    """What to multiply a peak learning rate by in step `step` of `total`, counted from 0.

    Warm-up is linear and its first step is not zero: (step + 1) / warmup. The decay reaches `final` one step after
    the last, so that no step is spent on a rate of zero. wsd (warm-up, stable, decay: arXiv:2404.06395) falls
    linearly over the last `decay` of the run; linear and cosine (arXiv:1608.03983) fall from the end of warm-up.
    """
    warmup = steps_of(config.warmup, total, batch_tokens)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    span = max(1, total - warmup)
    if config.name == "wsd":
        span = max(1, steps_of(config.decay, total, batch_tokens))
    left = min(1.0, max(0.0, (total - step) / span))
    match config.name:
        case "constant":
            shape = 1.0
        case "cosine":
            shape = 0.5 * (1 - math.cos(math.pi * left))
        case _:
            shape = left
    return rise * (config.final + (1 - config.final) * shape)


def momentum_at(step: int, total: int, config: OptimConfig, batch_tokens: int) -> float:
    """Muon's momentum in step `step` of `total`, counted from 0: it rises linearly to its value.

    While weights still move fast an old gradient says little, so the mean is short at first.
    """
    length = steps_of(config.momentum_warmup, total, batch_tokens)
    low = min(LOW_MOMENTUM, config.momentum)
    return low + (config.momentum - low) * min(1.0, step / length) if length else config.momentum
