"""Fill in the middle (Bavarian et al., 2022, arXiv:2207.14255): the tokens of a piece in another order.

A piece of n (input, target) pairs is a token x before it and n tokens, of which the last one may be E. Cut in three
parts `p m s`, it becomes n + 3 pairs, all of which are trained on:

    PSM    x PREFIX p SUFFIX s MIDDLE m [E]
    SPM    x PREFIX SUFFIX s MIDDLE p m [E]

Which documents, and which of the two, follows from a hash of the text; where a piece is cut, from (seed, epoch, row,
piece).
"""

import hashlib

import numpy as np

from ..config import FimConfig
from ..errors import DataError
from ..tokenizer import FIM, Tokenizer
from .order import mix

EXTRA = 3
"""Positions that a piece takes beside its pairs."""
PSM, SPM = 1, 2


def special_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """Ids of PREFIX, SUFFIX and MIDDLE. Raises DataError when the tokenizer lacks one."""
    missing = [name for name in FIM if name not in tokenizer.specials]
    if missing:
        raise DataError(
            f"data.pack.fim: the tokenizer lacks {', '.join(missing)}; name them in data.tokenizer.specials"
        )
    prefix, suffix, middle = (tokenizer.specials[name] for name in FIM)
    return prefix, suffix, middle


def choose(hashes: np.ndarray, config: FimConfig) -> np.ndarray:
    """For texts with these hashes, uint64 (documents, 2): PSM, SPM or 0, int8 (documents,)."""
    # the first word of a hash decides the split, so another one must decide here
    high, low = hashes[:, 1] >> np.uint64(32), hashes[:, 1] & np.uint64(0xFFFFFFFF)
    kind = np.where(low < config.spm * 2.0**32, SPM, PSM)
    return np.where(high < config.rate * 2.0**32, kind, 0).astype(np.int8)


def draw(seed: int, epoch: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Two random numbers for each piece in an epoch, uint64 (pieces, 2). `piece` is its number in the plan, which says
    its row and place."""
    digest = hashlib.blake2b(repr((seed, "fim")).encode(), digest_size=16).digest()
    one, two = np.frombuffer(digest, "<u8")
    key = two ^ mix(epoch.astype(np.uint64), one)
    return np.stack([mix(2 * piece.astype(np.uint64) + np.uint64(i), key) for i in range(2)], -1)


def cut(length: int, numbers: tuple[int, int]) -> tuple[int, int]:
    """Where a text of `length` tokens is cut, 0 <= first <= second <= length, each such pair as likely as another."""
    a, b = numbers[0] % (length + 2), numbers[1] % (length + 1)
    b += b >= a  # now two different ones of length + 2
    return min(a, b), max(a, b) - 1


def arrange(
    ids: np.ndarray, kind: int, numbers: tuple[int, int], specials: tuple[int, int, int], end_id: int
) -> np.ndarray:
    """The n + 4 tokens that the n + 1 of a piece, x first, become; `numbers` say where its text is cut."""
    stop = len(ids) - int(ids[-1] == end_id)  # E is no token of any text
    first, second = cut(stop - 1, numbers)
    before, middle, after = np.split(ids[1:stop], (first, second))
    prefix_id, suffix_id, middle_id = np.array(specials, ids.dtype)[:, None]
    if kind == PSM:
        parts = (prefix_id, before, suffix_id, after, middle_id, middle)
    else:
        parts = (prefix_id, suffix_id, after, middle_id, before, middle)
    return np.concatenate([ids[:1], *parts, ids[stop:]])
