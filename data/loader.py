"""Rows to steps: which rows a step and a rank take, made ahead of their use."""

import functools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .errors import DataError
from .prepared import Prepared
from .rows.batch import Batch, RowReader
from .rows.order import BLOCK, Order, permute

READ_AHEAD = 8
"""The system is asked to fetch rows so many steps at a time, and at least so many before they are read."""


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
    """Batches of a prepared corpus for one rank. Holds no state: step s is the same wherever reading starts.

    Rows come out of mapped files, by one thread: no worker processes, no shared memory, nothing to clean up.
    """

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
        order: Order | None = None,
        pin: bool = False,
        prefetch: int = 2,
    ) -> None:
        """`batch_rows` over all ranks, at most `micro_rows` at a time. Raises DataError for impossible numbers.

        Step s begins at row s * batch_rows + offset of the order: an offset goes on where steps of another size
        ended. `order`: of training rows; without one it is that of the config's mixture.
        """
        if batch_rows < 1 or micro_rows < 1 or not 0 <= rank < world_size:
            raise DataError(
                f"{batch_rows=}, {micro_rows=}, {rank=}, {world_size=}: rows are at least 1, rank < world size"
            )
        self.prepared = prepared
        self.batch_rows, self.micro_rows = batch_rows, micro_rows
        self.rank, self.world_size = rank, world_size
        self.offset, self.pin, self.prefetch = offset, pin, prefetch
        self.order = order or prepared.train.order(prepared.config.mixture, seed)
        self._train = RowReader(prepared, prepared.train, seed, documents=False)
        self._val = RowReader(prepared, prepared.val, seed, documents=True)
        self._block = functools.lru_cache(maxsize=4)(self._order_block)

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
                self._read_ahead(start, min(stop, start + READ_AHEAD))
                for index in range(start, stop):
                    if (index - start) % READ_AHEAD == 0:
                        self._read_ahead(index + READ_AHEAD, min(stop, index + 2 * READ_AHEAD))
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
        rows, epochs = self._samples(index)
        own, size = self._shared_out(rows, self.micro_rows)
        filled = np.zeros(len(own), np.int64)
        filled[own >= 0] = self._own(epochs)
        micro = self._train.read(own, filled, size, pin=self.pin)
        return Step(index, micro, int(self._train.targets[rows].sum()), rows)

    def row_ids(self, index: int) -> np.ndarray:
        """`row_ids` of a step, without reading them; int64."""
        return self._samples(index)[0]

    def epochs_at(self, step: int) -> dict[str, float]:
        """How often each source with training rows has been gone through after `step` steps."""
        used = self.order.used(step * self.batch_rows + self.offset)
        named = zip(self.prepared.source_names, used.tolist(), self.order.rows.tolist(), strict=True)
        return {name: count / rows for name, count, rows in named if rows}

    def validation(self, max_tokens: int | None, micro_rows: int) -> Iterator[Batch]:
        """This rank's share of the held-out rows, as many batches on every rank.

        The rows stand in one fixed order, mixed over sources; `max_tokens` (rows times context) takes the first ones.
        """
        own, size = self._shared_out(self._held_out(max_tokens), micro_rows)
        for at in range(0, len(own), size):
            yield from self._val.read(own[at : at + size], np.zeros(size, np.int64), size, pin=self.pin)

    def check_validation(self, max_tokens: int) -> None:
        """Raise DataError, saying what would work, if the rows of such a validation hold no target at all."""
        targets = self.prepared.val.row_targets
        if targets[self._held_out(max_tokens)].any():
            return
        if not targets.any():
            raise DataError("data.split: the held-out text holds no target; hold out more, or by hash")
        least = int(np.flatnonzero(targets[self._held_out(None)])[0] + 1) * self.prepared.context
        raise DataError(f"eval.max_tokens: the first {max_tokens} held-out tokens hold no target; at least {least}")

    def _held_out(self, max_tokens: int | None) -> np.ndarray:
        """Numbers of the held-out rows in their order, or of the first ones."""
        total = self.prepared.val.rows
        wanted = total if max_tokens is None else min(total, max(1, max_tokens // self.prepared.context))
        return permute(np.arange(wanted), total, "validation")

    def _read_ahead(self, start: int, stop: int) -> None:
        """Have the rank's rows of some steps fetched."""
        rows = [self._own(self._samples(index)[0]) for index in range(start, stop)]
        if rows:
            self._train.read_ahead(np.concatenate(rows))

    def _samples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(row, epoch) of each sample of a step, over all ranks."""
        first = step * self.batch_rows + self.offset
        last = first + self.batch_rows
        blocks = [self._block(number) for number in range(first // BLOCK, (last - 1) // BLOCK + 1)]
        before = first // BLOCK * BLOCK
        rows, epochs = (np.concatenate(column)[first - before : last - before] for column in zip(*blocks, strict=True))
        return rows, epochs

    def _order_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of BLOCK samples at once: to find one takes nearly as long."""
        source, epoch, row = self.order(np.arange(number * BLOCK, (number + 1) * BLOCK))
        return self.order.first[source] + row, epoch

    def _own(self, values: np.ndarray) -> np.ndarray:
        """The rank's slice of an array over the rows of all ranks."""
        return values[self.rank * len(values) // self.world_size : (self.rank + 1) * len(values) // self.world_size]

    def _shared_out(self, rows: np.ndarray, micro_rows: int) -> tuple[np.ndarray, int]:
        """(the rank's slice, filled up with ignored rows (-1) to a multiple of `size`; `size`, at most `micro_rows`).

        Every rank has the same number of rows and the same size.
        """
        share = -(-len(rows) // self.world_size)
        count = -(-share // micro_rows)
        size = -(-share // count)
        own = self._own(rows)
        return np.concatenate([own, np.full(count * size - len(own), -1, np.int64)]), size
