"""Rows as a model sees them, for people: tokens, boundaries, what is a target, and which documents they are from.

A piece of a document is shown as its inputs and, last, the target of its last input, so that a whole document reads
`<|endoftext|> text <|endoftext|>`. A token is *learned* when it is the target of the one before it.
"""

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..prepared import Prepared
from ..rows.batch import IGNORE, RowReader
from ..rows.fim import PSM, SPM
from ..rows.plan import RowPlan
from .contents import document_id
from .markup import esc, page
from .page import visible

_FIM = {PSM: "fill in the middle: prefix first", SPM: "fill in the middle: suffix first"}


@dataclass(frozen=True)
class Cell:
    """One token."""

    id: int
    raw: bytes
    """Its text; empty for a special."""
    name: str
    """Of a special, else empty."""
    learned: bool
    weight: float
    """In the loss; 0 when it is not learned."""

    @property
    def text(self) -> str:
        """What to show: nothing but printable characters and, after `↵`, line ends."""
        if self.name:
            return visible(self.name)
        text = self.raw.decode("utf-8", "backslashreplace").replace("\t", "→   ")
        return "↵\n".join(map(visible, text.split("\n")))


@dataclass(frozen=True)
class Piece:
    """A run of one document."""

    about: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Row:
    """A row; `about` says which, and how much of it is padding."""

    about: str
    pieces: tuple[Piece, ...]


def view_rows(prepared: Prepared, side: str, numbers: Sequence[int], epochs: Sequence[int], seed: int) -> list[Row]:
    """The rows with these numbers of a side, each in its epoch of a run with this seed."""
    plan, names = prepared.train if side == "train" else prepared.val, Names(prepared)
    reader = RowReader(prepared, plan, seed, documents=False)
    (batch,) = reader.read(np.array(numbers, np.int64), np.array(epochs, np.int64), len(numbers), pin=False)
    columns = (x.tolist() for x in (batch.tokens, batch.targets, batch.positions, batch.weights))
    rows = zip(numbers, zip(*columns, strict=True), strict=True)
    return [_view_row(names, plan, side, number, content) for number, content in rows]


class Names:
    """What documents and specials are called."""

    def __init__(self, prepared: Prepared) -> None:
        self.store, self.tokenizer = prepared.store, prepared.tokenizer
        self.specials = {number: name for name, number in self.tokenizer.specials.items()}
        self.first = np.cumsum([0, *(shard.documents for shard in self.store.shards)])
        self.labels = {name: self.store.label(name) for name in self.store.label_names}

    def about(self, shard: int, start: int, length: int) -> str:
        """Which tokens of which document begin at input `start` of a shard, with its labels."""
        offsets = self.store.column("offsets")[shard]
        document = int(np.searchsorted(offsets, start, side="right")) - 1
        begin, end = (int(x) for x in offsets[document : document + 2])
        number = self.first[shard] + document
        told = [document_id(self.store, shard, document)]
        told += [
            f"{name} {values[codes[number]]}" for name, (codes, values) in self.labels.items() if codes[number] >= 0
        ]
        first, last, count = start - begin + 1, start - begin + length, end - begin - 1
        part = (
            "all"
            if first == 1 and last > count
            else "its end"
            if first > count
            else f"{first:,} to {min(last, count):,}"
        )
        return " · ".join([*(visible(each, 120) for each in told), f"{part} of {count:,} tokens"])

    def cell(self, token: int, learned: bool, weight: float) -> Cell:
        """One token to show."""
        raw = self.tokenizer.pieces[token]
        name = "" if raw else self.specials.get(token, f"<id {token}>")
        return Cell(token, raw, name, learned, weight)


def _view_row(names: Names, plan: RowPlan, side: str, number: int, content: tuple[list[Any], ...]) -> Row:
    tokens, targets, positions, weights = content
    own = slice(plan.row_ptr[number], plan.row_ptr[number + 1])
    at, pieces = 0, []
    columns = (plan.shard, plan.start, plan.length, plan.size, plan.fim, plan.weight)
    for shard, start, length, size, kind, weight in zip(*(x[own].tolist() for x in columns), strict=True):
        stop = at + size
        shown = [names.cell(tokens[at], False, 0.0)]
        for place in range(at, stop):
            learned = targets[place] != IGNORE
            if place + 1 < stop or learned:  # what is after the last input is known only as a target
                token = tokens[place + 1] if place + 1 < stop else targets[place]
                shown.append(names.cell(token, learned, weights[place] if learned else 0.0))
        about = [names.about(shard, start, length), f"positions {positions[at]} to {positions[stop - 1]}"]
        about += [f"weight {weight:g}"] if weight != 1 else []
        about += [_FIM[kind]] if kind else []
        pieces.append(Piece(" · ".join(about), tuple(shown)))
        at = stop
    count = sum(target != IGNORE for target in targets)
    plural = "s" * (len(pieces) > 1)
    about_row = (
        f"row {number:,} of {plan.rows:,} ({side}, {plan.names[plan.source[number]]}): {len(pieces)} piece{plural}"
    )
    about_row += f", {len(tokens):,} positions, {count:,} targets, {len(tokens) - at:,} padding"
    return Row(about_row, tuple(pieces))


