"""Sample order: a pure function with exact epochs and exact mixtures."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.order import BLOCK, Order, permute


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
