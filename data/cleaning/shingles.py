"""Texts as hashes of words and of word n-grams: what near duplicates, contamination and repetition are judged by.

A word is a run of letters, marks and digits, casefolded; a Chinese or Japanese character is a word of its own. Case,
punctuation and white space make no difference. Hashes are 64 bit: of a word, a polynomial in its code points; of an
n-gram, one in its words. They are the same on every machine and are not meant to withstand an adversary.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..store import Store
from .characters import IDEOGRAPH, SPACE, kinds

_BASE = 0x9E3779B97F4A7C15
_STEP = 0xD6E8FEB86659FD93
_GROUP = 1 << 19  # bytes of text that are worked on at once
_SEPARATOR = "\ud800"  # no UTF-8 text holds it


@dataclass(frozen=True)
class Hashes:
    """Those of document i are `values[offsets[i] : offsets[i + 1]]`, in the order of the text."""

    values: np.ndarray
    """uint64."""
    offsets: np.ndarray
    """int64 (documents + 1,)."""

    @property
    def counts(self) -> np.ndarray:
        """How many each document has."""
        return np.diff(self.offsets)

    @property
    def document(self) -> np.ndarray:
        """The document of each value."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)


def words(texts: Sequence[bytes]) -> Hashes:
    """Every word of some UTF-8 texts."""
    joined = _SEPARATOR.join(text.decode(errors="replace") for text in texts).casefold()
    codes = np.frombuffer(f"{joined}{_SEPARATOR}".encode("utf-32-le", "surrogatepass"), "<u4")
    kind = kinds(codes)
    at = np.flatnonzero(kind > SPACE)  # of letters and digits
    starts = np.ones(len(at), bool)
    starts[1:] = np.diff(at) > 1
    ideograph = kind[at] == IDEOGRAPH
    starts |= ideograph
    starts[1:] |= ideograph[:-1]
    first = np.flatnonzero(starts)
    ends = np.searchsorted(at[first], np.flatnonzero(codes == ord(_SEPARATOR)))
    offsets = np.concatenate([[0], ends])
    if not len(first):
        return Hashes(np.zeros(0, np.uint64), offsets)
    place = np.arange(len(at)) - np.repeat(first, np.diff(np.append(first, len(at))))
    values = codes[at].astype(np.uint64) * _powers(_BASE)[place & (_POWERS - 1)]
    return Hashes(mix(np.add.reduceat(values, first)), offsets)


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """Every run of `n` words inside a document; of a shorter document all its words, if it has any."""
    counts = hashes.counts
    short = (counts > 0) & (counts < n)
    kept = np.where(short, 1, np.maximum(counts - n + 1, 0))
    offsets = np.concatenate([[0], np.cumsum(kept)])
    if not offsets[-1]:
        return Hashes(np.zeros(0, np.uint64), offsets)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept)
    first = np.repeat(hashes.offsets[:-1], kept) + place  # word that an n-gram starts with
    length = np.repeat(np.where(short, counts, n), kept)
    powers, total = _powers(_STEP), np.zeros(len(first), np.uint64)
    padded = np.append(hashes.values, np.zeros(n, np.uint64))
    for step in range(n):
        word = padded[first + step]
        if short.any():
            word[length <= step] = 0
        total += word * powers[step & (_POWERS - 1)]
    return Hashes(mix(total), offsets)


def mix(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that spreads every bit (the finalizer of splitmix64)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


_POWERS = 1 << 12


@functools.cache
def _powers(base: int) -> np.ndarray:
    """base ** (1 + i) mod 2**64, uint64 (_POWERS,)."""
    return np.multiply.accumulate(np.full(_POWERS, base, np.uint64))


def texts(store: Store, shard: int) -> Iterator[list[bytes]]:
    """The documents of one shard, some at a time, decoded from their tokens."""
    tokens, offsets = store.tokens(shard), store.column("offsets")[shard]
    table = _table(store)
    group, size = list[bytes](), 0
    for start, stop in zip((offsets[:-1] + 1).tolist(), offsets[1:].tolist(), strict=True):
        pieces = table[tokens[start:stop]]
        group.append(pieces.tobytes() if table.dtype == np.uint8 else b"".join(pieces))
        size += len(group[-1])
        if size > _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(store: Store) -> np.ndarray:
    """The bytes of each id: objects, or numbers where every id that a text has is one byte."""
    pieces = store.tokenizer.pieces
    if len(pieces) == 257 and all(len(piece) == 1 for piece in pieces[:256]):
        return np.array([*(piece[0] for piece in pieces[:256]), 0], np.uint8)
    return np.array([*pieces, None], object)[:-1]  # the None keeps numpy from making one array of bytes
