"""Which documents are used, on which side of the split, and the rows they make. All of it is derived from a store.

Cleaning and the split are masks over documents: changing one of them costs a new plan, not a new tokenization. A plan
is a pure function of (store, split, pack, context, clean).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from ..cleaning import contamination
from ..cleaning.choose import choose_documents
from ..config import CleanConfig, FimConfig, PackConfig, SplitConfig
from ..errors import DataError
from ..store import Store, from_file, to_bytes
from . import fim
from .order import Order, row_shares
from .pack import Spans, pack
from .split import Documents, Part, split_documents

PLAN_FORMAT = 2
VAL_MODE = "bfd"
"""How held-out rows are packed, whatever the training rows are: losses under other packers cannot be compared."""


@dataclass(frozen=True)
class RowPlan:
    """The rows of one side. Row r holds pieces `row_ptr[r] : row_ptr[r + 1]`, in that order, of one source."""

    shard: np.ndarray
    """int32 (pieces,): index of the shard in the store."""
    start: np.ndarray
    """int64 (pieces,): first input in the shard."""
    length: np.ndarray
    """int32 (pieces,): pairs (input, target) of the shard."""
    valid: np.ndarray
    """int32 (pieces,): targets to be learned: those that the shard's mask does not leave out, and fim.EXTRA more in a
    piece to be filled in."""
    fim: np.ndarray
    """int8 (pieces,): fim.PSM, fim.SPM, or 0 for a piece as it stands."""
    weight: np.ndarray
    """float32 (pieces,): weight in the loss."""
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
        return _row_sums(self, self.valid)

    @property
    def size(self) -> np.ndarray:
        """Positions that each piece takes, int64 (pieces,)."""
        return self.length + fim.EXTRA * (self.fim > 0).astype(np.int64)

    @property
    def targets(self) -> int:
        """Valid targets in all."""
        return int(self.valid.sum(dtype=np.int64))

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
        """Share of positions in no piece."""
        return 1 - int(self.size.sum()) / (self.rows * self.context) if self.rows else 0.0

    @property
    def weighted(self) -> bool:
        """Whether some piece has another weight than 1."""
        return bool((self.weight != 1).any())


_SPAN = ("shard", "start", "length")
_ARRAYS = tuple(field.name for field in fields(RowPlan) if field.type in (np.ndarray, "np.ndarray"))


@dataclass(frozen=True)
class Plan:
    """Both sides of a split, and what became of every document."""

    train: RowPlan
    val: RowPlan
    val_spans: Spans
    """The held-out documents (or tails), in store order, before packing."""
    facts: dict[str, Any]
    """`dropped` {source: {reason: documents}}, `documents` and `bytes` {side: {source: number}}, and `lost` {source:
    pairs of its training documents that packing left out}."""

    def to_bytes(self) -> bytes:
        """Content of a plan file."""
        arrays = {f"{side}_{name}": getattr(getattr(self, side), name) for side in ("train", "val") for name in _ARRAYS}
        arrays |= {f"val_spans_{name}": getattr(self.val_spans, name) for name in _SPAN}
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
        spans = Spans(*(arrays[f"val_spans_{name}"] for name in _SPAN))
        return cls(sides[0], sides[1], spans, meta["facts"])

    @property
    def digest(self) -> str:
        """Of all that decides a row's content, hexadecimal."""
        digest = hashlib.sha256(f"{self.train.context} {self.train.names}".encode())
        for side in (self.train, self.val):
            for name in _ARRAYS:
                digest.update(getattr(side, name).tobytes())
        return digest.hexdigest()


def plan_id(manifest: dict[str, Any], split: SplitConfig, pack: PackConfig, context: int, clean: CleanConfig) -> str:
    """Names a plan by all that decides it; what the model sees of a row (document_mask) is not part of it."""
    splitting = None if split.sources else [split.val, split.by]
    packing = [pack.mode, pack.fim and asdict(pack.fim), context]
    evaluation = contamination.digest(clean.decontaminate)
    how = [PLAN_FORMAT, manifest, splitting, packing, asdict(clean), evaluation]
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:12]


def make_plan(
    store: Store, names: Sequence[str], split: SplitConfig, pack: PackConfig, context: int, clean: CleanConfig
) -> Plan:
    """Choose, split and pack. Raises DataError when a side would be empty, and for what `pack.fim` lacks."""
    documents = Documents.gather(store, names)
    train, val, dropped = choose_sides(documents, store, split, clean)
    kinds = None if pack.fim is None else fim_kinds(documents, train, store, pack.fim, context)
    rows = make_rows(train.spans, train.source, tuple(names), pack.mode, context, kinds)
    held_out = make_rows(val.spans, val.source, tuple(names), VAL_MODE, context)
    lost = _pairs(names, train.source, train.spans.length) - _pairs(names, rows.source, _row_sums(rows, rows.length))
    facts = {
        "dropped": dropped,
        "documents": {"train": train.count(names), "val": val.count(names)},
        "bytes": {"train": train.bytes_by(names), "val": val.bytes_by(names)},
        "lost": dict(lost),
    }
    return Plan(from_store(rows, store), from_store(held_out, store), val.spans, facts)


