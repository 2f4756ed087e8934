"""Near duplicates: MinHash signatures, banding, and the clusters they make.

A signature holds, for each of K = bands x rows hash functions, the least hash of a document's word n-grams: two
documents agree in each place with probability J, the Jaccard similarity of their n-gram sets (Broder, 1997). Documents
that agree in all rows of some band are candidates, which of two with similarity J happens with probability
1 - (1 - J**rows)**bands; those that agree in at least `similarity` of all K places are put into one cluster.

Clusters depend on the texts alone, not on their order, their shards or the number of processes. Memory: about 16 bytes
for each document and band, and 4 K bytes for each distinct signature that has a candidate.
"""

from collections.abc import Iterator

import numpy as np

from ..config import NearConfig
from ..store import Store
from .derived import derived
from .shingles import mix, ngrams, texts, words

_PAIRS = 1 << 15  # compared at once
_WINDOW = 32
"""In a bucket of a band, a signature is compared to so many that follow it in the order of their hashes: to all, unless
the bucket is larger."""
_EMPTY = 0
"""Identity of a document without words: it is near to none."""


def clusters(store: Store, config: NearConfig, among: np.ndarray) -> np.ndarray:
    """A number for each document of the store, int64; documents with the same number are near duplicates.

    Only those in the mask `among` are considered; each of the others has a number of its own.
    """
    number, identity, bands = _identities(store, config, among)
    distinct, first, member = np.unique(identity, return_index=True, return_inverse=True)
    bands = bands[first]
    nodes = np.flatnonzero(_has_company(bands) & (distinct != _EMPTY))
    near = np.arange(len(distinct))
    if len(nodes):
        signatures = _signatures_of(store, config, number[first[nodes]])
        near[nodes] = nodes[_connect(bands[nodes], signatures, config)]
    own = np.arange(len(among)) + len(distinct)
    words_in = identity != _EMPTY
    own[number[words_in]] = near[member[words_in]]
    return own


def signatures(store: Store, config: NearConfig) -> Iterator[np.ndarray]:
    """uint32 (documents, K) of each shard; all ones for a document without words."""
    functions = _functions(config.bands * config.rows)
    name = f"minhash-{config.ngram}-{config.bands * config.rows}"

    def compute(shard: int) -> np.ndarray:
        parts = [sketch(group, config.ngram, functions) for group in texts(store, shard)]
        return np.concatenate([np.zeros((0, len(functions[0])), np.uint32), *parts])

    return derived(store, name, compute)


def sketch(group: list[bytes], ngram: int, functions: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The signatures of some texts, uint32 (texts, K)."""
    shingles = ngrams(words(group), ngram)
    found = np.full((len(group), len(functions[0])), 0xFFFFFFFF, np.uint32)
    some = np.flatnonzero(shingles.counts)
    if len(some):
        starts, values = shingles.offsets[some], (shingles.values >> np.uint64(32)).astype(np.uint32)
        hashed, least = np.empty_like(values), np.empty((len(functions[0]), len(some)), np.uint32)
        for place, (factor, offset) in enumerate(zip(*functions, strict=True)):
            np.multiply(values, factor, out=hashed)
            np.add(hashed, offset, out=hashed)
            np.minimum.reduceat(hashed, starts, out=least[place])
        found[some] = least.T
    return found


def _functions(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(odd factors, offsets) of functions x -> factor x + offset mod 2**32; the first are the same for any count."""
    state = mix(np.arange(1, 2 * count + 1, dtype=np.uint64)) >> np.uint64(32)
    return state[::2].astype(np.uint32) | np.uint32(1), state[1::2].astype(np.uint32)


def _identities(store: Store, config: NearConfig, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the documents in the mask: (number, hash of the whole signature, hash of each band (documents, bands))."""
    numbers, identities, bands = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)], [np.zeros((0, config.bands), "u8")]
    seen = 0
    for signature in signatures(store, config):
        here = np.flatnonzero(among[seen : seen + len(signature)])
        blocks = signature[here].reshape(len(here), config.bands, config.rows)
        hashed = np.zeros(blocks.shape[:2], np.uint64)
        for row in range(config.rows):
            hashed = mix(hashed + blocks[:, :, row])
        whole = np.zeros(len(here), np.uint64)
        for band in range(config.bands):
            whole = mix(whole + hashed[:, band])
        blank = (blocks == 0xFFFFFFFF).all((1, 2))
        numbers.append(here + seen)
        identities.append(np.where(blank, np.uint64(_EMPTY), whole))
        bands.append(hashed)
        seen += len(signature)
    return np.concatenate(numbers), np.concatenate(identities), np.concatenate(bands)


def _has_company(bands: np.ndarray) -> np.ndarray:
    """Which rows agree with another in some column, bool (rows,)."""
    found = np.zeros(len(bands), bool)
    for column in bands.T:
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        found[order[1:][same]] = True
        found[order[:-1][same]] = True
    return found


def _signatures_of(store: Store, config: NearConfig, numbers: np.ndarray) -> np.ndarray:
    """The signatures of documents, uint32 (documents, K)."""
    found = np.empty((len(numbers), config.bands * config.rows), np.uint32)
    seen = 0
    for signature in signatures(store, config):
        here = np.flatnonzero((numbers >= seen) & (numbers < seen + len(signature)))
        found[here] = signature[numbers[here] - seen]
        seen += len(signature)
    return found


def _connect(bands: np.ndarray, signatures: np.ndarray, config: NearConfig) -> np.ndarray:
    """For each signature, the first of its cluster. They are in the order of their hashes, and so is each bucket."""
    root = np.arange(len(bands))
    need = int(np.ceil(config.similarity * signatures.shape[1] - 1e-9))
    for column in bands.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        for distance in range(1, _WINDOW + 1):
            pair = np.flatnonzero(ordered[distance:] == ordered[:-distance])
            if not len(pair):
                break
            left, right = order[pair], order[pair + distance]
            apart = root[left] != root[right]
            left, right = left[apart], right[apart]
            close = _agreeing(signatures, left, right) >= need
            _merge(root, left[close], right[close])
    return root


def _agreeing(signatures: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """In how many places two signatures agree."""
    found = np.zeros(len(left), np.int64)
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        found[part] = np.count_nonzero(signatures[left[part]] == signatures[right[part]], axis=1)
    return found


def _merge(root: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join the clusters of each pair: the least number of a cluster is its root. Every entry is a root afterwards."""
    while len(left):
        a, b = root[left], root[right]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root[:] = root[root]
        apart = root[left] != root[right]
        left, right = left[apart], right[apart]
