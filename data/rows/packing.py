"""What each way of packing would make of a corpus: the table behind the choice of `pack.mode`."""

from dataclasses import dataclass
from typing import get_args, get_type_hints

import numpy as np

from ..config import PackConfig
from ..prepared import Prepared
from .pack import Spans, pack
from .plan import choose_sides
from .split import Documents

MODES: tuple[str, ...] = get_args(get_type_hints(PackConfig)["mode"])


@dataclass(frozen=True)
class Packing:
    """One mode, over all training documents. A document of n tokens has n + 1 targets, its end among them."""

    mode: str
    rows: int
    padding: float
    """Share of positions in no document."""
    lost: int
    """Targets that are in no row."""
    cut: int
    """Documents that fit in a row and are cut all the same."""
    documents_a_row: float
    """Mean number of documents in a row."""
    headless: int
    """Targets whose document begins in another row."""


@dataclass(frozen=True)
class PackingReport:
    """Every mode on the same documents."""

    context: int
    documents: int
    targets: int
    chosen: str
    """The config's mode."""
    modes: tuple[Packing, ...]

    def lines(self) -> list[str]:
        """A table for people."""
        titles = ("mode", "rows", "padding", "tokens lost", "cut needlessly", "documents a row", "begun elsewhere")
        table = [titles, *(self._cells(packing) for packing in self.modes)]
        widths = [max(len(row[i]) for row in table) for i in range(len(titles))]
        lines = [
            f"{self.documents:,} training documents of {self.targets:,} tokens, in rows of {self.context:,} "
            f"(pack.mode is {self.chosen}):"
        ]
        for first, *rest in table:
            cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
            lines.append("  ".join([first.ljust(widths[0]), *cells]))
        return lines

    def _cells(self, packing: Packing) -> tuple[str, ...]:
        def share(part: int, whole: int) -> str:
            return f"{part:,} ({part / max(1, whole):.2%})"

        return (
            packing.mode,
            f"{packing.rows:,}",
            f"{packing.padding:.4%}",
            share(packing.lost, self.targets),
            share(packing.cut, self.documents),
            f"{packing.documents_a_row:.2f}",
            share(packing.headless, self.targets),
        )


def packing_report(prepared: Prepared, context: int | None = None) -> PackingReport:
    """The training documents of a corpus under each mode, in rows of `context`; None: as prepared. `pack.fim`, which
    takes a little room, is left out."""
    config, store = prepared.config, prepared.store
    context = context or prepared.context
    documents = Documents.gather(store, prepared.source_names)
    train, _, _ = choose_sides(documents, store, config.split, config.clean)
    by_source = [train.spans.take(np.flatnonzero(train.source == number)) for number in np.unique(train.source)]
    modes = tuple(measure(by_source, mode, context) for mode in MODES)
    return PackingReport(context, len(train.source), int(train.spans.length.sum()), config.pack.mode, modes)


def measure(by_source: list[Spans], mode: str, context: int) -> Packing:
    """One mode on the documents of each source."""
    rows = pieces = kept = cut = headless = 0
    for spans in by_source:
        packed = pack(spans, mode, context)
        parts = np.bincount(packed.span, minlength=len(spans.length))
        rows += int(packed.row[-1]) + 1
        pieces += len(packed.row)
        kept += int(packed.pieces.length.sum())
        cut += int(((parts > 1) & (spans.length <= context)).sum())
        headless += int(packed.pieces.length[packed.pieces.start > spans.start[packed.span]].sum())
    total = sum(int(spans.length.sum()) for spans in by_source)
    # a document has at most one piece in a row
    return Packing(mode, rows, 1 - kept / (rows * context), total - kept, cut, pieces / rows, headless)
