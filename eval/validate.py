"""Held-out scores from additive sums: the same for any batch size and number of ranks.

B rows, T targets a row, S sources.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

SUMS = ("nll", "tokens", "correct", "nll_text", "bytes")
"""Columns of the table of sums; `nll_text` is the nll of the targets that stand for text, those with bytes > 0."""
SCORES = ("nll", "ppl", "bpb", "accuracy")
IGNORED = -100


class Scored(Protocol):
    """What is read of a batch."""

    @property
    def targets(self) -> Tensor: ...  # int64 (B, T), -100 = not a target
    @property
    def bytes(self) -> Tensor: ...  # integer (B, T), UTF-8 bytes of each target, 0 for specials
    @property
    def source(self) -> Tensor: ...  # int64 (B,), index into source_names


Batch = TypeVar("Batch", bound=Scored)


def evaluate(
    score: Callable[[Batch], tuple[Tensor, Tensor]],
    batches: Iterable[Batch],
    source_names: Sequence[str],
    reduce: Callable[[Tensor], Tensor],
    metrics: Callable[[dict[str, float]], Mapping[str, float]],
) -> dict[str, float]:
    """`val/nll val/ppl val/bpb val/accuracy`, and the same under `val/<source>/` for each source with a target.

    `score(batch)` gives the nll in nats and whether the top guess was right, each (B, T); what it says at ignored
    targets is not read, not even a nan. `reduce` adds a tensor up over the ranks and is called once; `metrics` turns
    sums into means. Raises ValueError when no rank saw a target.
    """
    table = score_sources(score, batches, source_names, reduce, metrics)
    prefixes = {name: f"val/{name}/" if name else "val/" for name in table}
    return {f"{prefixes[name]}{key}": row[key] for name, row in table.items() for key in SCORES if key in row}


@torch.no_grad()
def score_sources(
    score: Callable[[Batch], tuple[Tensor, Tensor]],
    batches: Iterable[Batch],
    source_names: Sequence[str],
    reduce: Callable[[Tensor], Tensor],
    metrics: Callable[[dict[str, float]], Mapping[str, float]],
) -> dict[str, dict[str, float]]:
    """The same as a table: `nll ppl bpb accuracy tokens` by source name, with all of them first under `""`."""
    table = None
    for batch in batches:
        nll, correct = score(batch)
        rows = _row_sums(nll, correct, batch)  # (B, 5)
        if table is None:
            table = rows.new_zeros(len(source_names), len(SUMS))
        # ignored filler rows may carry any source; their sums are 0
        table.index_add_(0, batch.source.to(rows.device).clamp(min=0), rows)
    if table is None:
        raise ValueError("nothing to evaluate: there are no validation batches")
    sums = [dict(zip(SUMS, row, strict=True)) for row in reduce(table).tolist()]
    total = {key: sum(row[key] for row in sums) for key in SUMS}
    if not total["tokens"]:
        raise ValueError("nothing to evaluate: the validation rows hold no target")
    named = {"": total, **dict(zip(source_names, sums, strict=True))}
    return {name: _scores(row, metrics) for name, row in named.items() if row["tokens"]}


def _row_sums(nll: Tensor, correct: Tensor, batch: Scored) -> Tensor:
    """float64 (B, 5), in the order of `SUMS`."""
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
    return torch.stack([column.to(torch.float64).sum(dim=1) for column in columns], dim=1)


def _scores(sums: dict[str, float], metrics: Callable[[dict[str, float]], Mapping[str, float]]) -> dict[str, float]:
    values = metrics(sums)
    return {key: float(values[key]) for key in SCORES if key in values} | {"tokens": int(sums["tokens"])}