# In a terminal

_RESET = "\x1b[0m"
_KINDS = {  # background of even and odd tokens; both colors are set, so that every theme can show them
    "learned": ("\x1b[38;5;16;48;5;195m", "\x1b[38;5;16;48;5;229m"),
    "ignored": ("\x1b[38;5;244;48;5;255m", "\x1b[38;5;244;48;5;253m"),
    "special": ("\x1b[38;5;231;48;5;55m", "\x1b[38;5;231;48;5;55m"),
    "special only read": ("\x1b[38;5;55;48;5;255m", "\x1b[38;5;55;48;5;253m"),
}
_WEIGHTED = "\x1b[4m"


def _kind(cell: Cell) -> str:
    if cell.name:
        return "special" if cell.learned else "special only read"
    return "learned" if cell.learned else "ignored"


def _weighted(cell: Cell) -> bool:
    return cell.learned and cell.weight != 1


def in_color(rows: Iterable[Row]) -> Iterator[str]:
    """Lines for a terminal; no control sequence in them is from the corpus."""
    samples = "".join(f"{_KINDS[kind][0]} {told} {_RESET} " for kind, told in (
        ("learned", "target"), ("ignored", "only read"), ("special", "special target"),
        ("special only read", "special only read")))  # fmt: skip
    yield f"{samples}{_KINDS['learned'][0]}{_WEIGHTED} weight not 1 {_RESET}"
    for row in rows:
        yield f"\n\x1b[1m{row.about}{_RESET}"
        for piece in row.pieces:
            yield f"\x1b[36m▸ {piece.about}{_RESET}"
            yield "".join(_painted(cell, i) for i, cell in enumerate(piece.cells))


def _painted(cell: Cell, i: int) -> str:
    style = _KINDS[_kind(cell)][i % 2] + (_WEIGHTED if _weighted(cell) else "")
    return "\n".join(f"{style}{line}{_RESET}" if line else "" for line in cell.text.split("\n"))


def in_plain(rows: Iterable[Row]) -> Iterator[str]:
    """Lines for a file: `│` between tokens, `⟦ ⟧` around specials, `« »` around what is no target."""
    yield "│ between tokens, ⟦ ⟧ around specials, « » around what is only read"
    for row in rows:
        yield f"\n{row.about}"
        for piece in row.pieces:
            yield f"▸ {piece.about}"
            yield "│".join(_marked(cell) for cell in piece.cells)


def _marked(cell: Cell) -> str:
    text = f"⟦{cell.text}⟧" if cell.name else cell.text
    return text if cell.learned else f"«{text}»"


# In a browser

_STYLE = """
.row{margin:1.6rem 0}
.row h2{font-size:1rem;border-top:1px solid var(--line)}
.piece{margin:.8rem 0}
.piece h3{font-size:.82rem;font-weight:500;color:var(--soft);margin:0 0 .3rem}
.piece pre{line-height:1.7}
.l0{background:#cfe6f7;color:#101820}.l1{background:#fbe9b7;color:#101820}
.i0,.i1{color:var(--soft)}.i1{background:rgba(128,128,128,.14)}
.s{background:#6157b8;color:#fff;border-radius:.2rem;padding:0 .2rem}
.r{border:1px solid var(--c5);color:var(--c5);border-radius:.2rem;padding:0 .2rem}
.w{text-decoration:underline 2px #c0504d}
.legend span{padding:.1rem .5rem;margin-right:.5rem;font-size:.85rem}
.legend .l0{padding-right:0;margin-right:0}.legend .l1{padding-left:0}
@media(prefers-color-scheme:dark){.l0{background:#21435c;color:#e4e8ee}.l1{background:#4b4320;color:#e4e8ee}}
"""


def in_html(title: str, rows: Iterable[Row]) -> str:
    """One page."""
    parts = [f"<h1>{esc(title)}</h1>", '<p class="legend"><span class="l0">tar</span><span class="l1">gets</span>'
             '<span class="i1">only read</span><span class="s">special target</span>'
             '<span class="r">special only read</span>'
             '<span class="w">weight not 1</span></p>']  # fmt: skip
    for row in rows:
        parts.append(f'<section class="row"><h2>{esc(row.about)}</h2>')
        for piece in row.pieces:
            cells = "".join(_span(cell, i) for i, cell in enumerate(piece.cells))
            parts.append(f'<div class="piece"><h3>{esc(piece.about)}</h3><pre>{cells}</pre></div>')
        parts.append("</section>")
    return page(title, "\n".join(parts), _STYLE)


def _span(cell: Cell, i: int) -> str:
    weight = f", weight {cell.weight:g}" if _weighted(cell) else ""
    kind = ("s" if cell.learned else "r") if cell.name else f"{'l' if cell.learned else 'i'}{i % 2}"
    return f'<span class="{kind}{" w" if weight else ""}" title="id {cell.id}{weight}">{html.escape(cell.text)}</span>'
