"""Which documents are used, on which side of the split, and the rows they make. All of it is derived from a store.

Exact duplicates, unreadable texts and the split are masks over documents: changing one of them costs a new plan, not
a new tokenization. A plan is a pure function of (store, split, pack, context).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .config import PackConfig, SplitConfig
from .order import Order, row_shares
from .pack import Spans, cut_stream, pack_bfd, split_long
from .split import Documents, choose_documents, split_documents
from .store import Store, from_file, to_bytes

PLAN_FORMAT = 1


@dataclass(frozen=True)
class RowPlan:
    """The rows of one side. Row r holds pieces `row_ptr[r] : row_ptr[r + 1]`, in that order, of one source."""

    shard: np.ndarray
    """int32 (pieces,): index of the shard in the store."""
    start: np.ndarray
    """int64 (pieces,): first input in the shard."""
    length: np.ndarray
    """int32 (pieces,): inputs, each with a target."""
    row_ptr: np.ndarray
    """int64 (rows + 1,)."""
    source: np.ndarray
    """int16 (rows,): index into `names`; rows of one source stand together, in this order."""
    context: int
    names: tuple[str, ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.source)

    @property
    def row_targets(self) -> np.ndarray:
        """Valid targets of each row, int64 (rows,)."""
        ends = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)])
        return np.diff(ends[self.row_ptr])

    @property
    def targets(self) -> int:
        """Valid targets in all."""
        return int(self.length.sum(dtype=np.int64))

    @property
    def rows_by_source(self) -> dict[str, int]:
        """Rows of each source, every source named."""
        counts = np.bincount(self.source, minlength=len(self.names)).tolist()
        return dict(zip(self.names, counts, strict=True))

    @property
    def targets_by_source(self) -> dict[str, int]:
        """Valid targets of each source, every source named."""
        counts = np.bincount(self.source, self.row_targets, minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}

    def order(self, mixture: Mapping[str, float], seed: int) -> Order:
        """The order of these rows in which each source has its share of targets in `mixture`; empty: rows alike.

        Raises DataError for a share that cannot be kept.
        """
        return Order(self.rows_by_source, row_shares(mixture, self.rows_by_source, self.targets_by_source), seed)

    @property
    def padding(self) -> float:
        """Share of positions that hold no target."""
        return 1 - self.targets / (self.rows * self.context) if self.rows else 0.0


_ARRAYS = tuple(field.name for field in fields(RowPlan) if field.type in (np.ndarray, "np.ndarray"))


@dataclass(frozen=True)
class Plan:
    """Both sides of a split, and what became of every document."""

    train: RowPlan
    val: RowPlan
    val_spans: Spans
    """The held-out documents (or tails), in store order, before packing."""
    facts: dict[str, Any]
    """`dropped` {source: {reason: documents}}, `documents` and `bytes` {side: {source: number}}."""

    def to_bytes(self) -> bytes:
        """Content of a plan file."""
        arrays = {f"{side}_{name}": getattr(getattr(self, side), name) for side in ("train", "val") for name in _ARRAYS}
        arrays |= {f"val_spans_{name}": getattr(self.val_spans, name) for name in ("shard", "start", "length")}
        meta = {"context": self.train.context, "names": self.train.names, "facts": self.facts}
        return to_bytes(arrays | {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)})

    @classmethod
    def read(cls, path: Any) -> "Plan":
        """The plan in a file. Raises Damaged, KeyError or ValueError when there is none."""
        arrays = from_file(path)
        meta = json.loads(arrays["meta"].tobytes())
        context, names = int(meta["context"]), tuple(meta["names"])
        sides = [
            RowPlan(**{name: arrays[f"{side}_{name}"] for name in _ARRAYS}, context=context, names=names)
            for side in ("train", "val")
        ]
        spans = Spans(*(arrays[f"val_spans_{name}"] for name in ("shard", "start", "length")))
        return cls(sides[0], sides[1], spans, meta["facts"])

    @property
    def digest(self) -> str:
        """Of all that decides a row's content, hexadecimal."""
        digest = hashlib.sha256(f"{self.train.context} {self.train.names}".encode())
        for side in (self.train, self.val):
            for name in _ARRAYS:
                digest.update(getattr(side, name).tobytes())
        return digest.hexdigest()


def plan_id(manifest: dict[str, Any], split: SplitConfig, pack: PackConfig, context: int) -> str:
    """Names a plan by all that decides it; what the model sees of a row (document_mask) is not part of it."""
    how = [PLAN_FORMAT, manifest, None if split.sources else [split.val, split.by], pack.mode, context]
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:12]


def make_plan(store: Store, names: Sequence[str], split: SplitConfig, pack: PackConfig, context: int) -> Plan:
    """Choose, split and pack. Raises DataError when a side of the split would be empty."""
    documents = Documents.gather(store, names)
    chosen, dropped = choose_documents(documents)
    train, val = split_documents(documents, chosen, store, split)
    facts = {
        "dropped": dropped,
        "documents": {"train": train.count(names), "val": val.count(names)},
        "bytes": {"train": train.bytes_by(names), "val": val.bytes_by(names)},
    }
    return Plan(
        make_rows(train.spans, train.source, tuple(names), pack.mode, context),
        make_rows(val.spans, val.source, tuple(names), pack.mode, context),
        val.spans,
        facts,
    )


def make_rows(spans: Spans, source: np.ndarray, names: tuple[str, ...], mode: str, context: int) -> RowPlan:
    """Pack the spans of each source on its own, sources in order: a row never mixes sources."""
    parts: list[Spans] = []
    row_numbers, row_source, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int16)], 0
    for number in range(len(names)):
        own = spans.take(np.flatnonzero(source == number))
        if not len(own.length):
            continue
        if mode == "bfd":
            pieces = split_long(own, context)
            row = pack_bfd(pieces.length, context)
            by_row = np.argsort(row, kind="stable")  # inside a row, pieces keep the order of the store
            pieces, row = pieces.take(by_row), row[by_row]
        else:
            pieces, row = cut_stream(own, context)
        parts.append(pieces)
        row_numbers.append(row + rows)
        row_source.append(np.full(int(row[-1]) + 1, number, np.int16))
        rows += int(row[-1]) + 1
    sizes = np.bincount(np.concatenate(row_numbers), minlength=rows)
    return RowPlan(
        np.concatenate([np.zeros(0, np.int32), *(part.shard for part in parts)]).astype(np.int32),
        np.concatenate([np.zeros(0, np.int64), *(part.start for part in parts)]).astype(np.int64),
        np.concatenate([np.zeros(0, np.int32), *(part.length for part in parts)]).astype(np.int32),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate(row_source),
        context,
        names,
    )
