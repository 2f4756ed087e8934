"""A document as it was read, and text that UTF-8 can hold."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Turn:
    """What one role said in a conversation."""

    role: str
    text: str


@dataclass(frozen=True)
class Document:
    """One text as it was read. `text` is None when there is none to keep; `problem` says what is wrong with it."""

    id: str
    text: str | None
    problem: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label -> value, of what is known about the document."""
    weight: float = 1.0
    """In the loss, at least 0."""
    turns: tuple[Turn, ...] = ()
    """A conversation; `text` is then its turns' texts, one after another."""


def clean_text(text: str) -> tuple[str, bool]:
    """`text` without lone surrogates, which UTF-8 cannot hold: (text with U+FFFD instead, whether there was one)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), True
    return text, False


def decode(raw: bytes, encoding: str = "utf-8", start: bool = True) -> tuple[str, str | None]:
    """(text, problem) of bytes: line ends untouched, U+FFFD for what is broken; at the `start` of a file a byte order
    mark is left out."""
    name = codecs.lookup(encoding).name
    if name == "utf-8" and start:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    problem = None
    try:
        text = raw.decode(name)
    except UnicodeDecodeError as error:
        problem = f"not {name.upper()} at byte {error.start}"
        text = raw.decode(name, "replace")
    if name == "utf-8":
        return text, problem
    text, broken = clean_text(text.removeprefix("\ufeff") if start else text)  # some escapes make surrogates
    return text, problem or ("a lone surrogate" if broken else None)
