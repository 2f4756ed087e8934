"""Packing against a textbook reference, and what every packing keeps."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import PackConfig, SplitConfig, packing_report, prepare
from data.rows.pack import Spans, cut_stream, cut_stream_around, pack, pack_bfd, split_long
from data.rows.packing import MODES, measure
from data.rows.plan import RowPlan, make_rows

from .helpers import text_config

LENGTHS = st.lists(st.integers(1, 40), max_size=60)
FIFTH = SplitConfig(val=0.2)


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
    spans = spans_of(lengths)
    pieces, span = split_long(spans, np.full(len(lengths), context))
    assert span.tolist() == [i for i, n in enumerate(lengths) for _ in range(-(-n // context))]
    want = [n for length in lengths for n in [context] * (length // context) + [length % context] if n]
    assert pieces.length.tolist() == want
    assert covered(pieces) == covered(spans_of(lengths))


@settings(max_examples=100, deadline=None)
@given(LENGTHS.filter(bool), st.integers(1, 50))
def test_a_stream_is_cut_only_at_row_ends(lengths: list[int], context: int) -> None:
    spans = spans_of(lengths, 2)
    packed = cut_stream(spans, context)
    pieces, row = packed.pieces, packed.row
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


def rows_of(mode: str, lengths: list[int], context: int) -> list[list[tuple[int, int]]]:
    """(start, length) of the pieces of each row."""
    packed = pack(spans_of(lengths), mode, context)
    pairs = list(zip(packed.pieces.start.tolist(), packed.pieces.length.tolist(), strict=True))
    return [[pair for pair, row in zip(pairs, packed.row.tolist(), strict=True) if row == r] for r in set(packed.row)]


def test_truncated_and_padded_rows_by_hand() -> None:
    assert rows_of("truncate", [5, 3, 9, 1, 2], 8) == [[(8, 8)], [(0, 5), (5, 3)], [(17, 1), (18, 2)]]
    assert rows_of("pad", [5, 3, 9, 1], 8) == [[(0, 5)], [(5, 3)], [(8, 8)], [(16, 1)], [(17, 1)]]


@settings(max_examples=200, deadline=None)
@given(LENGTHS.filter(bool), st.integers(4, 50), st.sampled_from(MODES), st.data())
def test_every_mode_with_room_for_more(lengths: list[int], context: int, mode: str, data: st.DataObject) -> None:
    """`extra` positions a piece never overfill a row, and only `truncate` loses anything: the ends of documents."""
    spans, extra = spans_of(lengths), np.array([data.draw(st.sampled_from([0, 3])) for _ in lengths])
    packed = pack(spans, mode, context, extra)
    sizes = packed.pieces.length + extra[packed.span]
    assert (packed.pieces.length > 0).all() and (np.diff(packed.row) >= 0).all()
    assert set(packed.row.tolist()) == set(range(packed.row[-1] + 1))
    assert np.bincount(packed.row, sizes).max() <= context
    kept = covered(packed.pieces)
    assert len(set(kept)) == len(kept)
    if mode == "truncate":
        want = Spans(spans.shard, spans.start, np.minimum(spans.length, context - extra))
        assert sorted(kept) == sorted(covered(want))
    else:
        assert sorted(kept) == sorted(covered(spans))
    for i in range(len(lengths)):
        own = packed.pieces.take(packed.span == i)
        assert set(covered(own)) <= set(covered(spans.take(np.array([i]))))
        if mode != "concat":
            assert mode == "truncate" or len(own.length) == -(-lengths[i] // (context - extra[i]))
    if mode == "pad":
        assert np.bincount(packed.row).max() == 1


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 50))
def test_the_two_ways_to_cut_a_stream_agree(lengths: list[int], context: int) -> None:
    spans = spans_of(lengths, 2)
    one, other = cut_stream(spans, context), cut_stream_around(spans, context, np.zeros(len(lengths), np.int64))
    for name in ("shard", "start", "length"):
        assert np.array_equal(getattr(one.pieces, name), getattr(other.pieces, name))
    assert np.array_equal(one.span, other.span) and np.array_equal(one.row, other.row)


def test_what_each_mode_does_by_hand() -> None:
    spans = spans_of([5, 3, 9, 1, 2])  # 20 pairs

    def found(mode: str) -> tuple[object, ...]:
        m = measure([spans], mode, 8)
        return m.rows, pytest.approx(m.padding), m.lost, m.cut, m.documents_a_row, m.headless

    assert found("bfd") == (3, 4 / 24, 0, 0, 2, 1)
    assert found("truncate") == (3, 5 / 24, 1, 0, 5 / 3, 0)
    assert found("concat") == (3, 4 / 24, 0, 0, 2, 1)
    assert found("pad") == (6, 28 / 48, 0, 0, 1, 1)
    cut = measure([spans_of([5, 5, 5])], "concat", 8)
    assert (cut.cut, cut.headless) == (1, 2)


def test_a_report_is_over_the_training_documents(tmp_path: Path) -> None:
    made = prepare(text_config(tmp_path, pack=PackConfig(mode="truncate"), split=FIFTH), 64, progress=False)
    report = packing_report(made)
    assert [packing.mode for packing in report.modes] == list(MODES) == ["bfd", "truncate", "concat", "pad"]
    bfd, truncate, concat, _ = report.modes
    assert (truncate.rows, truncate.lost) == (made.train.rows, sum(made.plan.facts["lost"].values()))
    assert truncate.padding == pytest.approx(made.train.padding) and truncate.lost > 0
    assert report.documents == sum(made.plan.facts["documents"]["train"].values())
    assert report.targets == made.train.targets + truncate.lost
    assert bfd.lost == bfd.cut == concat.lost == 0 < concat.cut
    lines = report.lines()
    assert "pack.mode is truncate" in lines[0] and len(lines) == 6 and len({len(line) for line in lines[1:]}) == 1
    assert f"{truncate.lost:,} targets" in "\n".join(made.summary())
    assert packing_report(made, 16).context == 16


def test_held_out_rows_are_always_packed_alike(tmp_path: Path) -> None:
    plans = [
        prepare(text_config(tmp_path, pack=PackConfig(mode=mode), split=FIFTH), 64, progress=False)  # type: ignore[arg-type]
        for mode in MODES
    ]
    for made in plans[1:]:
        for name in ("shard", "start", "length", "row_ptr", "valid"):
            assert np.array_equal(getattr(made.val, name), getattr(plans[0].val, name))
    assert len({made.fingerprint for made in plans}) == len(MODES)
    own, spans = plans[0].val, plans[0].plan.val_spans
    best = pack(spans, "bfd", 64)
    assert np.array_equal(own.start, best.pieces.start) and np.array_equal(np.diff(own.row_ptr), np.bincount(best.row))
    assert not np.array_equal(own.start, pack(spans, "concat", 64).pieces.start)


@pytest.mark.soak
def test_bfd_on_many_lengths() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        context = int(rng.integers(1, 600))
        lengths = rng.integers(1, context + 1, int(rng.integers(1, 3000)))
        rows = pack_bfd(lengths, context)
        assert (np.bincount(rows, lengths) <= context).all()
        assert rows.max() + 1 == reference_rows(lengths.tolist(), context)
