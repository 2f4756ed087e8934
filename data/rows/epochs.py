"""How often a run goes through each source, and what would keep it within `data.max_epochs`."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from ..config import DataConfig
from ..errors import DataError

Used = Callable[[int], np.ndarray]
"""Rows of each source that a run of so many steps uses, (sources,)."""


def epochs_of(rows: Mapping[str, int], used: np.ndarray) -> dict[str, float]:
    """How often each source that has rows has been gone through."""
    return {name: count / n for (name, n), count in zip(rows.items(), used.tolist(), strict=True) if n}


def check_epochs(config: DataConfig, rows: Mapping[str, int], used: Used, steps: int, least: int = 0) -> None:
    """Raise DataError, a line for each source, if a run of `steps` steps goes through one more than `max_epochs` times.

    The last step may go over, since lengths round up to whole steps. `least`: steps that are done already.
    """
    limit = config.max_epochs
    if limit is None:
        return
    over = [name for name, count in epochs_of(rows, used(steps - 1)).items() if count > limit]
    after, lines = epochs_of(rows, used(steps)), []
    for name in over:

        def fits(n: int, name: str = name) -> bool:
            return epochs_of(rows, used(n - 1))[name] <= limit

        fitting = _most(fits, least, steps)
        ways = [f"train.steps of at most {fitting}"] if fitting > least else []
        if len(over) == 1:  # the others can take what it gives up
            ways += _share(config, name, limit / after[name], after[name] * rows[name] / float(used(steps).sum()))
        ways.append(f"data.max_epochs of at least {math.ceil(after[name] * 100) / 100:g}")
        times = f"source {name!r} would be gone through {after[name]:.2f} times, more than {limit:g}"
        lines.append(f"data.max_epochs: {times}; what would fit: {', '.join(ways)}")
    if lines:
        raise DataError("\n".join(lines))


def _most(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from `low` up that fits, below `high`, which does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _share(config: DataConfig, name: str, factor: float, part: float) -> list[str]:
    """The share in `data.mixture` with which a source's part of the rows would shrink by `factor`.

    With the others' shares in fixed proportion, odds of rows are odds of targets times a constant.
    """
    if len(config.sources) < 2:
        return []
    if config.phases or not config.mixture:
        return ["a smaller share in data.mixture" + (" or data.phases" if config.phases else "")]
    weight = config.mixture[name] / sum(config.mixture.values())
    odds = weight / (1 - weight) * (factor * part / (1 - factor * part)) / (part / (1 - part))
    share = odds / (1 + odds)
    digits = 2 - math.floor(math.log10(share))
    return [f"a share in data.mixture of at most {math.floor(share * 10**digits) / 10**digits:.3g}"]
