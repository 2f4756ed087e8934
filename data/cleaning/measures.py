"""What is measured of every text while it is encoded, as columns of the store that bounds are held against.

Characters are code points; `data.characters` says which are letters (marks included), digits and white space, and all
others are symbols. A word is a run of letters and digits. A line ends at U+000A, which is no part of it; a line of
white space alone counts nowhere. `duplicate_lines` is the bytes of lines that stood before in the text, compared byte
for byte, over all bytes of the text. Shares are of all characters. Where there is nothing to divide by, it is 0.

Values are float32: counts above 2**24 are rounded. Texts are measured many at once, a byte of each step's arrays for a
byte of text, padded with 0xFF, which is in no UTF-8; characters beyond ASCII are looked up one by one.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from .characters import DIGIT, LETTER, SPACE, kinds

_GROUP = 1 << 18  # bytes measured at once: what the processor's cache holds
_LONGEST = 1 << 8  # bytes of a line that is hashed word by word
_ODD = np.uint64(0x9E3779B97F4A7C15)
_NAMES = ("chars", "words", "lines", "mean_word", "mean_line", "max_line", "letters", "digits", "symbols", "whitespace",
          "duplicate_lines")  # fmt: skip


def measure(texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """One float32 array (documents,) for each statistic of UTF-8 texts, but for those derived from tokens."""
    parts = [_Texts(group).measure() for group in _groups(texts)]
    with np.errstate(invalid="ignore"):
        return {
            name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]).astype(np.float32) for name in _NAMES
        }


def _groups(texts: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    first, size = 0, 0
    for number, text in enumerate(texts):
        if size and size + len(text) > _GROUP:
            yield texts[first:number]
            first, size = number, 0
        size += len(text) + 1
    if size:
        yield texts[first:]


class _Texts:
    """Some texts side by side, each padded to whole words of 8 bytes, at least one byte of padding after it."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.sizes = np.array([len(text) for text in texts], np.int64)
        padded = (self.sizes // 8 + 1) * 8
        self.starts = np.cumsum(padded) - padded
        self.buffer = b"".join([*map(bytes.ljust, texts, padded.tolist(), [b"\xff"] * len(texts)), b"\xff" * 8])
        self.raw = np.frombuffer(self.buffer, np.uint8)
        self.ascii = all(map(bytes.isascii, texts))

    def measure(self) -> dict[str, np.ndarray]:
        """Every statistic, float64 (texts,)."""
        raw = self.raw
        letter = ((raw | np.uint8(32)) - np.uint8(97)) < 26
        digit = (raw - np.uint8(48)) < 10
        space = ((raw - np.uint8(9)) < 5) | (raw == 32)
        word, blank, tail = letter | digit, space, None  # `word` and `blank` hold whole characters, the others one byte
        if not self.ascii:
            tail = (raw & np.uint8(0xC0)) == 0x80
            word, blank = self._mark_wide(letter, digit, space, word)
        chars = self.sizes - (0 if tail is None else self._count(tail))
        letters, digits, spaces = self._count(letter), self._count(digit), self._count(space)
        words = np.empty_like(word)
        words[0] = word[0]
        np.greater(word[1:], word[:-1], out=words[1:])
        number = self._count(words)
        return {
            "chars": chars.astype(np.float64),
            "words": number.astype(np.float64),
            "mean_word": _ratio(letters + digits, number),
            "letters": _ratio(letters, chars),
            "digits": _ratio(digits, chars),
            "symbols": _ratio(chars - letters - digits - spaces, chars),
            "whitespace": _ratio(spaces, chars),
            **self._lines(blank | (raw == 0xFF), tail),
        }

    def _count(self, mask: np.ndarray) -> np.ndarray:
        """How many are true in each text, int64 (texts,). The top byte of the product is the sum of eight."""
        eights = (mask.view(np.uint64) * np.uint64(0x0101010101010101)) >> np.uint64(56)
        return np.add.reduceat(eights, self.starts // 8).astype(np.int64)

    def _mark_wide(
        self, letter: np.ndarray, digit: np.ndarray, space: np.ndarray, word: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sort characters beyond ASCII into the masks, at their first bytes; (word, blank) have all their bytes."""
        raw = self.raw
        first = np.flatnonzero((raw - np.uint8(0xC2)) < 0x33)
        lead = raw[first].astype(np.int32)
        width = 2 + (lead >= 0xE0) + (lead >= 0xF0)
        code = lead & (0x7F >> width)
        for step in (1, 2, 3):
            more = raw[first + step] & np.uint8(0x3F)  # the buffer ends in padding
            code = np.where(width > step, code << 6 | more, code)
        kind = kinds(code)
        letter[first], digit[first], space[first] = kind >= LETTER, kind == DIGIT, kind == SPACE
        blank = space.copy()
        for step in range(4):
            at, its = first[width > step] + step, kind[width > step]
            word[at], blank[at] = its >= DIGIT, its == SPACE
        return word, blank

    def _lines(self, blank: np.ndarray, tail: np.ndarray | None) -> dict[str, np.ndarray]:
        ends_here = self.raw == 10
        ends_here[self.starts + self.sizes] = True
        end = np.flatnonzero(ends_here)
        per_text = self._count(ends_here)
        text = np.repeat(np.arange(len(per_text)), per_text)
        begin = np.concatenate([[0], end[:-1] + 1])
        begin[np.cumsum(per_text) - per_text] = self.starts
        seen = np.minimum.reduceat(blank.view(np.uint8), begin) == 0
        begin, end, text = begin[seen], end[seen], text[seen]
        length = end - begin
        if tail is not None:
            tails = np.flatnonzero(tail)
            length = length - (np.searchsorted(tails, end) - np.searchsorted(tails, begin))
        lines = np.bincount(text, minlength=len(per_text))
        longest, some = np.zeros(len(per_text)), lines > 0
        if some.any():
            longest[some] = np.maximum.reduceat(length, (np.cumsum(lines) - lines)[some])
        again = self._repeated(begin, end - begin, text)
        return {
            "lines": lines.astype(np.float64),
            "mean_line": _ratio(np.bincount(text, length, len(per_text)), lines),
            "max_line": longest,
            "duplicate_lines": _ratio(np.bincount(text[again], (end - begin)[again], len(per_text)), self.sizes),
        }

    def _repeated(self, begin: np.ndarray, length: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Which lines are not the first of their kind in their text, as indices; of equals any may pass for the first.

        Most are alone with a hash of their length and their first and last 8 bytes; only the others are read whole.
        """
        if len(begin) < 2:
            return np.zeros(0, np.int64)
        words = np.ndarray((len(self.raw) - 7,), "<u8", self.buffer, 0, (1,))
        short = length < 8
        first = words[begin]
        first[short] &= (np.uint64(1) << (8 * length[short]).astype(np.uint64)) - np.uint64(1)
        key = first * _ODD + (text << 32 | length).astype(np.uint64)
        last = words[begin + np.maximum(length - 8, 0)]
        last[short] = 0
        key = ((key ^ key >> np.uint64(29)) * _ODD + last) * _ODD
        bucket = (key >> np.uint64(61 - len(begin).bit_length())).astype(np.int64)
        alike = np.flatnonzero(np.bincount(bucket)[bucket] > 1)
        alike = alike[np.argsort(-length[alike])]
        key = self._hashes(words, begin[alike], length[alike], key[alike])
        order = np.argsort(key)
        return alike[order[1:][key[order[1:]] == key[order[:-1]]]]

    def _hashes(self, words: np.ndarray, begin: np.ndarray, length: np.ndarray, key: np.ndarray) -> np.ndarray:
        """`key`, which knows the ends of each line, changed in place by all that is between; longest lines first."""
        long = int(np.count_nonzero(length > _LONGEST))
        for i in range(long):
            line = self.buffer[begin[i] : begin[i] + length[i]]
            key[i] ^= np.frombuffer(hashlib.blake2b(line, digest_size=8).digest(), "<u8")[0]
        at, stop = 8, len(key)
        while (stop := long + int(np.count_nonzero(length[long:stop] > at + 8))) > long:
            some = key[long:stop]
            some ^= some >> np.uint64(29)
            some *= _ODD
            some += words[begin[long:stop] + at]
            at += 8
        return key


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(below)), where=below > 0)
