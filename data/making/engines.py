"""Where tasks run: in this process, in a pool of processes, or on a Ray cluster. What they write is the same.

An engine runs `function(*call)` for every call, in any order, and yields the index of each as it is done. It returns
nothing else: what a task gave is read from the record that it left on disk.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..sources import Task
from .encode import Job, close_encoder, run_task

POOL_BYTES = 20 << 20
"""A corpus smaller than this is encoded in this process: starting workers would take longer."""
RECYCLE_BYTES = 2 << 30
"""Text after which a process begins anew, since tokenizers keep memory of long documents."""

Call = tuple[Any, ...]


@dataclass(frozen=True)
class Engine:
    """Which engine: `local` processes, or `ray`, on the cluster at `address` or one that is started here."""

    name: Literal["local", "ray"] = "local"
    address: str | None = None


LOCAL = Engine()


def run_tasks(
    work: Sequence[tuple[Task, Path]], job: Callable[[], Job], engine: Engine, workers: Literal["auto"] | int
) -> Iterator[int]:
    """Encode every (task, where its record goes); yields indices into `work` as they are done.

    `job` is asked for once, while the processes of the local engine start. `workers` is for the local engine. Raises
    DataError for an input that cannot be read, on any engine.
    """
    job = functools.cache(job)
    largest_first = sorted(range(len(work)), key=lambda index: -work[index][0].size)
    if engine.name == "ray":
        from .engine_ray import run

        done = run(run_task, [(job(), *work[index]) for index in largest_first], engine.address)
        yield from (largest_first[place] for place in done)
        return
    count = available_workers([task for task, _ in work]) if workers == "auto" else min(workers, len(work))
    for some in _rounds([task.size for task, _ in work], largest_first, max(count, 1) * RECYCLE_BYTES):
        calls = functools.partial(_calls, job, [work[index] for index in some])
        processes = min(count, len(some))
        done = run_pool(run_task, calls, processes) if processes > 1 else run_here(run_task, calls)
        try:
            yield from (some[place] for place in done)
        finally:
            close_encoder()  # tokenizers keep memory of long documents


def _calls(job: Callable[[], Job], work: Sequence[tuple[Task, Path]]) -> list[Call]:
    return [(job(), task, record) for task, record in work]


def available_workers(tasks: Sequence[Task]) -> int:
    """How many processes these tasks are worth. A stream, whose size is not known, counts as large."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    large = sum(task.size for task in tasks) > POOL_BYTES or any(task.config.streaming for task in tasks)
    return min(cores, len(tasks)) if large else 1


def _rounds(sizes: Sequence[int], order: Sequence[int], limit: int) -> Iterator[list[int]]:
    """`order` in lists of about `limit` bytes. Each gets workers of its own: `max_tasks_per_child` would do the same,
    but may wait for ever before Python 3.12.9 (cpython 115634)."""
    some: list[int] = []
    filled = 0
    for index in order:
        if some and filled + sizes[index] > limit:
            yield some
            some, filled = [], 0
        some.append(index)
        filled += sizes[index]
    if some:
        yield some


def run_here(function: Callable[..., None], calls: Callable[[], Sequence[Call]]) -> Iterator[int]:
    """The engine of one process, this one."""
    for index, call in enumerate(calls()):
        function(*call)
        yield index


def run_pool(function: Callable[..., None], calls: Callable[[], Sequence[Call]], workers: int) -> Iterator[int]:
    """The engine of one machine: this process and `workers - 1` more, at least one, each on one core, that start afresh
    and end with it. What there is to do is asked for while they start."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers - 1, mp_context=context, initializer=_start_worker)
    todo = deque[tuple[int, Call]]()
    done = queue.SimpleQueue[tuple[int, Future[None]]]()

    def take() -> tuple[int, Call] | None:
        with contextlib.suppress(IndexError):  # this process and the thread that calls `finish` both take
            return todo.popleft()
        return None

    def hand_out() -> None:
        """Give the next call to another process. Each has one at a time, so that all end together."""
        if (taken := take()) is not None:
            executor.submit(function, *taken[1]).add_done_callback(lambda future: finish(taken[0], future))

    def finish(index: int, future: Future[None]) -> None:
        if not future.cancelled() and future.exception() is None:
            hand_out()
        done.put((index, future))

    try:
        with _blank_main():
            executor.submit(_start)  # with the first call, all processes start
        todo.extend(enumerate(calls()))
        left = len(todo)
        for _ in range(workers - 1):
            hand_out()
        while left:
            if (own := take()) is not None:
                function(*own[1])
                yield own[0]
                left -= 1
            for _ in range(left if own is None else done.qsize()):
                index, future = done.get()
                future.result()
                yield index
                left -= 1
    except DataError as error:  # raised again from here: the frames of the pool would make it look like a bug
        raise DataError(str(error)) from None
    except BrokenProcessPool:
        raise RuntimeError("a worker died while encoding, perhaps out of memory; the same command goes on") from None
    finally:
        todo.clear()
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _blank_main() -> Iterator[None]:
    """Keep spawned workers from importing the main script again, which may import torch: seconds and memory each."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start() -> None:
    """Nothing: to find this function, a process imports what tasks need."""


def _start_worker() -> None:
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers, and they would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
