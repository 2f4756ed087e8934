"""Documents into rows of T inputs: where each piece starts, how long it is, which row holds it."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spans:
    """Runs of (input, target) pairs inside one document each: `shard[i]`, inputs `start[i] : start[i] + length[i]`."""

    shard: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def take(self, index: np.ndarray) -> "Spans":
        """Some of the spans, in the order of `index` (positions or a mask)."""
        return Spans(self.shard[index], self.start[index], self.length[index])


@dataclass(frozen=True)
class Packed:
    """Pieces of spans and the rows that they make, in the order of the rows."""

    pieces: Spans
    span: np.ndarray
    """int64 (pieces,): index of the span that each piece is of."""
    row: np.ndarray
    """int64 (pieces,): ascending, from 0, without gaps."""


def pack(spans: Spans, mode: str, context: int, extra: np.ndarray | None = None) -> Packed:
    """Spans in rows of `context` positions; see PackConfig for the modes. Inside a row, pieces keep the spans' order.

    `extra` (spans,) is how many positions, below `context`, each piece of a span takes beside its pairs; None: 0.
    """
    extra = np.zeros(len(spans.length), np.int64) if extra is None else extra
    if mode == "concat":
        return cut_stream_around(spans, context, extra) if extra.any() else cut_stream(spans, context)
    if mode == "truncate":
        pieces = Spans(spans.shard, spans.start, np.minimum(spans.length, context - extra))
        span = np.arange(len(spans.length))
    else:
        pieces, span = split_long(spans, context - extra)
    if mode == "pad":
        return Packed(pieces, span, np.arange(len(span)))
    row = pack_bfd(pieces.length + extra[span], context)
    by_row = np.argsort(row, kind="stable")
    return Packed(pieces.take(by_row), span[by_row], row[by_row])


def split_long(spans: Spans, limit: np.ndarray) -> tuple[Spans, np.ndarray]:
    """Cut spans longer than their `limit` into pieces of that length and a rest; shorter ones are left alone.

    Returns (pieces, the span that each is of).
    """
    pieces = -(-spans.length // limit)
    which = np.repeat(np.arange(len(pieces)), pieces)
    first = np.cumsum(pieces) - pieces
    offset = (np.arange(len(which)) - first[which]) * limit[which]
    length = np.minimum(spans.length[which] - offset, limit[which])
    return Spans(spans.shard[which], spans.start[which] + offset, length), which


def cut_stream(spans: Spans, context: int) -> Packed:
    """Lay spans end to end and cut every `context`. Only the last row is not full."""
    ends = np.cumsum(spans.length)
    total = int(ends[-1]) if len(ends) else 0
    bounds = np.unique(np.concatenate([[0], ends, np.arange(0, total, context)]))
    begin, length = bounds[:-1], np.diff(bounds)
    which = np.searchsorted(ends, begin, side="right")
    start = spans.start[which] + begin - (ends - spans.length)[which]
    return Packed(Spans(spans.shard[which], start, length), which, begin // context)


def cut_stream_around(spans: Spans, context: int, extra: np.ndarray) -> Packed:
    """The same with `extra` positions for each piece. A row's last positions stay empty when these leave no room."""
    found: list[tuple[int, int, int, int]] = []  # span, offset in it, length, row
    row, free = 0, context
    for number, (length, more) in enumerate(zip(spans.length.tolist(), extra.tolist(), strict=True)):
        offset = 0
        while offset < length:
            if free <= more:
                row, free = row + 1, context
            some = min(length - offset, free - more)
            found.append((number, offset, some, row))
            offset, free = offset + some, free - some - more
    which, offsets, lengths, rows = np.array(found, np.int64).reshape(-1, 4).T
    return Packed(Spans(spans.shard[which], spans.start[which] + offsets, lengths), which, rows)


def pack_bfd(lengths: np.ndarray, context: int) -> np.ndarray:
    """Best-fit decreasing: the row of each piece, rows numbered from 0; every length is in [1, context].

    Pieces go in by falling length (stable), each into the fullest row that still takes it. As pieces of one length
    follow each other, a row with space s takes floor(s / length) of them in a run, and all rows with space s do the
    same: so rows are handled in groups of equal space, and the Python loop grows with the number of distinct lengths,
    not of pieces. The number of rows is that of the textbook algorithm (Ding et al., 2024, arXiv:2404.10830).
    """
    order = np.argsort(-lengths, kind="stable")
    values, first, counts = np.unique(-lengths[order], return_index=True, return_counts=True)
    row_of = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[np.ndarray]] = defaultdict(list)  # free space -> groups of rows that have it
    has_space = np.zeros(context + 1, bool)
    rows = 0

    def release(space: int, group: np.ndarray) -> None:
        if space and len(group):
            open_rows[space].append(group)
            has_space[space] = True

    for length, at, left in zip((-values).tolist(), first.tolist(), counts.tolist(), strict=True):
        while left:
            tightest = int(np.argmax(has_space[length:])) + length
            if has_space[tightest]:
                group = open_rows[tightest].pop()
                has_space[tightest] = bool(open_rows[tightest])
            else:  # no open row takes it: open as many as this length needs
                tightest = context
                group = np.arange(rows, rows - (-left // (context // length)))
                rows += len(group)
            each = tightest // length
            full = min(len(group), left // each)
            row_of[order[at : at + full * each]] = np.repeat(group[:full], each)
            at, left = at + full * each, left - full * each
            release(tightest - each * length, group[:full])
            rest = group[full:]
            if len(rest) and left and left < each:  # the last few of this length share one row
                row_of[order[at : at + left]] = rest[0]
                release(tightest - left * length, rest[:1])
                rest, left = rest[1:], 0
            release(tightest, rest)
    return row_of
