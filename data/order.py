"""Which row is training sample k: a pure function of (seed, rows, shares), with nothing to store or to rebuild.

Without a mixture, an epoch is one permutation of all rows. With one, samples come in blocks of BLOCK: how many of
each source a block has follows from rounding cumulative shares, so no source drifts, their order inside the block
is a permutation, and every source goes through its own rows epoch by epoch, each time in another order.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from .errors import DataError

BLOCK = 4096
"""Samples over which a mixture is exact; a share below 1 / BLOCK cannot be kept."""
_PARTS = 1 << 20  # shares are whole multiples of 1 / _PARTS
_ROUNDS = 6


def permute(index: np.ndarray, n: int, key: object) -> np.ndarray:
    """Where a pseudo-random permutation of range(n) puts each index; `key` (by its repr) picks the permutation.

    A Feistel network on the smallest even number of bits that holds n, applied again while the result is outside
    (cycle walking). Constant memory, whatever n.
    """
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * _ROUNDS).digest()
    keys = np.frombuffer(digest, "<u8")
    out = np.array(index, np.uint64)
    todo = np.arange(out.size)
    flat = out.reshape(-1)
    while todo.size:
        left, right = flat[todo] >> shift, flat[todo] & mask
        for round_key in keys:
            left, right = right, left ^ (_mix(right, round_key) & mask)
        flat[todo] = (left << shift) | right
        todo = todo[flat[todo] >= n]
    return out.astype(np.int64)


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), keyed; arithmetic is modulo 2^64."""
    z = values * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Order:
    """Sample k -> (source, epoch, row): `rows` of each source, and `shares` of the samples by source, or empty for all
    rows alike. For shares of the tokens see `row_shares`."""

    def __init__(self, rows: Mapping[str, int], shares: Mapping[str, float], seed: int) -> None:
        self.rows = np.array(list(rows.values()), np.int64)
        self.first = np.cumsum(self.rows) - self.rows
        """Global row number of each source's row 0."""
        self.total = int(self.rows.sum())
        self.seed = seed
        self.cumulative = _cumulative(rows, shares) if shares else None
        """Shares up to and with each source, in parts of _PARTS; None without a mixture."""

    def __call__(self, k: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, epoch, row inside the source) of samples k, int64 arrays of k's shape."""
        k = np.asarray(k, np.int64)
        if self.cumulative is None:
            epoch, index = np.divmod(k, self.total)
            everything = self._permute_epochs(index, epoch, self.total, "rows")
            source = np.searchsorted(self.first + self.rows, everything, side="right")
            return source, epoch, everything - self.first[source]
        source, index = np.empty_like(k), np.empty_like(k)
        for block in np.unique(k // BLOCK).tolist():
            inside = k // BLOCK == block
            source[inside], index[inside] = self._in_block(k[inside], block)
        epoch, within = np.divmod(index, self.rows[source])
        row = np.empty_like(k)
        for number in np.unique(source).tolist():
            own = source == number
            row[own] = self._permute_epochs(within[own], epoch[own], int(self.rows[number]), f"source {number}")
        return source, epoch, row

    def row_ids(self, k: np.ndarray) -> np.ndarray:
        """Global row numbers of samples k, as a RowPlan counts them."""
        source, _, row = self(k)
        return self.first[source] + row

    def used(self, samples: int) -> np.ndarray:
        """Rows of each source among the first `samples`, exact where a block or an epoch ends; float64 (sources,)."""
        if self.cumulative is None:
            return self.rows * (samples / self.total)
        return np.diff(self._ends(samples), prepend=0).astype(np.float64)

    def _ends(self, samples: int) -> np.ndarray:
        """Samples of sources up to and with each one before sample `samples`: cumulative shares, rounded."""
        assert self.cumulative is not None
        whole, rest = divmod(samples, _PARTS)
        return whole * self.cumulative + (2 * rest * self.cumulative + _PARTS) // (2 * _PARTS)

    def _in_block(self, k: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, how many samples of that source came before) for samples of one block."""
        before, after = self._ends(block * BLOCK), self._ends((block + 1) * BLOCK)
        used = np.diff(before, prepend=0)
        ends = np.cumsum(np.diff(after, prepend=0) - used)
        place = permute(k % BLOCK, BLOCK, (self.seed, "block", block))
        source = np.searchsorted(ends, place, side="right")
        begin = np.concatenate([[0], ends[:-1]])
        return source, used[source] + place - begin[source]

    def _permute_epochs(self, index: np.ndarray, epoch: np.ndarray, n: int, purpose: str) -> np.ndarray:
        out = np.empty_like(index)
        for number in np.unique(epoch).tolist():
            own = epoch == number
            out[own] = permute(index[own], n, (self.seed, purpose, number))
        return out


def row_shares(shares: Mapping[str, float], rows: Mapping[str, int], targets: Mapping[str, int]) -> dict[str, float]:
    """Weights of rows that give each source its share of targets.

    A row of source s holds targets_s / rows_s targets on average, so its weight is the share divided by that.
    """
    return {name: share * rows[name] / targets[name] if targets.get(name) else share for name, share in shares.items()}


def _cumulative(rows: Mapping[str, int], shares: Mapping[str, float]) -> np.ndarray:
    """Shares added up, in parts of _PARTS. Raises DataError for one that cannot be kept."""
    total = sum(shares.values())
    for name, weight in shares.items():
        if not rows.get(name):
            raise DataError(f"data.mixture: source {name!r} has no training rows")
        if weight / total < 1 / BLOCK:
            share = f"a share of {weight / total:.2g} of the rows"
            raise DataError(f"data.mixture: {name!r} has {share}; the smallest is 1/{BLOCK}")
    weights = np.array([shares.get(name, 0.0) for name in rows], np.float64)
    return np.round(np.cumsum(weights) / total * _PARTS).astype(np.int64)
