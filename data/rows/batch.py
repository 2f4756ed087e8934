"""Rows as tensors: what a batch is, and how pieces of mapped shards become one.

N rows that are read together   T context   P pieces in them
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..prepared import Prepared
from . import fim
from .plan import RowPlan

IGNORE = -100
"""Target of a position that is none."""


@dataclass(frozen=True)
class Batch:
    """Rows as the model and the loss take them; all (B, T) but `source`. Padding has target -100 and weight 0."""

    tokens: Tensor
    """int64."""
    targets: Tensor
    """int64: the id that follows each token in its document, or -100."""
    positions: Tensor
    """int64: from 0 in each document; with document_mask off, 0 .. T-1 in each row."""
    weights: Tensor
    """float32: importance in the loss: the document's weight, and 0 where there is no target."""
    bytes: Tensor
    """int32: UTF-8 bytes of each target; 0 for specials and where there is no target."""
    source: Tensor
    """int64 (B,): index into the source names."""
    single_document: bool
    """Plain causal attention is right: no row holds two documents, or the document mask is off."""
    weighted: bool = True
    """Some target of the corpus may have another weight than 1: the same for all batches, and known on the host."""
    document: Tensor | None = None
    """int64, of held-out rows only: which document of the store each target is of, -1 where there is no target."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch elsewhere; from pinned memory the copy does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def take(self, first: int, last: int, single_document: bool) -> "Batch":
        """Rows `first` to `last` - 1, which are views of these."""
        return replace(self._each(lambda tensor: tensor[first:last]), single_document=single_document)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(x) for name, x in tensors.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Layout:
    """Where the pieces of some rows go, when their positions are numbered from 0 to N T."""

    piece: np.ndarray
    """int64 (P,): numbers in the plan."""
    row: np.ndarray
    """int64 (P,): which of the rows each piece is in."""
    place: np.ndarray
    """int64 (P,): first position of each piece."""
    begin: np.ndarray
    """int64: where pieces and the empty ends of rows begin, ascending from 0."""
    run: np.ndarray
    """int64: positions of each of them."""
    owner: np.ndarray
    """int64: index of each of them in `piece`, len(piece): an empty end."""


class RowReader:
    """Makes batches of a plan's rows."""

    def __init__(self, prepared: Prepared, plan: RowPlan, seed: int, *, documents: bool) -> None:
        """`seed` decides where pieces are cut that are filled in; `documents` asks for `Batch.document`."""
        self.prepared, self.plan, self.seed, self.documents = prepared, plan, seed, documents
        self.targets = plan.row_targets
        """Valid targets of each row, int64 (rows,)."""
        self.document_mask = prepared.config.pack.document_mask
        self.weighted = plan.weighted
        self.end_id = prepared.store.end_id
        self.specials = fim.special_ids(prepared.tokenizer) if plan.fim.any() else None
        none = np.zeros(-IGNORE, np.int32)  # so that IGNORE, counted from the end, is an index too
        self.bytes_of = np.concatenate([prepared.tokenizer.token_bytes, none])
        used = np.flatnonzero(np.bincount(plan.shard)).tolist()
        self.shards = {shard: (prepared.store.tokens(shard), prepared.store.mask(shard)) for shard in used}
        self.masked = any(mask is not None for _, mask in self.shards.values())

    def read(self, rows: np.ndarray, epochs: np.ndarray, size: int, *, pin: bool) -> list[Batch]:
        """Batches of `size` of the rows with these numbers, int64 (N,); -1 is a row of padding. Each is in its epoch.

        All batches are views of one block of memory.
        """
        plan, context = self.plan, self.plan.context
        layout = self._lay_out(rows)
        tensors = _allocate(len(rows), context, self.documents, pin)
        flat = {name: tensor.numpy().reshape(-1) for name, tensor in tensors.items()}
        self._copy(layout, epochs, flat["tokens"], flat["targets"])
        ramp = np.arange(len(rows) * context)
        if self.document_mask:
            np.subtract(ramp, np.repeat(layout.begin, layout.run), out=flat["positions"])
        else:
            np.remainder(ramp, context, out=flat["positions"])
        np.take(self.bytes_of, flat["targets"], out=flat["bytes"], mode="wrap")
        flat["weights"][:] = np.repeat(np.append(plan.weight[layout.piece], 0)[layout.owner], layout.run)
        if self.documents:
            flat["document"][:] = np.repeat(np.append(self._document[layout.piece], -1)[layout.owner], layout.run)
        if self.masked:
            ignored = flat["targets"] == IGNORE
            flat["weights"][ignored] = 0
            if self.documents:
                flat["document"][ignored] = -1
        flat["source"][:] = np.where(rows >= 0, plan.source[rows], 0)
        whole = Batch(**tensors, single_document=False, weighted=self.weighted)
        crowded = np.bincount(layout.row, minlength=len(rows)) > 1 if self.document_mask else np.zeros(len(rows), bool)
        starts = range(0, len(rows), size)
        return [whole.take(at, at + size, not crowded[at : at + size].any()) for at in starts]

    def read_ahead(self, rows: np.ndarray) -> None:
        """Ask the system to fetch what these rows hold soon."""
        piece = self._pieces(rows)[0]
        shard = self.plan.shard[piece]
        for number in np.unique(shard).tolist():
            own = piece[shard == number]
            self.prepared.store.read_ahead(number, self.plan.start[own], self.plan.length[own])

    @functools.cached_property
    def _document(self) -> np.ndarray:
        return self.prepared.store.documents_at(self.plan.shard, self.plan.start)

    def _pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(number in the plan, which of the rows, index here of its row's first piece) of every piece of rows."""
        real = np.flatnonzero(rows >= 0)
        first = self.plan.row_ptr[rows[real]]
        count = self.plan.row_ptr[rows[real] + 1] - first
        before = np.cumsum(count) - count
        piece = np.arange(int(count.sum())) + np.repeat(first - before, count)
        return piece, np.repeat(real, count), np.repeat(before, count)

    def _lay_out(self, rows: np.ndarray) -> _Layout:
        plan, context = self.plan, self.plan.context
        piece, row, first = self._pieces(rows)
        size = plan.length[piece] + fim.EXTRA * (plan.fim[piece] > 0)
        offset = np.cumsum(size) - size
        place = row * context + offset - offset[first]
        used = np.bincount(row, size, len(rows)).astype(np.int64)
        rest = np.flatnonzero(used < context)
        begin = np.concatenate([place, rest * context + used[rest]])
        order = np.argsort(begin, kind="stable")
        run = np.diff(begin[order], append=len(rows) * context)
        return _Layout(piece, row, place, begin[order], run, np.minimum(order, len(piece)))

    def _copy(self, layout: _Layout, epochs: np.ndarray, tokens: np.ndarray, targets: np.ndarray) -> None:
        """Fill `tokens` and `targets`, both (N T,).

        A loop over pieces: slices of a mapped file go at 0.4 to 1.4 billion tokens a second when pieces are long, and
        at 27 million when each has 16 tokens. Gathering by an index array goes at 0.5 billion whatever their length,
        but once for each shard.
        """
        plan, piece = self.plan, layout.piece
        tokens.fill(self.end_id)
        targets.fill(IGNORE)
        columns = (a[piece].tolist() for a in (plan.shard, plan.start, plan.length, plan.fim))
        numbers = fim.draw(self.seed, epochs[layout.row], piece).tolist() if self.specials else [None] * len(piece)
        for shard, start, length, kind, at, pair in zip(*columns, layout.place.tolist(), numbers, strict=True):
            stored, mask = self.shards[shard]
            ids = stored[start : start + length + 1]
            if kind:
                assert self.specials is not None
                ids = fim.arrange(ids, kind, pair, self.specials, self.end_id)
            end = at + len(ids) - 1
            tokens[at:end] = ids[:-1]
            targets[at:end] = ids[1:]
            if mask is not None:
                targets[at:end][mask[start + 1 : start + length + 1] == 0] = IGNORE


def _allocate(rows: int, context: int, documents: bool, pin: bool) -> dict[str, Tensor]:
    """Uninitialized tensors of a Batch, all in one block.

    There is no ring of buffers to reuse. Of ordinary memory the allocator makes one by itself, and of pinned memory
    torch's caching allocator does: it hands out a block again only after the copies from it, on whatever stream, are
    done, which a ring of ours could not know without waiting for them.
    """
    names = ["tokens", "targets", "positions", *(["document"] if documents else [])]
    cells = rows * context
    block = torch.empty(cells * (len(names) + 1) + rows, dtype=torch.int64, pin_memory=pin)
    *wide, narrow, source = block.split([*[cells] * (len(names) + 1), rows])
    tensors = dict(zip(names, wide, strict=True))
    tensors["bytes"], tensors["weights"] = narrow.view(torch.int32)[:cells], narrow.view(torch.float32)[cells:]
    return {name: tensor.view(rows, context) for name, tensor in tensors.items()} | {"source": source}
