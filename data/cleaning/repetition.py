"""How much of a text repeats itself, from its tokens: the one statistic that is too dear to measure of every corpus."""

from collections.abc import Iterator

import numpy as np

from ..store import Store
from .derived import derived
from .shingles import mix, ngrams, texts, words

_NGRAM = 5


def repeated_ngrams(store: Store) -> Iterator[np.ndarray]:
    """For each shard, the share of each document's word 5-grams that stood before in it, float32 (documents,); 0 for
    one of fewer than 6 words."""

    def compute(shard: int) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *map(repetition, texts(store, shard))])

    return derived(store, f"repeated-{_NGRAM}", compute)


def repetition(group: list[bytes]) -> np.ndarray:
    """The statistic of some texts."""
    pieces = ngrams(words(group), _NGRAM)
    owner, counts = pieces.document, pieces.counts
    values = pieces.values ^ mix(owner.astype(np.uint64))  # apart from equal ones of other texts
    order = np.argsort(values)
    again = owner[order[1:]][values[order[1:]] == values[order[:-1]]]
    repeated = np.bincount(again, minlength=len(group))
    return np.divide(repeated, counts, out=np.zeros(len(group)), where=counts > 0).astype(np.float32)
