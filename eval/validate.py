"""Held-out scores from additive sums: the same for any batch size and number of ranks. Score once, slice many.

B rows, T targets a row, S sources, D documents of the corpus, V values of a label.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

SUMS = ("nll", "tokens", "correct", "nll_text", "bytes")
"""Columns of the table of sums; `nll_text` is the nll of the targets that stand for text, those with bytes > 0."""
SCORES = ("nll", "ppl", "bpb", "accuracy")
IGNORED = -100
LONGEST = 60
"""Characters of a label's value in the name of a metric."""

Groups = Mapping[str, tuple[Tensor, Sequence[str]]]
"""Label -> (integer (D,): index of each document's value, -1: it has none; the V values)."""
Table = dict[str, dict[str, float]]
"""`nll ppl bpb accuracy tokens` by name."""


class Scored(Protocol):
    """What is read of a batch."""

    @property
    def targets(self) -> Tensor: ...  # int64 (B, T), -100 = not a target
    @property
    def bytes(self) -> Tensor: ...  # integer (B, T), UTF-8 bytes of each target, 0 for specials
    @property
    def source(self) -> Tensor: ...  # int64 (B,), index into source_names
    @property
    def document(self) -> Tensor | None: ...  # int64 (B, T), index into D, -1 = not a target; read only for groups


Batch = TypeVar("Batch", bound=Scored)


def evaluate(
    score: Callable[[Batch], tuple[Tensor, Tensor]],
    batches: Iterable[Batch],
    source_names: Sequence[str],
    reduce: Callable[[Tensor], Tensor],
    metrics: Callable[[dict[str, float]], Mapping[str, float]],
    groups: Groups | None = None,
) -> dict[str, float]:
    """`val/nll val/ppl val/bpb val/accuracy`, and the same under `val/<source>/` and, for each label in `groups`, under
    `val/<label>=<value>/`, wherever there is a target.

    `score(batch)` gives the nll in nats and whether the top guess was right, each (B, T); what it says at ignored
    targets is not read, not even a nan. `reduce` adds a tensor up over the ranks and is called once; `metrics` turns
    sums into means. Raises ValueError when no rank saw a target.
    """
    sources, labels = score_groups(score, batches, source_names, reduce, metrics, groups)
    named = {f"val/{name}/" if name else "val/": row for name, row in sources.items()}
    for label, table in labels.items():
        named |= {f"val/{name}/": row for name, row in zip(_metric_names(label, table), table.values(), strict=True)}
    return {f"{prefix}{key}": row[key] for prefix, row in named.items() for key in SCORES if key in row}


@torch.no_grad()
def score_groups(
    score: Callable[[Batch], tuple[Tensor, Tensor]],
    batches: Iterable[Batch],
    source_names: Sequence[str],
    reduce: Callable[[Tensor], Tensor],
    metrics: Callable[[dict[str, float]], Mapping[str, float]],
    groups: Groups | None = None,
) -> tuple[Table, dict[str, Table]]:
    """The same as tables: (by source name, with all of them first under `""`; for each label, by value)."""
    groups, tables, codes = groups or {}, list[Tensor](), list[Tensor]()
    for batch in batches:
        columns = _columns(*score(batch), batch)  # 5 times (B, T)
        if not tables:
            codes = [index.to(columns[0].device) for index, _ in groups.values()]
            # the last row of a label's table is for documents without a value
            sizes = [len(source_names), *(len(values) + 1 for _, values in groups.values())]
            tables = [columns[0].new_zeros(size, len(SUMS)) for size in sizes]
        # ignored filler rows may carry any source, ignored targets any document; their sums are 0
        rows = torch.stack([column.sum(dim=1) for column in columns], dim=1)  # (B, 5)
        tables[0].index_add_(0, batch.source.to(rows.device).clamp(min=0), rows)
        if codes:
            assert batch.document is not None
            each, document = torch.stack(columns, dim=-1).flatten(0, 1), batch.document.to(rows.device).flatten()
            for table, index in zip(tables[1:], codes, strict=True):
                table.index_add_(0, index[document].long() % len(table), each)
    if not tables:
        raise ValueError("nothing to evaluate: there are no validation batches")
    sums = iter([dict(zip(SUMS, row, strict=True)) for row in reduce(torch.cat(tables)).tolist()])
    by_source = _named(source_names, sums)
    total = {key: sum(row[key] for row in by_source.values()) for key in SUMS}
    if not total["tokens"]:
        raise ValueError("nothing to evaluate: the validation rows hold no target")
    by_label = {}
    for label, (_, values) in groups.items():
        by_label[label] = _scores(_named(values, sums), metrics)
        next(sums)  # documents without a value
    return _scores({"": total, **by_source}, metrics), by_label


def _columns(nll: Tensor, correct: Tensor, batch: Scored) -> list[Tensor]:
    """float64 (B, T) each, in the order of `SUMS`; 0 at ignored targets."""
    home = torch.device("cpu") if nll.device.type == "mps" else nll.device  # mps has no float64
    targets, size = batch.targets.to(home), batch.bytes.to(home)
    valid = targets != IGNORED
    exact = nll.to(home, torch.float64)
    zero = exact.new_zeros(())
    columns = (
        torch.where(valid, exact, zero),
        valid,
        valid & correct.to(home),
        torch.where(valid & (size > 0), exact, zero),
        torch.where(valid, size, 0),
    )
    return [column.to(torch.float64) for column in columns]


def _named(names: Iterable[str], sums: Iterator[dict[str, float]]) -> dict[str, dict[str, float]]:
    """As many of the sums as there are names, by name."""
    return {name: next(sums) for name in names}


def _scores(named: Mapping[str, dict[str, float]], metrics: Callable[[dict[str, float]], Mapping[str, float]]) -> Table:
    """Means of the rows that have a target."""
    table: Table = {}
    for name, sums in named.items():
        if sums["tokens"]:
            values = metrics(sums)
            table[name] = {key: float(values[key]) for key in SCORES if key in values} | {"tokens": int(sums["tokens"])}
    return table


def _metric_names(label: str, values: Iterable[str]) -> list[str]:
    """`label=value` for each value: printable, without a slash, not too long, no two alike."""
    names: list[str] = []
    for value in values:
        name = f"{_plain(label)}={_plain(value)}"
        again = sum(other.partition("~")[0] == name for other in names)
        names.append(f"{name}~{again + 1}" if again else name)
    return names


def _plain(text: str) -> str:
    """Printable, in one piece of a metric's name."""
    return "".join(c if c.isprintable() and c not in "/~" else "_" for c in text[:LONGEST])
