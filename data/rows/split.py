"""Holding documents out: masks and cuts over the documents of a store that are used, see `data.clean`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config import SplitConfig
from ..errors import DataError
from ..store import Store
from .pack import Spans


@dataclass(frozen=True)
class Documents:
    """The documents of a store, in store order, one array entry each. A span covers all pairs of its document."""

    spans: Spans
    source: np.ndarray
    """int16: index into the source names."""
    held_out: np.ndarray
    """bool: from a source of `split.sources`."""
    nbytes: np.ndarray
    hash: np.ndarray
    """uint64 (documents, 2)."""
    flags: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def gather(cls, store: Store, names: Sequence[str]) -> "Documents":
        """All documents of a store."""
        offsets = store.column("offsets")
        counts = [len(part) - 1 for part in offsets]
        empty = np.zeros(0, np.int64)
        spans = Spans(
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate([empty, *(part[:-1] for part in offsets)]),
            np.concatenate([empty, *(np.diff(part) for part in offsets)]),
        )
        sources = np.array([names.index(shard.source) for shard in store.shards], np.int16)
        return cls(
            spans,
            np.repeat(sources, counts),
            np.repeat(np.array([shard.side == "val" for shard in store.shards], bool), counts),
            np.concatenate([empty, *store.column("nbytes")]),
            np.concatenate([np.zeros((0, 2), np.uint64), *store.column("hash")]),
            np.concatenate([np.zeros(0, np.uint16), *store.column("flags")]),
            tuple(names),
        )


@dataclass(frozen=True)
class Part:
    """One side of a split."""

    document: np.ndarray
    """int64: index of the document in the store."""
    spans: Spans
    source: np.ndarray
    nbytes: np.ndarray

    def count(self, names: Sequence[str]) -> dict[str, int]:
        """Documents of each source that has any."""
        return self._by(names, np.ones(len(self.source), np.int64))

    def bytes_by(self, names: Sequence[str]) -> dict[str, int]:
        """Bytes of each source that has any documents."""
        return self._by(names, self.nbytes)

    def _by(self, names: Sequence[str], values: np.ndarray) -> dict[str, int]:
        present = np.unique(self.source).tolist()
        return {names[number]: int(values[self.source == number].sum()) for number in present}


def split_documents(documents: Documents, chosen: np.ndarray, store: Store, config: SplitConfig) -> tuple[Part, Part]:
    """(train, val) of the chosen documents. Raises DataError, saying what would work, when one would be empty."""
    if not chosen.any():
        raise DataError("data.sources: no document is left: all are empty, not UTF-8 or left out by data.clean")
    if config.sources:
        train, val = _sides(documents, chosen, documents.held_out)
    elif config.by == "hash":
        train, val = _sides(documents, chosen, _position(documents.hash) < config.val)
    else:
        train, val = _cut_tails(documents, chosen, store, config.val)
    if not len(val.source):
        raise DataError(_advice(documents, chosen, store, config))
    if not len(train.source):
        where = "data.split.sources holds" if config.sources else f"data.split.val = {config.val} holds"
        raise DataError(f"{where} out all {int(chosen.sum())} documents and leaves none to train on")
    return train, val


def _position(hashes: np.ndarray) -> np.ndarray:
    """A number in [0, 1) for each text, the same wherever and beside whatever it is found."""
    return (hashes[:, 0] >> np.uint64(11)).astype(np.float64) / (1 << 53)


def _sides(documents: Documents, chosen: np.ndarray, held_out: np.ndarray) -> tuple[Part, Part]:
    def part(mask: np.ndarray) -> Part:
        index = np.flatnonzero(mask)
        return Part(index, documents.spans.take(index), documents.source[index], documents.nbytes[index])

    return part(chosen & ~held_out), part(chosen & held_out)


def _cut_tails(documents: Documents, chosen: np.ndarray, store: Store, fraction: float) -> tuple[Part, Part]:
    """The last part of each document is held out. Its first input is the last token before the cut."""
    index = np.flatnonzero(chosen)
    spans, source = documents.spans.take(index), documents.source[index]
    cuts = [_cut(ids, store, fraction) for ids in _token_arrays(spans, store)]
    tokens = np.array([tokens for tokens, _ in cuts], np.int64)
    head_bytes = np.array([nbytes for _, nbytes in cuts], np.int64)
    whole = tokens == spans.length - 1  # nothing held out: the document keeps its final E
    head = Spans(spans.shard, spans.start, np.where(whole, spans.length, tokens))
    tail = Spans(spans.shard, spans.start + tokens, spans.length - tokens).take(~whole)
    rest = documents.nbytes[index] - head_bytes
    return Part(index, head, source, head_bytes), Part(index[~whole], tail, source[~whole], rest[~whole])


def _token_arrays(spans: Spans, store: Store) -> list[np.ndarray]:
    """The ids of each document, without E."""
    return [
        store.tokens(shard)[start + 1 : start + length]
        for shard, start, length in zip(spans.shard.tolist(), spans.start.tolist(), spans.length.tolist(), strict=True)
    ]


def _cut(ids: np.ndarray, store: Store, fraction: float) -> tuple[int, int]:
    """(tokens, bytes) of what stays before the tail: about `1 - fraction` of the bytes, at least one token.

    The cut is never inside a character, and at a line's end when one lies in the first quarter of the tail.
    """
    pieces = store.tokenizer.pieces
    ends = np.cumsum(store.tokenizer.token_bytes[ids], dtype=np.int64)
    cut = max(1, int(np.searchsorted(ends, ends[-1] * (1 - fraction))) + 1)
    near = range(cut, cut + max(1, (len(ids) - cut) // 4))
    lines = (at for at in near if at < len(ids) and pieces[ids[at - 1]].endswith(b"\n"))
    # a special, whose piece is empty, begins a character too
    characters = (at for at in range(cut, len(ids)) if not b"\x80" <= pieces[ids[at]][:1] < b"\xc0")
    at = next(lines, next(characters, len(ids)))
    return at, int(ends[at - 1])


def _advice(documents: Documents, chosen: np.ndarray, store: Store, config: SplitConfig) -> str:
    """What to write instead when nothing is held out."""
    if config.sources:
        return "data.split.sources: no document is left to validate on: all are empty or left out by data.clean"
    start = f"data.split.val = {config.val} holds out none of {int(chosen.sum())} documents; "
    index = np.flatnonzero(chosen)
    if config.by == "hash":
        positions = np.sort(_position(documents.hash[index]))
        for digits in range(1, 17):
            value = _round_up(float(positions[0]), digits)
            if positions[0] < value <= positions[-1]:
                return start + f"data.split.val = {value} would hold out {int((positions < value).sum())}"
        return start + "data.split.by: tail would hold out its end"
    longest = _token_arrays(documents.spans.take(index[np.argmax(documents.nbytes[index])][None]), store)[0]
    value = _round_up(config.val, 1)
    while value < 1 and _cut(longest, store, value)[0] >= len(longest):
        value = _round_up(value * 1.2, 2)
    if value < 1:
        return start + f"data.split.val = {value} would hold out the end of the longest"
    return start + "the corpus is too small to hold anything out"


def _round_up(value: float, digits: int) -> float:
    """The next larger number of so many significant decimal digits."""
    exponent = int(np.floor(np.log10(max(value, 1e-300)))) - digits + 1
    return float(f"{int(np.floor(value / 10.0**exponent)) + 1}e{exponent}")
