"""The labels by which results of held-out documents are reported."""

from collections.abc import Sequence

import numpy as np

from ..errors import DataError
from ..prepared import Prepared

FEW = 20
"""A label with more values among the held-out documents is reported only when it is asked for by name."""
MOST = 200
"""Values of a label that can be reported at all."""


def held_out_labels(
    prepared: Prepared, by: Sequence[str] | None, where: str = "eval.by"
) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """Label -> (index of each store document's value, -1: none, int32; its values among the held-out documents).

    `by` names labels; None: each that the config gives to documents and that has at most FEW values, unless all
    held-out documents share one. Raises DataError, naming `where`, for an unknown label or one of over MOST values.
    """
    wanted = given_labels(prepared) if by is None else list(dict.fromkeys(by))
    if not wanted:
        return {}
    spans, store = prepared.plan.val_spans, prepared.store
    known, documents = store.label_names, store.documents_at(spans.shard, spans.start)
    found: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}
    for label in wanted:
        if label not in known:
            if by is None:
                continue
            there = f"there are {', '.join(known)}" if known else "this corpus has none"
            raise DataError(f"{where}: no document has a label {label!r}; {there}")
        codes, values = store.label(label)
        used = np.unique(codes[documents])
        some = used[used >= 0]
        if by is None and (len(some) > FEW or len(used) < 2):
            continue
        if len(some) > MOST:
            raise DataError(f"{where}: {label!r} has {len(some)} values in the held-out text; at most {MOST} fit")
        table = np.full(len(values) + 1, -1, np.int32)  # the last entry is for -1
        table[some] = np.arange(len(some))
        found[label] = table[codes], tuple(values[i] for i in some.tolist())
    return found


def given_labels(prepared: Prepared) -> list[str]:
    """The labels that the config gives to documents, in its order; not those that a kind of source has by itself."""
    config = prepared.config
    sources = [*config.sources.values(), *config.split.sources.values()]
    names = [name for source in sources for name in (*source.labels, *source.constants)]
    return list(dict.fromkeys([*names, *(["language"] if config.detect_language else [])]))
