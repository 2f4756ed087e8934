"""What kind of character each code point is: one table, built when it is first needed."""

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


@functools.cache
def kinds() -> np.ndarray:
    """The kind of each code point, uint8 (0x110000,)."""
    table = np.zeros(0x110000, np.uint8)
    category = unicodedata.category
    assigned = [*range(0x32400), *range(0xE0000, 0xE0200)]  # all else is for private use or for the future
    table[assigned] = [_BY_CATEGORY.get(category(chr(code))[0], OTHER) for code in assigned]
    table[[code for code in range(0x20, 0x3001) if chr(code).isspace()]] = SPACE
    table[9:14] = SPACE
    for first, last in _IDEOGRAPHS:
        part = table[first : last + 1]
        part[part == LETTER] = IDEOGRAPH
    return table
