"""What kind of character each code point is: by Unicode's categories."""

import functools
import unicodedata

import numpy as np

OTHER, SPACE, DIGIT, LETTER, IDEOGRAPH = range(5)
"""Kinds: SPACE is Unicode's White_Space (`str.isspace` but for U+001C to U+001F); DIGIT the categories N*; LETTER L*
and M* (an accent or vowel sign belongs to its letter); IDEOGRAPH those letters that are written without spaces between
words in Chinese and Japanese; OTHER all else: punctuation, symbols, control characters, unassigned code points."""

_IDEOGRAPHS = ((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
               (0xF900, 0xFAFF), (0x20000, 0x323AF))  # fmt: skip
_BY_CATEGORY = {"L": LETTER, "M": LETTER, "N": DIGIT}


_UNKNOWN = 255


@functools.cache
def _table() -> np.ndarray:
    table = np.full(0x110000, _UNKNOWN, np.uint8)
    table[:128] = [_kind(code) for code in range(128)]
    return table


def kinds(codes: np.ndarray) -> np.ndarray:
    """The kind of each code point, uint8 of the shape of `codes`. What was looked up once is in a table from then on:
    to fill it for all of Unicode would take longer than to measure a small corpus."""
    table = _table()
    found = table[codes]
    new = np.unique(codes[found == _UNKNOWN])
    if len(new):
        table[new] = [_kind(code) for code in new.tolist()]
        found = table[codes]
    return found


def _kind(code: int) -> int:
    letter = chr(code)
    if letter.isspace() and not 0x1C <= code <= 0x1F:
        return SPACE
    kind = _BY_CATEGORY.get(unicodedata.category(letter)[0], OTHER)
    ideograph = kind == LETTER and any(first <= code <= last for first, last in _IDEOGRAPHS)
    return IDEOGRAPH if ideograph else kind
