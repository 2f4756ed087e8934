"""What is measured of texts, against counts by hand and a slow reference."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning import measures as statistics
from data.cleaning.measures import measure
from data.cleaning.repetition import repetition
from data.config import STATISTICS


def kind(character: str) -> str:
    if character.isspace() and not "\x1c" <= character <= "\x1f":
        return "space"
    return {"L": "letter", "M": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "symbol")


def reference(text: str) -> dict[str, float]:
    """Every statistic by plain loops."""
    kinds = [kind(character) for character in text]
    words, inside = list[int](), False
    for each in kinds:
        if each in ("letter", "digit"):
            words[-1:] = [words[-1] + 1] if inside else [*words[-1:], 1]
        inside = each in ("letter", "digit")
    lines = [line for line in text.split("\n") if any(kind(character) != "space" for character in line)]
    again = [line for place, line in enumerate(lines) if line in lines[:place]]
    chars, nbytes = len(text), len(text.encode())
    return {
        "chars": chars,
        "words": len(words),
        "lines": len(lines),
        "mean_word": sum(words) / len(words) if words else 0,
        "mean_line": sum(map(len, lines)) / len(lines) if lines else 0,
        "max_line": max(map(len, lines), default=0),
        "letters": kinds.count("letter") / chars if chars else 0,
        "digits": kinds.count("digit") / chars if chars else 0,
        "symbols": kinds.count("symbol") / chars if chars else 0,
        "whitespace": kinds.count("space") / chars if chars else 0,
        "duplicate_lines": sum(len(line.encode()) for line in again) / nbytes if nbytes else 0,
    }


def check(texts: Sequence[str]) -> None:
    found = measure([text.encode() for text in texts])
    assert set(found) == set(STATISTICS) - {"repeated_ngrams"}
    for name, values in found.items():
        assert values.dtype == np.float32 and values.shape == (len(texts),)
        assert values.tolist() == [np.float32(reference(text)[name]) for text in texts], name


def test_by_hand() -> None:
    text = "Héllo wörld 42!\n\n  \nx = 1\nx = 1\r\nx = 1\n\u4e2d\u6587 \u3000"
    found = {name: values[0] for name, values in measure([text.encode()]).items()}
    assert (found["chars"], found["words"], found["lines"], found["max_line"]) == (43, 10, 5, 15)
    assert found["mean_word"] == np.float32((5 + 5 + 2 + 6 + 2) / 10)
    assert found["mean_line"] == np.float32((15 + 5 + 6 + 5 + 4) / 5)
    assert found["letters"] == np.float32(15 / 43) and found["digits"] == np.float32(5 / 43)
    assert found["symbols"] == np.float32(4 / 43) and found["whitespace"] == np.float32(19 / 43)
    assert found["duplicate_lines"] == np.float32(5 / len(text.encode()))  # the one with \r is another line


ALPHABET = (
    "ab1_ .\n\n\r\t\x00\x1c\x7f\x85\u00a0\u00e9\u0301\u00b2\u0663\u200b\u2028\u3000\u4e2d\uac00\ufffd"
    "\U0001f600\U00020000\U0010ffff"
)
lines = st.lists(st.text(ALPHABET, max_size=30) | st.sampled_from(["same line of text", "if x:", ""]), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines.map("\n".join) | st.text(max_size=40), max_size=6))
def test_against_a_reference(texts: list[str]) -> None:
    check([text.encode(errors="replace").decode() for text in texts])


def test_lines_that_differ_in_the_middle_alone() -> None:
    ends = "12345678"
    long = ["y" * n for n in (8, 9, 16, 17, 24, 25, 1000, 1024, 1025, 5000)]
    middles = [ends + "x" * n + ends for n in range(60)] + [ends + "x" * n + "z" + ends for n in range(60)]
    check(["\n".join(middles + middles[:30] + long + long), "\n".join(middles), "a\na\na"])


def test_groups_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i}\n" * (i % 5) + "\u00e9" * (i % 3) for i in range(50)]
    whole = measure([text.encode() for text in texts])
    monkeypatch.setattr(statistics, "_GROUP", 64)
    for name, values in measure([text.encode() for text in texts]).items():
        assert np.array_equal(values, whole[name])
    assert all(len(values) == 0 for values in measure([]).values())


def test_every_code_point_is_of_its_kind() -> None:
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    found = statistics.kinds(np.array(points))
    names = {"space": [statistics.SPACE], "digit": [statistics.DIGIT], "letter": [3, 4], "symbol": [0]}
    assert all(its in names[kind(chr(point))] for point, its in zip(points, found.tolist(), strict=True))


def test_repeated_ngrams() -> None:
    twelve = " ".join(f"w{i}" for i in range(12))
    texts = [twelve, f"{twelve}. {twelve.upper()}", "one two three", "", "a b c d e a b c d e", "x " * 20]
    found = repetition([text.encode() for text in texts])
    assert found.tolist() == [0, np.float32(8 / 20), 0, 0, np.float32(1 / 6), np.float32(15 / 16)]
