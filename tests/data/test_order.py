"""Sample order: a pure function with exact epochs and exact mixtures."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.rows.order import BLOCK, BUCKETS, FIRST, Curriculum, Order, permute


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 1 << 62))
def test_permute_is_a_bijection(n: int, key: int) -> None:
    out = permute(np.arange(n), n, key)
    assert sorted(out.tolist()) == list(range(n))
    some = np.arange(n)[:: max(1, n // 7)]
    assert permute(some, n, key).tolist() == out[some].tolist()


def test_permute_mixes_and_never_changes() -> None:
    n = 100_003
    out = permute(np.arange(n), n, "key")
    assert abs(np.corrcoef(out[:-1], out[1:])[0, 1]) < 0.02 and abs(np.corrcoef(np.arange(n), out)[0, 1]) < 0.02
    assert not np.array_equal(out, permute(np.arange(n), n, "other"))
    assert permute(np.arange(8), 8, (1, "rows", 0)).tolist() == [1, 0, 4, 7, 6, 3, 2, 5]
    big = permute(np.arange(5), 1 << 40, 0)
    assert big.dtype == np.int64 and (big >= 0).all() and (big < 1 << 40).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any), st.integers(0, 9))
def test_without_a_mixture_every_row_comes_once_an_epoch(rows: list[int], seed: int) -> None:
    order = Order({f"s{i}": n for i, n in enumerate(rows)}, {}, seed)
    total = sum(rows)
    epochs = []
    for number in range(3):
        source, epoch, row = order(np.arange(number * total, (number + 1) * total))
        assert (epoch == number).all()
        assert sorted(zip(source, row, strict=True)) == [(s, r) for s, n in enumerate(rows) for r in range(n)]
        epochs.append(order.row_ids(np.arange(number * total, (number + 1) * total)).tolist())
    assert all(sorted(ids) == list(range(total)) for ids in epochs)
    if total > 12:
        assert len({tuple(ids) for ids in epochs}) == 3
    assert order.used(2 * total).tolist() == [2 * n for n in rows]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(100, 9000), st.floats(0.01, 10)), min_size=1, max_size=4), st.integers(0, 1 << 40)
)
def test_a_mixture_is_exact(sources: list[tuple[int, float]], seed: int) -> None:
    rows = {f"s{i}": n for i, (n, _) in enumerate(sources)}
    shares = {f"s{i}": w for i, (_, w) in enumerate(sources)}
    total = sum(shares.values())
    order = Order(rows, shares, seed)
    source, epoch, row = order(np.arange(3 * BLOCK))
    for s, (n, weight) in enumerate(sources):
        own = source == s
        for blocks in (1, 2, 3):
            assert abs(own[: blocks * BLOCK].sum() - blocks * BLOCK * weight / total) <= 1.1
            assert order.used(blocks * BLOCK)[s] == own[: blocks * BLOCK].sum()
        seen = Counter(zip(epoch[own].tolist(), row[own].tolist(), strict=True))
        assert not own.any() or max(seen.values()) == 1
        for e in range(int(own.sum()) // n):  # whole epochs hold every row
            assert {r for number, r in seen if number == e} == set(range(n))


def test_a_mixture_far_away() -> None:
    order = Order({"a": 10, "b": 1_000_000}, {"a": 1, "b": 3}, 0)
    source, epoch, row = order(np.arange(10**12, 10**12 + 10))
    assert set(source.tolist()) <= {0, 1} and (epoch >= 0).all() and (row < 1_000_000).all()
    assert abs(order.used(10**12)[0] - 25e10) <= 1


@pytest.mark.parametrize("shares", [{}, {"a": 0.2, "b": 0.5, "c": 0.3}])
def test_order_is_a_pure_function(shares: dict[str, float]) -> None:
    rows = {"a": 11, "b": 5, "c": 700}
    order = Order(rows, shares, 7)
    k = np.arange(2 * BLOCK + 50)
    whole = order.row_ids(k)
    again = Order(rows, shares, 7)
    shuffled = np.random.default_rng(0).permutation(k)
    assert np.array_equal(again.row_ids(shuffled), whole[shuffled])
    assert again.row_ids(np.array([5]))[0] == whole[5]
    assert not np.array_equal(Order(rows, shares, 8).row_ids(k), whole)


@pytest.mark.parametrize(
    "shares, message", [({"a": 1, "empty": 1}, "'empty' has no training rows"), ({"a": 1, "b": 1e-5}, "1/4096")]
)
def test_impossible_mixtures(shares: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Order({"a": 5, "b": 5, "empty": 0}, shares, 0)


@pytest.mark.soak
def test_random_mixtures() -> None:
    rng = np.random.default_rng(1)
    for seed in range(60):
        rows = {f"s{i}": int(n) for i, n in enumerate(rng.integers(1, 50_000, rng.integers(1, 6)))}
        weights = rng.random(len(rows)) + 0.01
        order = Order(rows, dict(zip(rows, weights.tolist(), strict=True)), seed)
        source, epoch, row = order(np.arange(20 * BLOCK))
        counts = np.bincount(source, minlength=len(rows))
        assert np.abs(counts - 20 * BLOCK * weights / weights.sum()).max() <= 1.1
        triples = np.stack([source, epoch, row], 1)
        assert len(np.unique(triples, axis=0)) == len(triples)


def test_sources_of_a_mixture_take_turns() -> None:
    """Any stretch of a block holds its share of each source: they do not stand one after another."""
    source, _, _ = Order({"a": 500, "b": 700}, {"a": 0.25, "b": 0.75}, seed=3)(np.arange(2 * BLOCK))
    shares = [(source[at : at + 512] == 0).mean() for at in range(0, 2 * BLOCK, 512)]
    assert min(shares) > 0.15 and max(shares) < 0.35


@pytest.mark.parametrize(
    "shares, first, digest",
    [
        ({}, [400, 314, 318, 180, 524, 303, 69, 121, 216, 157], "e594769c028ab52d"),
        ({"a": 0.2, "b": 0.5, "c": 0.3}, [5, 538, 190, 1, 74, 0, 6, 517, 569, 11], "0d50e03fb0d81673"),
    ],
)
def test_the_order_of_a_seed_never_changes(shares: dict[str, float], first: list[int], digest: str) -> None:
    """The first one was recorded before there were phases."""
    order = Order({"a": 11, "b": 500, "c": 70}, shares, 1234)
    assert order.row_ids(np.arange(10)).tolist() == first
    assert hashlib.sha256(order.row_ids(np.arange(20000)).astype("<i8").tobytes()).hexdigest()[:16] == digest


class Drawn:
    """A random order of three or fewer sources, and its first samples."""

    SAMPLES = 2 * BLOCK + 100

    def __init__(self, seed: int, *, curriculum: bool = False, phases: bool = True) -> None:
        self.rng = rng = np.random.default_rng(seed)
        names = "abc"[: rng.integers(1, 4)]
        self.rows = {name: int(rng.integers(60, 4000)) for name in names}
        starts = sorted(rng.choice([0, 1, 7, BLOCK, int(rng.integers(1, self.SAMPLES))], rng.integers(1, 4)).tolist())
        self.phases = [(start, self.shares(zero=True)) for start in starts] if phases else []
        self.mixture = self.shares(zero=False) if rng.random() < 0.7 or not (phases or curriculum) else {}
        self.first = self.mixture or {name: float(n) for name, n in self.rows.items()}
        self.curriculum = None
        if curriculum:
            ranked = np.concatenate([rng.permutation(n) for n in self.rows.values()])
            self.curriculum = Curriculum(ranked, np.sort(rng.integers(0, BLOCK, BUCKETS - FIRST)).tolist())
        self.order = Order(self.rows, self.mixture, seed, self.phases, self.curriculum)
        self.source, self.epoch, self.row = self.order(np.arange(self.SAMPLES))

    def shares(self, zero: bool) -> dict[str, float]:
        weights = self.rng.uniform(0.05, 1, len(self.rows)) * (self.rng.random(len(self.rows)) > 0.3 * zero)
        return dict(zip(self.rows, weights.tolist() if weights.any() else [1.0] * len(self.rows), strict=True))

    def stages(self) -> list[tuple[int, int, np.ndarray]]:
        """(first sample, end, share of each source) of each phase, the beginning included."""
        given = [(0, self.first), *self.phases]
        ends = [*(start for start, _ in given[1:]), self.SAMPLES]
        weights = [np.array([shares[name] for name in self.rows], float) for _, shares in given]
        return [(start, end, w / w.sum()) for (start, _), end, w in zip(given, ends, weights, strict=True)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30))
def test_phases_may_start_anywhere(seed: int) -> None:
    """Shares change at once, no row is lost or repeated, and what was before a phase does not depend on it."""
    drawn = Drawn(seed)
    ideal = np.zeros(len(drawn.rows))
    for start, end, shares in drawn.stages():
        counts = np.bincount(drawn.source[start:end], minlength=len(shares))
        assert not counts[shares == 0].any()
        ideal += shares * (end - start)
        assert np.abs(drawn.order.used(end) - ideal).max() < 70 * len(drawn.stages())
    for x in (0, 1, BLOCK, drawn.SAMPLES, *drawn.rng.integers(0, drawn.SAMPLES, 3).tolist()):
        assert drawn.order.used(x).tolist() == np.bincount(drawn.source[:x], minlength=len(drawn.rows)).tolist()
    for number, n in enumerate(drawn.rows.values()):
        own = drawn.source == number
        epoch, row = drawn.epoch[own], drawn.row[own]
        assert epoch.tolist() == (np.arange(len(epoch)) // n).tolist()
        for begin in range(0, len(row), n):
            some = row[begin : begin + n]
            assert len(set(some.tolist())) == len(some) and set(some.tolist()) <= set(range(n))
    at, _ = drawn.phases[-1]
    shorter = Order(drawn.rows, drawn.first, seed, drawn.phases[:-1])
    assert np.array_equal(shorter.row_ids(np.arange(at)), drawn.order.row_ids(np.arange(at)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans())
def test_a_curriculum_opens_buckets(seed: int, phases: bool) -> None:
    drawn = Drawn(seed, curriculum=True, phases=phases)
    assert drawn.curriculum
    again = Order(drawn.rows, drawn.mixture, seed, drawn.phases or [(0, drawn.first)])
    assert np.array_equal(again(np.arange(drawn.SAMPLES))[0], drawn.source)  # which source is drawn stays
    for number, (n, ranked) in enumerate(
        zip(drawn.rows.values(), np.split(drawn.curriculum.ranked, drawn.order.first[1:]), strict=True)
    ):
        k = np.flatnonzero(drawn.source == number)
        pairs = list(zip(drawn.epoch[k].tolist(), drawn.row[k].tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        rank = np.argsort(ranked)[drawn.row[k]]
        edges = -(-n * np.arange(BUCKETS + 1) // BUCKETS)
        opened = FIRST + np.searchsorted(drawn.curriculum.openings, k, side="right")
        assert (rank < edges[opened]).all()
        for bucket in range(BUCKETS):  # its epochs are permutations
            inside = (rank >= edges[bucket]) & (rank < edges[bucket + 1])
            size = edges[bucket + 1] - edges[bucket]
            assert (np.bincount(drawn.epoch[k][inside])[: inside.sum() // size] == size).all()
        late = rank[k >= drawn.curriculum.openings[-1]]
        if len(late) > 500:
            assert abs((late < edges[BUCKETS // 2]).mean() - 0.5) < 0.1


def test_a_curriculum_of_few_rows() -> None:
    """Fewer rows than buckets, and a source without any."""
    curriculum = Curriculum(np.array([2, 0, 1, 0]), [10, 20, 30, 40, 50, 60])
    order = Order({"a": 3, "empty": 0, "b": 1}, {}, 5, curriculum=curriculum)
    source, epoch, row = order(np.arange(400))
    assert set(source.tolist()) == {0, 2} and set(row[source == 0][:5].tolist()) == {2}
    assert np.bincount(row[(source == 0) & (np.arange(400) >= 100)]).min() > 50


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans())
def test_another_batch_and_other_processes_see_the_same_stream(seed: int, curriculum: bool) -> None:
    """One process with batches of 32 for 16 steps is 8 with 32 for 4, then 2 with 64 for 6, and so on."""
    drawn = Drawn(seed, curriculum=curriculum)
    start = int(drawn.rng.integers(0, drawn.SAMPLES - 1000))
    want = drawn.order.row_ids(np.arange(start, start + 512)).tolist()
    parts = [(8, 32, 4), (2, 64, 6)] if seed % 2 else [(3, 50, 3), (1, 7, 8), (5, 31, 2), (4, 122, 2)]
    seen: list[int] = []
    for world, batch, steps in parts:
        order = Order(drawn.rows, drawn.mixture, seed, drawn.phases, drawn.curriculum)
        for _ in range(steps):
            at = start + len(seen)
            for rank in range(world):
                seen += order.row_ids(np.arange(at + rank * batch // world, at + (rank + 1) * batch // world)).tolist()
    assert seen == want[: len(seen)] and len(seen) == 512


def test_shares_of_phases_that_cannot_be_kept() -> None:
    rows = {"a": 5, "b": 5, "empty": 0, "small": 1}
    mixture = {"a": 1.0, "b": 1.0, "small": 1.0}
    Order(rows, mixture, 0, [(3, {"a": 1, "b": 0, "empty": 0})])
    for shares, message in (
        ({"a": 1, "empty": 1}, r"data.phases\[0\].mixture: source 'empty' has no training rows"),
        ({"a": 1, "b": 1e-5}, r"data.phases\[0\].mixture: 'b' has a share of 1e-05"),
        ({"a": 0, "b": 0}, "every share is 0"),
    ):
        with pytest.raises(DataError, match=message):
            Order(rows, mixture, 0, [(3, shares)])
    with pytest.raises(DataError, match="'small' has 1 of 50001 rows.*give it one in data.mixture"):
        Order({"a": 50000, "small": 1}, {}, 0, [(3, {"a": 1})])


@pytest.mark.soak
def test_random_phases_and_curricula() -> None:
    for seed in range(400):
        test_phases_may_start_anywhere.hypothesis.inner_test(seed)  # type: ignore[attr-defined]
        test_a_curriculum_opens_buckets.hypothesis.inner_test(seed, seed % 2 == 0)  # type: ignore[attr-defined]
