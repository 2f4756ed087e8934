"""Which row is training sample k: a pure function of (seed, rows, shares), with nothing to store or to rebuild.

Without a mixture, an epoch is one permutation of all rows. With one, samples come in blocks of BLOCK: how many of
each source a block has follows from rounding cumulative shares, so no source drifts, their order inside the block
is a permutation, and every source goes through its own rows epoch by epoch, each time in another order. Shares may
change at any sample (phases), and a source may begin with its easy rows (a curriculum).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError

BLOCK = 4096
"""Samples over which a mixture is exact; a share below 1 / BLOCK cannot be kept."""
BUCKETS = 8
"""Into how many parts of equal size and rising difficulty a curriculum cuts the rows of a source."""
FIRST = 2
"""Buckets that are open from the start: the easiest quarter."""
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
            left, right = right, left ^ (mix(right, round_key) & mask)
        flat[todo] = (left << shift) | right
        todo = todo[flat[todo] >= n]
    return out.astype(np.int64)


def mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), keyed; arithmetic is modulo 2^64."""
    z = values * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Mixture:
    """Sample k -> (part, how many samples of that part came before), where shares change from phase to phase.

    A phase starts at any sample. From there on its samples come in blocks of BLOCK; the last one ends where the next
    phase starts. Before sample x of a phase, at the edge of a block, part s has had

        round(x C_s) - round(x C_(s - 1)),   C_s: the phase's shares up to and with part s, added up

    samples, so no part drifts; that no block has fewer than 0 of a part needs shares of at least 1 / BLOCK, or of 0.
    Inside a block the order is a permutation. What the phases before had of each part is counted once, so a part goes
    on in a phase with the very sample it had come to.
    """

    def __init__(self, phases: Sequence[tuple[int, np.ndarray]], key: tuple[object, ...]) -> None:
        """`phases` as (first sample, C in whole parts of _PARTS), the first one at 0, none before the one before it;
        the last of several at one sample counts. `key` picks the permutations."""
        self.key = key
        self.starts = np.array([start for start, _ in phases], np.int64)
        self.cumulative = np.stack([cumulative for _, cumulative in phases])
        assert self.starts[0] == 0 and (np.diff(self.starts) >= 0).all()
        self.before = np.zeros_like(self.cumulative)
        """Samples of each part before each phase."""
        for i, length in enumerate(np.diff(self.starts).tolist()):
            self.before[i + 1] = self.before[i] + self._used(i, length)

    def __call__(self, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 arrays of k's shape."""
        part, index = np.empty_like(k), np.empty_like(k)
        phase = np.searchsorted(self.starts, k, side="right") - 1
        for number in np.unique(phase).tolist():
            own = np.flatnonzero(phase == number)
            local = k[own] - self.starts[number]
            for block in np.unique(local // BLOCK).tolist():
                inside = local // BLOCK == block
                part[own[inside]], index[own[inside]] = self._in_block(local[inside], number, block)
        return part, index

    def used(self, samples: int) -> np.ndarray:
        """How many of the first `samples` are of each part, int64 (parts,)."""
        phase = int(np.searchsorted(self.starts, samples, side="right")) - 1
        return self.before[phase] + self._used(phase, samples - int(self.starts[phase]))

    def _used(self, phase: int, samples: int) -> np.ndarray:
        """The same for the first samples of one phase."""
        block, rest = divmod(samples, BLOCK)
        counts = np.diff(self._ends(phase, samples - rest), prepend=0)
        if rest:
            parts, _ = self._in_block(np.arange(samples - rest, samples), phase, block)
            counts += np.bincount(parts, minlength=len(counts))
        return counts

    def _ends(self, phase: int, samples: int) -> np.ndarray:
        """Samples of parts up to and with each one before sample `samples` of a phase: cumulative shares, rounded."""
        whole, rest = divmod(samples, _PARTS)
        shares = self.cumulative[phase]
        return whole * shares + (2 * rest * shares + _PARTS) // (2 * _PARTS)

    def _in_block(self, k: np.ndarray, phase: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(part, how many samples of that part came before) for a block's samples, counted from its phase's start."""
        before, after = self._ends(phase, block * BLOCK), self._ends(phase, (block + 1) * BLOCK)
        used = np.diff(before, prepend=0)
        ends = np.cumsum(np.diff(after, prepend=0) - used)
        start, offset = int(self.starts[phase]), k % BLOCK
        key = (*self.key, block, start) if start else (*self.key, block)
        place = permute(np.arange(offset.max() + 1), BLOCK, key)
        part = np.searchsorted(ends, place, side="right")
        turn = np.empty_like(place)  # how many of the same part came before in the block, wherever it will be cut off
        counts = np.bincount(part, minlength=len(ends))
        by_part = np.argsort(part, kind="stable")
        turn[by_part] = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts)
        return part[offset], (self.before[phase] + used)[part[offset]] + turn[offset]


class Easy:
    """Draw i of a source -> (epoch, row), easy rows first.

    The rows, sorted by difficulty, are cut into BUCKETS equal buckets. FIRST of them may be drawn from at once, one
    more from each opening on; a bucket's share is its part of the rows that may be drawn, so that these are all alike.
    Every bucket goes through its own rows epoch by epoch.
    """

    def __init__(self, ranked: np.ndarray, openings: Sequence[int], seed: int, source: int) -> None:
        """`ranked`: the source's rows, easiest first; `openings`: the draw at which each further bucket opens."""
        self.ranked, self.seed, self.source = ranked, seed, source
        self.edges = -(-len(ranked) * np.arange(BUCKETS + 1) // BUCKETS)
        self.sizes = np.diff(self.edges)
        phases = [(0, FIRST), *((start, FIRST + 1 + i) for i, start in enumerate(openings))]
        self.mixture = Mixture(
            [(start, _in_parts(np.minimum(self.edges[1:], self.edges[open]))) for start, open in phases],
            (seed, "curriculum", source),
        )

    def __call__(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 arrays of the shape of `index`."""
        bucket, index = self.mixture(index)
        epoch, row = np.divmod(index, self.sizes[bucket])
        for number in np.unique(bucket).tolist():
            own = bucket == number
            purpose = f"source {self.source} bucket {number}"
            place = permute_epochs(row[own], epoch[own], int(self.sizes[number]), (self.seed, purpose))
            row[own] = self.ranked[self.edges[number] + place]
        return epoch, row


@dataclass(frozen=True)
class Curriculum:
    """What makes an order begin with easy rows."""

    ranked: np.ndarray
    """int64 (rows,): in the place of each source's rows, their numbers inside the source, easiest first."""
    openings: Sequence[int]
    """The sample at which each bucket after the FIRST opens, ascending."""


class Order:
    """Sample k -> (source, epoch, row): `rows` of each source, and `shares` of the samples by source, or empty for all
    rows alike. For shares of the tokens see `row_shares`.

    `phases` are other shares from some sample on, as (first sample, shares), ascending. With them or a `curriculum`
    all rows alike means that every source has its part of the rows as its share.
    """

    def __init__(
        self,
        rows: Mapping[str, int],
        shares: Mapping[str, float],
        seed: int,
        phases: Sequence[tuple[int, Mapping[str, float]]] = (),
        curriculum: Curriculum | None = None,
    ) -> None:
        self.rows = np.array(list(rows.values()), np.int64)
        self.first = np.cumsum(self.rows) - self.rows
        """Global row number of each source's row 0."""
        self.total = int(self.rows.sum())
        self.seed = seed
        self.mixture: Mixture | None = None
        """None: every epoch is one permutation of all rows."""
        if shares or phases or curriculum:
            start = _cumulative(rows, shares, "data.mixture") if shares else _by_size(rows)
            later = [(at, _cumulative(rows, s, f"data.phases[{i}].mixture")) for i, (at, s) in enumerate(phases)]
            self.mixture = Mixture([(0, start), *later], (seed, "block"))
        self.easy = self._easy(curriculum) if curriculum else []
        """One for each source; empty without a curriculum."""

    def __call__(self, k: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, epoch, row inside the source) of samples k, int64 arrays of k's shape.

        A source comes to each (epoch, row) once, and to a row's next epoch after all rows' last one; with a curriculum
        that holds for each of its buckets.
        """
        k = np.asarray(k, np.int64)
        if self.mixture is None:
            epoch, index = np.divmod(k, self.total)
            everything = permute_epochs(index, epoch, self.total, (self.seed, "rows"))
            source = np.searchsorted(self.first + self.rows, everything, side="right")
            return source, epoch, everything - self.first[source]
        source, index = self.mixture(k)
        epoch, row = np.divmod(index, self.rows[source])
        for number in np.unique(source).tolist():
            own = source == number
            if self.easy:
                epoch[own], row[own] = self.easy[number](index[own])
            else:
                n, key = int(self.rows[number]), (self.seed, f"source {number}")
                row[own] = permute_epochs(row[own], epoch[own], n, key)
        return source, epoch, row

    def row_ids(self, k: np.ndarray) -> np.ndarray:
        """Global row numbers of samples k, as a RowPlan counts them."""
        source, _, row = self(k)
        return self.first[source] + row

    def used(self, samples: int) -> np.ndarray:
        """Rows of each source among the first `samples`, float64 (sources,); without a mixture exact where an epoch
        ends."""
        if self.mixture is None:
            return self.rows * (samples / self.total)
        return self.mixture.used(samples).astype(np.float64)

    def _easy(self, curriculum: Curriculum) -> list[Easy]:
        """A source's share of the samples before an opening is where the bucket opens for it."""
        assert self.mixture is not None
        openings = np.stack([self.mixture.used(at) for at in curriculum.openings], 1)
        ranked = np.split(curriculum.ranked, self.first[1:])
        parts = zip(ranked, openings.tolist(), strict=True)
        return [Easy(rows, starts, self.seed, number) for number, (rows, starts) in enumerate(parts)]


def permute_epochs(index: np.ndarray, epoch: np.ndarray, n: int, key: tuple[object, ...]) -> np.ndarray:
    """Where each epoch's own permutation of range(n) puts `index`."""
    out = np.empty_like(index)
    for number in np.unique(epoch).tolist():
        own = epoch == number
        out[own] = permute(index[own], n, (*key, number))
    return out


def row_shares(shares: Mapping[str, float], rows: Mapping[str, int], targets: Mapping[str, int]) -> dict[str, float]:
    """Weights of rows that give each source its share of targets.

    A row of source s holds targets_s / rows_s targets on average, so its weight is the share divided by that.
    """
    return {name: share * rows[name] / targets[name] if targets.get(name) else share for name, share in shares.items()}


def _cumulative(rows: Mapping[str, int], shares: Mapping[str, float], where: str) -> np.ndarray:
    """Shares added up, in parts of _PARTS. Raises DataError for one that cannot be kept."""
    total = sum(shares.values())
    for name, weight in shares.items():
        if weight and not rows.get(name):
            raise DataError(f"{where}: source {name!r} has no training rows")
        if weight and weight / total < 1 / BLOCK:
            share = f"a share of {weight / total:.2g} of the rows"
            raise DataError(f"{where}: {name!r} has {share}; the smallest is 1/{BLOCK}")
    if not total:
        raise DataError(f"{where}: every share is 0")
    weights = np.array([shares.get(name, 0.0) for name in rows], np.float64)
    return np.round(np.cumsum(weights) / total * _PARTS).astype(np.int64)


def _by_size(rows: Mapping[str, int]) -> np.ndarray:
    """The same for shares by rows. Raises DataError for a source that is too small for that."""
    total = sum(rows.values())
    for name, n in rows.items():
        if n and n / total < 1 / BLOCK:
            rule = f"with data.phases or data.curriculum the smallest share is 1/{BLOCK}"
            raise DataError(f"data.mixture: {name!r} has {n} of {total} rows, and {rule}: give it one in data.mixture")
    return _in_parts(np.cumsum(list(rows.values())))


def _in_parts(cumulative: np.ndarray) -> np.ndarray:
    """Counts added up as shares added up, in parts of _PARTS."""
    return np.round(cumulative / max(1, int(cumulative[-1])) * _PARTS).astype(np.int64)
