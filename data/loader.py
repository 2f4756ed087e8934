"""Rows to batches: which rows a step and a rank take, and the tensors they become.

B rows of a micro-batch   T context   W ranks
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .corpus import Prepared
from .errors import DataError
from .order import permute
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
    """float32: importance in the loss, 1 or 0."""
    bytes: Tensor
    """int32: UTF-8 bytes of each target; 0 for specials and padding."""
    source: Tensor
    """int64 (B,): index into the source names."""
    single_document: bool
    """Plain causal attention is right: no row holds two documents, or the document mask is off."""
    weighted: bool = True
    """Some target may have another weight than 1; told here so that nobody needs to look on the device."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch elsewhere; from pinned memory the copy does not block."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """The same batch in pinned memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(x) for name, x in tensors.items()})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Step:
    """One optimizer step on one rank."""

    index: int
    micro: list[Batch]
    """Of equal shape, as many on every rank."""
    targets: int
    """Valid targets of the whole step, over all micro-batches and ranks."""
    row_ids: np.ndarray
    """int64: the step's rows over all ranks, in order, numbered as in the plan."""


class Loader:
    """Batches of a prepared corpus for one rank. Holds no state: step s is the same wherever reading starts."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        batch_rows: int,
        micro_rows: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int,
        offset: int = 0,
        pin: bool = False,
        prefetch: int = 2,
    ) -> None:
        """`batch_rows` over all ranks, at most `micro_rows` at a time. Raises DataError for impossible numbers.

        Step s begins at row s * batch_rows + offset of the order: an offset goes on where steps of another size
        ended.
        """
        if batch_rows < 1 or micro_rows < 1 or not 0 <= rank < world_size:
            raise DataError(
                f"{batch_rows=}, {micro_rows=}, {rank=}, {world_size=}: rows are at least 1, rank < world size"
            )
        self.prepared = prepared
        self.batch_rows, self.micro_rows = batch_rows, micro_rows
        self.rank, self.world_size = rank, world_size
        self.offset, self.pin, self.prefetch = offset, pin, prefetch
        self.order = prepared.train.order(prepared.config.mixture, seed)
        self._train = _Rows(prepared, prepared.train)
        self._val = _Rows(prepared, prepared.val)

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Steps `start` to `stop` - 1, made ahead by one thread. Closing the iterator stops the thread."""
        ready: queue.Queue[Step | BaseException | None] = queue.Queue(max(1, self.prefetch))
        closed = threading.Event()

        def put(item: Step | BaseException | None) -> None:
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for index in range(start, stop):
                    if closed.is_set():
                        return
                    put(self.step(index))
                put(None)
            except BaseException as error:  # it belongs to the consumer
                put(error)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()

    def step(self, index: int) -> Step:
        """Step `index` of this rank: its share of `batch_rows` rows of the order, from index * batch_rows + offset."""
        first = index * self.batch_rows + self.offset
        rows = self.order.row_ids(np.arange(first, first + self.batch_rows))
        targets = int(self._train.targets[rows].sum())
        micro = list(self._batches(self._train, rows, self.micro_rows))
        return Step(index, micro, targets, rows)

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often each source with training rows has been gone through after `step` steps."""
        used = self.order.used(step * self.batch_rows + self.offset)
        named = zip(self.prepared.source_names, used.tolist(), self.order.rows.tolist(), strict=True)
        return {name: count / rows for name, count, rows in named if rows}

    def validation(self, max_tokens: int | None, micro_rows: int) -> Iterator[Batch]:
        """This rank's share of the held-out rows, as many batches on every rank.

        The rows stand in one fixed order, mixed over sources; `max_tokens` (rows times context) takes the first ones.
        """
        total = self.prepared.val.rows
        wanted = total if max_tokens is None else min(total, max(1, max_tokens // self.prepared.context))
        rows = permute(np.arange(wanted), total, "validation")
        yield from self._batches(self._val, rows, micro_rows)

    def _batches(self, source: "_Rows", rows: np.ndarray, micro_rows: int) -> Iterator[Batch]:
        """The rank's slice in batches of equal shape, at most `micro_rows` each, filled up with ignored rows (-1)."""
        share = -(-len(rows) // self.world_size)
        count = -(-share // micro_rows)
        size = -(-share // count)
        own = rows[self.rank * len(rows) // self.world_size : (self.rank + 1) * len(rows) // self.world_size]
        filled = np.concatenate([own, np.full(count * size - len(own), -1, np.int64)])
        for at in range(0, count * size, size):
            batch = source.batch(filled[at : at + size])
            yield batch.pin() if self.pin else batch


class _Rows:
    """Tensors of a plan's rows."""

    def __init__(self, prepared: Prepared, plan: RowPlan) -> None:
        self.prepared = prepared
        self.plan = plan
        self.targets = plan.row_targets
        self.end_id = prepared.store.end_id
        self.bytes_of = np.append(prepared.tokenizer.token_bytes, np.int32(0))  # the last entry is for IGNORE

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows with these numbers, (B,); -1 is a row of padding."""
        context, plan = self.plan.context, self.plan
        shape = (len(rows), context)
        tokens = np.full(shape, self.end_id, np.int64)
        targets = np.full(shape, IGNORE, np.int64)
        steps = np.arange(context)
        positions = np.tile(steps, (len(rows), 1))
        masked = self.prepared.config.pack.document_mask
        single = True
        for i, row in enumerate(rows.tolist()):
            first, last = (plan.row_ptr[row], plan.row_ptr[row + 1]) if row >= 0 else (0, 0)
            single &= bool(last - first <= 1)
            at = 0
            pieces = zip(*(a[first:last].tolist() for a in (plan.shard, plan.start, plan.length)), strict=True)
            for shard, start, length in pieces:
                ids = self.prepared.store.tokens(shard)[start : start + length + 1]
                tokens[i, at : at + length] = ids[:-1]
                targets[i, at : at + length] = ids[1:]
                if masked:
                    positions[i, at : at + length] = steps[:length]
                at += length
            if masked:
                positions[i, at:] = steps[: context - at]
        return self._tensors(tokens, targets, positions, rows, single or not masked)

    def _tensors(
        self, tokens: np.ndarray, targets: np.ndarray, positions: np.ndarray, rows: np.ndarray, single: bool
    ) -> Batch:
        valid = targets != IGNORE
        source = np.where(rows >= 0, self.plan.source[rows], 0).astype(np.int64)
        arrays: dict[str, np.ndarray[Any, Any]] = {
            "tokens": tokens,
            "targets": targets,
            "positions": positions,
            "weights": valid.astype(np.float32),
            "bytes": self.bytes_of[np.where(valid, targets, len(self.bytes_of) - 1)],
            "source": source,
        }
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return Batch(**tensors, single_document=single, weighted=False)
