"""Packing against a textbook reference, and what every packing keeps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pack import Spans, cut_stream, pack_bfd, split_long
from data.plan import RowPlan, make_rows

LENGTHS = st.lists(st.integers(1, 40), max_size=60)


def reference_rows(lengths: list[int], context: int) -> int:
    """Rows that textbook best-fit decreasing opens, one piece after another."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in free if space >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(context - length)
    return len(free)


def spans_of(lengths: list[int], shards: int = 1) -> Spans:
    """Documents one after another, dealt out to `shards` shards."""
    length = np.array(lengths, np.int64)
    shard = np.arange(len(lengths)) % shards
    start = np.zeros(len(lengths), np.int64)
    for number in range(shards):
        own = shard == number
        start[own] = np.cumsum(length[own]) - length[own]
    return Spans(shard, start, length)


def covered(spans: Spans) -> list[tuple[int, int]]:
    """Every (shard, input) of some spans."""
    return [(s, i) for s, a, n in zip(spans.shard, spans.start, spans.length, strict=True) for i in range(a, a + n)]


def pieces_of(plan: RowPlan) -> Spans:
    return Spans(plan.shard, plan.start, plan.length)


@settings(max_examples=300, deadline=None)
@given(LENGTHS, st.integers(1, 40))
def test_bfd_equals_the_textbook(lengths: list[int], context: int) -> None:
    lengths = [min(length, context) for length in lengths]
    rows = pack_bfd(np.array(lengths, np.int64), context)
    used = np.bincount(rows, lengths) if lengths else np.zeros(0)
    assert (used <= context).all() and (used > 0).all()
    assert len(used) == reference_rows(lengths, context)


@settings(max_examples=100, deadline=None)
@given(LENGTHS.filter(bool), st.integers(1, 50), st.sampled_from(["bfd", "concat"]), st.integers(1, 3))
def test_rows_hold_every_pair_once(lengths: list[int], context: int, mode: str, shards: int) -> None:
    spans = spans_of(lengths, shards)
    source = (np.arange(len(lengths)) % 2).astype(np.int16)
    plan = make_rows(spans, source, ("x", "empty", "y"), mode, context)
    assert sorted(covered(pieces_of(plan))) == sorted(covered(spans))
    assert plan.rows == len(plan.row_ptr) - 1 and plan.targets == sum(lengths) == plan.row_targets.sum()
    assert (plan.row_targets <= context).all() and (plan.row_targets > 0).all()
    assert sum(plan.rows_by_source.values()) == plan.rows
    assert list(plan.rows_by_source) == ["x", "empty", "y"]
    assert sum(plan.targets_by_source.values()) == plan.targets
    assert (np.diff(plan.source) >= 0).all()
    owner = {pair: s for i, s in enumerate(source) for pair in covered(spans.take(np.array([i])))}
    for row in range(plan.rows):
        own = pieces_of(plan).take(np.arange(plan.row_ptr[row], plan.row_ptr[row + 1]))
        assert {owner[pair] for pair in covered(own)} == {plan.source[row]}


@settings(max_examples=100, deadline=None)
@given(LENGTHS.filter(bool), st.integers(1, 50))
def test_bfd_cuts_only_what_is_longer_than_a_row(lengths: list[int], context: int) -> None:
    pieces = split_long(spans_of(lengths), context)
    want = [n for length in lengths for n in [context] * (length // context) + [length % context] if n]
    assert pieces.length.tolist() == want
    assert covered(pieces) == covered(spans_of(lengths))


@settings(max_examples=100, deadline=None)
@given(LENGTHS.filter(bool), st.integers(1, 50))
def test_a_stream_is_cut_only_at_row_ends(lengths: list[int], context: int) -> None:
    spans = spans_of(lengths, 2)
    pieces, row = cut_stream(spans, context)
    assert covered(pieces) == covered(spans)
    sizes = np.bincount(row, pieces.length)
    assert (sizes[:-1] == context).all() and len(sizes) == -(-sum(lengths) // context)
    assert len(pieces.length) <= len(lengths) + len(sizes) - 1


def test_rows_by_hand() -> None:
    plan = make_rows(spans_of([5, 3, 9, 1, 2]), np.zeros(5, np.int16), ("a",), "bfd", 8)
    rows = [
        [(int(plan.start[p]), int(plan.length[p])) for p in range(plan.row_ptr[r], plan.row_ptr[r + 1])]
        for r in range(plan.rows)
    ]
    assert rows == [[(8, 8)], [(0, 5), (5, 3)], [(16, 1), (17, 1), (18, 2)]]
    assert plan.padding == pytest.approx(1 - 20 / 24)
    plan = make_rows(spans_of([5, 3, 9, 1, 2]), np.zeros(5, np.int16), ("a",), "concat", 8)
    assert plan.length.tolist() == [5, 3, 8, 1, 1, 2] and plan.row_ptr.tolist() == [0, 2, 3, 6]


@pytest.mark.soak
def test_bfd_on_many_lengths() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        context = int(rng.integers(1, 600))
        lengths = rng.integers(1, context + 1, int(rng.integers(1, 3000)))
        rows = pack_bfd(lengths, context)
        assert (np.bincount(rows, lengths) <= context).all()
        assert rows.max() + 1 == reference_rows(lengths.tolist(), context)
