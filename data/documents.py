"""A document as it was read, and text that UTF-8 can hold."""

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


def decode(raw: bytes) -> tuple[str, str | None]:
    """(text, problem) of a file's bytes: UTF-8 without its byte order mark, line ends untouched."""
    try:
        return raw.removeprefix(b"\xef\xbb\xbf").decode(), None
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start}"
        return raw.removeprefix(b"\xef\xbb\xbf").decode(errors="replace"), problem
