"""Sections of text, tables and pictures, and how they look in Markdown; `card_html` makes pages of them.

Every string that comes from a corpus passes through `visible` and an escape: control characters are shown by number.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

LONGEST = 160
"""Characters of one string in a table; more are cut."""
_NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?( ?(%|[kMGT]?B))?|")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Tiles:
    """A few numbers that matter most: (name, value)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under a head; columns of numbers are set to the right. An empty head: names and their values."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def numeric(self, column: int) -> bool:
        """Whether all of a column are numbers."""
        return bool(self.head) and all(_NUMBER.fullmatch(row[column]) for row in self.rows)


@dataclass(frozen=True)
class Stack:
    """Parts of a whole in one bar: (name, value, value as text)."""

    name: str
    items: Sequence[tuple[str, float, str]]


@dataclass(frozen=True)
class Bars:
    """One bar for each item, all from zero: (name, value, value as text)."""

    name: str
    items: Sequence[tuple[str, float, str]]


@dataclass(frozen=True)
class Histogram:
    """Neighboring columns: (lower edge, count)."""

    name: str
    items: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Code:
    """Text as it stands, under a caption."""

    caption: str
    text: str


Block = Text | Tiles | Table | Stack | Bars | Histogram | Code


@dataclass(frozen=True)
class Section:
    """Blocks under a title."""

    title: str
    blocks: Sequence[Block]


def visible(text: str, limit: int | None = None) -> str:
    """One line of what can be printed: other characters by their number, and no more than `limit` of all."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()


def lines_visible(text: str) -> str:
    """`visible` for text of several lines: line ends and tabs stay."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))


def size_text(nbytes: float) -> str:
    """Bytes for people: 12.1 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.{0 if unit == 'B' or nbytes >= 100 else 1}f} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.1f} TB"


def short(count: float) -> str:
    """A number for people: 12.1 M."""
    return f"{count:,}" if count < 1e6 else f"{count / 1e6:,.1f} M" if count < 1e9 else f"{count / 1e9:,.2f} G"


def share(part: float, whole: float) -> str:
    """A part of a whole: 12.1 %."""
    return f"{100 * part / whole if whole else 0:.1f} %"


# Markdown


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The sections as one Markdown text."""
    parts = [f"# {_md(title)}"]
    for section in sections:
        heading = [f"## {_md(section.title)}"] if section.title else []
        parts += [*heading, *map(_markdown, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = html.escape(visible(text, LONGEST * 4), quote=False)
    return re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", text)


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


@singledispatch
def _markdown(block: Block) -> str:
    raise AssertionError(block)


@_markdown.register
def _(block: Text) -> str:
    return _md(block.text)


@_markdown.register
def _(block: Tiles) -> str:
    return "\n".join(f"- {_md(name)}: **{_md(value)}**" for name, value in block.items)


@_markdown.register
def _(block: Table) -> str:
    head = block.head or [""] * max(map(len, block.rows), default=1)
    sides = ["---:" if block.numeric(i) else "---" for i in range(len(head))]
    cut = [[_md(visible(cell, LONGEST)) for cell in row] for row in (head, *block.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cut[0], sides, *cut[1:]])


@_markdown.register(Stack)
@_markdown.register(Bars)
@_markdown.register(Histogram)
def _(block: Stack | Bars | Histogram) -> str:
    items = [(visible(item[0], 40), item[1], visible(item[-1] if len(item) > 2 else f"{item[1]:,}", 40))
             for item in block.items]  # fmt: skip
    most = max((value for _, value, _ in items), default=0) or 1
    left, right = (max((len(item[i]) for item in items), default=0) for i in (0, 2))  # type: ignore[arg-type]
    rows = [f"{name:<{left}}  {shown:>{right}}  {'█' * round(30 * value / most)}" for name, value, shown in items]
    return f"{_md(block.name)}:\n\n" + _fenced("\n".join(row.rstrip() for row in rows))


@_markdown.register
def _(block: Code) -> str:
    return f"{_md(block.caption)}:\n\n" + _fenced(lines_visible(block.text))
