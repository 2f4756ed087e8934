"""The order of training rows that a config asks for: its mixture, its phases, and a curriculum of easy rows first."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..cleaning.choose import statistic
from ..config import STATISTICS, CurriculumConfig, DataConfig
from ..errors import DataError
from ..store import Store
from .order import BUCKETS, FIRST, Curriculum, Order, row_shares

if TYPE_CHECKING:
    from ..prepared import Prepared

Starts = dict[str, list[int]]
"""The rows of the order at which `phases` start and `openings` of the curriculum happen, ascending; only those that
there are."""


def starts_of(
    config: DataConfig,
    row_of: Callable[[int | float | str], int],
    reached: int = 0,
    recorded: Mapping[str, Sequence[int]] | None = None,
) -> Starts:
    """Where phases start and buckets open in a run whose lengths come to `row_of` rows.

    With competence c(k), the part of a source's rows, easiest first, that may be drawn as sample k, the openings are
    c(k) = (FIRST + floor((BUCKETS - FIRST) k / K)) / BUCKETS for K = rows in `over`: a staircase below the linear
    competence of Platanios et al. (2019, arXiv:1903.09848, equation 6).

    A run that has `reached` some row keeps what has been `recorded` before it; the rest follows from `row_of`, but
    does not start before `reached`. So another length of the run changes nothing that has been seen.
    """
    wanted: Starts = {}
    if config.phases:
        wanted["phases"] = [row_of(phase.at) for phase in config.phases]
    if config.curriculum:
        over, count = row_of(config.curriculum.over), BUCKETS - FIRST
        wanted["openings"] = [over * i // count for i in range(1, count + 1)]
    found: Starts = {}
    for kind, rows in wanted.items():
        kept = [row for row in (recorded or {}).get(kind, ()) if row < reached][: len(rows)]
        later = [max(reached, row) for row in rows[len(kept) :]]
        found[kind] = np.maximum.accumulate([*kept, *later]).tolist()
    return found


def order_of(prepared: "Prepared", starts: Starts, seed: int) -> Order:
    """The order of a prepared corpus's training rows; `starts` as `starts_of` finds them.

    Raises DataError for a share that cannot be kept, and for a curriculum by what the documents do not have.
    """
    plan, config = prepared.train, prepared.config
    rows, curriculum = plan.rows_by_source, None
    if config.curriculum:
        first = np.cumsum([0, *rows.values()])[:-1]
        easiest = np.lexsort((difficulty(prepared, config.curriculum), plan.source))
        curriculum = Curriculum(easiest - np.repeat(first, list(rows.values())), starts["openings"])
    return plain_order(config, rows, plan.targets_by_source, starts, seed, curriculum)


def plain_order(
    config: DataConfig,
    rows: Mapping[str, int],
    targets: Mapping[str, int],
    starts: Starts,
    seed: int,
    curriculum: Curriculum | None = None,
) -> Order:
    """The same from the rows of each source and their targets; `order.used` does not depend on a curriculum."""
    later = zip(starts.get("phases", ()), config.phases, strict=True)
    phases = [(start, row_shares(phase.mixture, rows, targets)) for start, phase in later]
    return Order(rows, row_shares(config.mixture, rows, targets), seed, phases, curriculum)


def difficulty(prepared: "Prepared", config: CurriculumConfig) -> np.ndarray:
    """What makes each training row hard, float64 (rows,): the mean over its targets of their documents' values.

    Targets of documents without a value do not count; a row of nothing else is the hardest. With `descending` the
    values count negative.
    """
    plan, store = prepared.train, prepared.store
    value = document_values(store, config.by)[store.documents_at(plan.shard, plan.start)]
    value = -value if config.descending else value
    known = np.isfinite(value)
    if not known.any():
        raise DataError(f"data.curriculum.by: no training document has a value of {config.by!r}")
    row = np.repeat(np.arange(plan.rows), np.diff(plan.row_ptr))
    weight = np.where(known, plan.valid, 0)
    counts = np.bincount(row, weight, plan.rows)
    sums = np.bincount(row, weight * np.where(known, value, 0), plan.rows)
    return np.divide(sums, counts, out=np.full(plan.rows, np.inf), where=counts > 0)


def document_values(store: Store, name: str) -> np.ndarray:
    """A statistic, `tokens`, or a label that holds numbers, for each document in store order: float64, nan: none."""
    if name == "tokens":
        return np.concatenate([np.diff(part) - 1 for part in store.column("offsets")]).astype(np.float64)
    if name in STATISTICS:
        return statistic(store, name).astype(np.float64)
    if name not in store.label_names:
        labels = f"; labels: {', '.join(store.label_names)}" if store.label_names else "; these documents have no label"
        raise DataError(f"data.curriculum.by: there is no {name!r}; there are tokens, {', '.join(STATISTICS)}{labels}")
    codes, values = store.label(name)
    return np.array([*(_number(name, value) for value in values), np.nan])[codes]  # the last entry is for -1


def _number(label: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise DataError(f"data.curriculum.by: the label {label!r} holds {value[:40]!r}, which is not a number")
    return number