def choose_sides(
    documents: Documents, store: Store, split: SplitConfig, clean: CleanConfig
) -> tuple[Part, Part, dict[str, dict[str, int]]]:
    """(train, val, {source: {reason: documents left out}}). Raises DataError when a side would be empty."""
    chosen, dropped = choose_documents(documents, store, clean)
    if not chosen.any() and any("no target" in reasons for reasons in dropped.values()):
        raise DataError("data.sources: no document has a target; `train_on` must name roles that say something")
    train, val = split_documents(documents, chosen, store, split)
    return train, val, dropped


def fim_kinds(documents: Documents, part: Part, store: Store, config: FimConfig, context: int) -> np.ndarray:
    """How each document of a part is filled in, int8: fim.PSM, fim.SPM or 0. Conversations never are.

    Raises DataError when the tokenizer, the rows or the sources do not allow it.
    """
    fim.special_ids(store.tokenizer)
    if context <= fim.EXTRA:
        raise DataError(f"data.pack.fim: rows of {context} have no room for it; it takes at least {fim.EXTRA + 1}")
    unknown = set(config.sources) - set(documents.names)
    if unknown:
        known = ", ".join(documents.names)
        raise DataError(f"data.pack.fim.sources: no source is called {', '.join(sorted(unknown))}; there are {known}")
    wanted = [number for number, name in enumerate(documents.names) if name in (config.sources or documents.names)]
    spans = part.spans
    whole = store.count_targets(spans.shard, spans.start, spans.length) == spans.length
    kinds = fim.choose(documents.hash[part.document], config)
    return np.where(whole & np.isin(part.source, wanted), kinds, 0).astype(np.int8)


def make_rows(
    spans: Spans,
    source: np.ndarray,
    names: tuple[str, ...],
    mode: str,
    context: int,
    kinds: np.ndarray | None = None,
) -> RowPlan:
    """Pack the spans of each source on its own, sources in order: a row never mixes sources.

    `kinds` as from `fim_kinds`. All targets are valid and all weights 1.
    """
    kinds = np.zeros(len(source), np.int8) if kinds is None else kinds
    parts, piece_kinds = [Spans(*(np.zeros(0, np.int64) for _ in range(3)))], [np.zeros(0, np.int8)]
    row_numbers, row_source, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int16)], 0
    for number in range(len(names)):
        own = np.flatnonzero(source == number)
        if not len(own):
            continue
        packed = pack(spans.take(own), mode, context, fim.EXTRA * (kinds[own] > 0).astype(np.int64))
        parts.append(packed.pieces)
        piece_kinds.append(kinds[own][packed.span])
        row_numbers.append(packed.row + rows)
        row_source.append(np.full(int(packed.row[-1]) + 1, number, np.int16))
        rows += int(packed.row[-1]) + 1
    shard, start, length = (np.concatenate([getattr(part, name) for part in parts]) for name in _SPAN)
    kind = np.concatenate(piece_kinds)
    return RowPlan(
        shard=shard.astype(np.int32),
        start=start.astype(np.int64),
        length=length.astype(np.int32),
        valid=(length + fim.EXTRA * (kind > 0)).astype(np.int32),
        fim=kind,
        weight=np.ones(len(length), np.float32),
        row_ptr=np.cumsum([0, *np.bincount(np.concatenate(row_numbers), minlength=rows)], dtype=np.int64),
        source=np.concatenate(row_source),
        context=context,
        names=names,
    )


def from_store(plan: RowPlan, store: Store) -> RowPlan:
    """The rows with what the store says of targets and weights."""
    valid = store.count_targets(plan.shard, plan.start, plan.length) + plan.size - plan.length
    weight = plan.weight
    if store.weights is not None:
        weight = store.weights[store.documents_at(plan.shard, plan.start)]
    return replace(plan, valid=valid.astype(np.int32), weight=weight)


def _row_sums(plan: RowPlan, values: np.ndarray) -> np.ndarray:
    """Sums over the pieces of each row, int64 (rows,)."""
    return np.diff(np.concatenate([[0], np.cumsum(values, dtype=np.int64)])[plan.row_ptr])


def _pairs(names: Sequence[str], source: np.ndarray, counts: np.ndarray) -> Counter[str]:
    totals = np.bincount(source, counts, len(names)).tolist()
    return Counter({name: int(total) for name, total in zip(names, totals, strict=True)})
