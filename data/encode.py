"""From one task to its shards: what a preparing process runs, here or in a worker. Never imports torch."""

import contextlib
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .chat import encode_chat
from .documents import Document, Turn
from .errors import DataError
from .language import detect
from .redact import redact
from .sources import Task, read
from .statistics import measure
from .store import BLANK, FORMAT, UNDECODABLE, Shard, find_shard, pack_ids, pack_labels, token_dtype, write_shard
from .tokenizer import Encode, Tokenizer, load_file, tiktoken_encoder

POOL_BYTES = 20 << 20
"""A corpus smaller than this is encoded in this process: starting workers would take longer."""


@dataclass
class TaskResult:
    """What one task gave: shards, how many documents had no text to keep, and what was wrong with the first bad one."""

    shards: list[Shard] = field(default_factory=list)
    unparsable: int = 0
    undecodable: int = 0
    redacted: int = 0
    example: str | None = None


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know."""

    tokenizer_file: Path
    folder: Path
    fast: bool
    """Encode with tiktoken, which has been verified."""
    shard_bytes: int
    """Text of one shard, unless one document is longer."""
    redact: tuple[str, ...] = ()
    """Kinds of personal data to replace."""
    detect_language: bool = False
    """Label documents that say nothing of their language."""


class TaskEncoder:
    """Turns tasks into shards in one folder, with one tokenizer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = job.folder
        self.shard_bytes = job.shard_bytes
        self.tokenizer: Tokenizer = load_file(job.tokenizer_file)
        self.dtype = token_dtype(self.tokenizer.vocab_size)
        self.encode: Encode = tiktoken_encoder(self.tokenizer) if job.fast else self.tokenizer.encode_array

    def __call__(self, task: Task) -> TaskResult:
        """Write the task's shards, except those that an earlier attempt has finished."""
        result = TaskResult()
        for number, block in enumerate(self._blocks(task, result)):
            name = f"{task.label}-{number:03d}-{self._digest(task, block)}"
            shard = find_shard(self.folder, name)
            if shard is None:
                shard = write_shard(self.folder, name, *self._encode_block(task, block), task.source, task.side)
            result.shards.append(shard)
        return result

    def _blocks(self, task: Task, result: TaskResult) -> Iterator[list[tuple[Document, bytes]]]:
        """Documents with their UTF-8 bytes, in shard-sized lists; what cannot be kept is counted in `result`."""
        block: list[tuple[Document, bytes]] = []
        size = 0
        for document in read(task):
            if document.problem and result.example is None:
                result.example = f"{document.id}: {document.problem}"
            if document.text is None:
                result.unparsable += 1
                continue
            result.undecodable += document.problem is not None
            document, redacted = self._cleaned(document)
            result.redacted += redacted
            assert document.text is not None
            raw = document.text.encode()
            if block and size + len(raw) > self.shard_bytes:
                yield block
                block, size = [], 0
            block.append((document, raw))
            size += len(raw)
        if block:
            yield block

    def _cleaned(self, document: Document) -> tuple[Document, int]:
        """The document as it is kept, with its language, and how many places were redacted."""
        count = 0
        if self.job.redact:
            said = [turn.text for turn in document.turns] or [document.text or ""]
            texts, counts = zip(*(redact(text, self.job.redact) for text in said), strict=True)
            turns = tuple(Turn(turn.role, text) for turn, text in zip(document.turns, texts, strict=False))
            document, count = replace(document, text="".join(texts), turns=turns), sum(counts)
        if self.job.detect_language and "language" not in document.labels:
            document = replace(document, labels={**document.labels, "language": detect(document.text or "")})
        return document, count

    def _digest(self, task: Task, block: list[tuple[Document, bytes]]) -> str:
        """Names a shard by what it is made from: the tokenizer, the documents and how they are spelled."""
        spelling = f"{FORMAT} {self.tokenizer.sha256} {task.config.template} {task.config.train_on}"
        digest = hashlib.blake2b(spelling.encode(), digest_size=8)
        for document, raw in block:
            about = (document.id, document.problem, len(raw), sorted(document.labels.items()), document.weight)
            turns = [(turn.role, len(turn.text)) for turn in document.turns]
            digest.update(f"\n{about!r} {turns}\n".encode())
            digest.update(raw)
        return digest.hexdigest()

    def _encode_block(
        self, task: Task, block: list[tuple[Document, bytes]]
    ) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
        """(tokens, which of them are targets or None for all, columns) of one shard."""
        end, target = np.array([self.tokenizer.end_id], self.dtype), np.ones(1, bool)
        arrays, masks, flags, hashes = [end], [target], [], []
        for document, raw in block:
            ids, mask = self._encode_document(task, document, raw)
            arrays += [ids, end]
            masks += [mask, mask[-1:] if document.turns else target]
            flags.append(UNDECODABLE * (document.problem is not None) + BLANK * (not raw.strip()))
            spoken = repr([(turn.role, turn.text) for turn in document.turns]).encode() if document.turns else raw
            hashes.append(hashlib.blake2b(spoken, digest_size=16).digest())
        lengths = [len(ids) + 1 for ids in arrays[1::2]]
        documents = [document for document, _ in block]
        columns = {
            "offsets": np.cumsum([0, *lengths], dtype=np.int64),
            "hash": np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2),
            "nbytes": np.array([len(raw) for _, raw in block], np.int64),
            "flags": np.array(flags, np.uint16),
            **pack_ids([document.id for document in documents]),
            **pack_labels([document.labels for document in documents]),
            **{f"stat:{name}": values for name, values in measure([raw for _, raw in block]).items()},
        }
        weights = np.array([document.weight for document in documents], np.float32)
        if (weights != 1).any():
            columns["weight"] = weights
        mask = np.concatenate(masks)
        return np.concatenate(arrays), None if mask.all() else mask, columns

    def _encode_document(self, task: Task, document: Document, raw: bytes) -> tuple[np.ndarray, np.ndarray]:
        """(ids, which are targets) of one text. Their bytes must add up to the text's, or they are not its ids."""
        assert document.text is not None
        for encode in (self.encode, self.tokenizer.encode_array):
            if document.turns:
                how = task.config.template, task.config.train_on
                ids, mask = encode_chat(document.turns, *how, self.tokenizer, encode)
            else:
                ids = encode(document.text)
                mask = np.ones(len(ids), bool)
            if int(self.tokenizer.token_bytes[ids].sum()) == len(raw):
                return ids.astype(self.dtype), mask  # ids are below vocab_size, for which the type was chosen
        raise DataError(f"{document.id}: the tokenizer loses bytes of this text; use a byte-level BPE")


def encode_tasks(tasks: list[Task], job: Job, workers: int) -> Iterator[tuple[int, TaskResult]]:
    """(index into `tasks`, result) as they are done, in any order; `workers` below 2 means in this process."""
    if workers < 2:
        encoder = TaskEncoder(job)
        for index, task in enumerate(tasks):
            yield index, encoder(task)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(job,))
    try:
        with _blank_main():
            largest_first = sorted(range(len(tasks)), key=lambda index: -tasks[index].size)
            futures = {executor.submit(_run_task, tasks[index]): index for index in largest_first}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except DataError as error:  # raised again from here: the frames of the pool would make it look like a bug
        raise DataError(str(error)) from None
    except BrokenProcessPool:
        raise RuntimeError("a worker died while encoding, perhaps out of memory; the same command goes on") from None
    finally:
        executor.shutdown(cancel_futures=True)


def available_workers(tasks: Iterable[Task]) -> int:
    """How many processes these tasks are worth. A stream, whose size is not known, counts as large."""
    tasks = list(tasks)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    large = sum(task.size for task in tasks) > POOL_BYTES or any(task.config.streaming for task in tasks)
    return min(cores, len(tasks)) if large else 1


@contextlib.contextmanager
def _blank_main() -> Iterator[None]:
    """Keep spawned workers from importing the main script again, which may import torch: seconds and memory each."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


_encoder: TaskEncoder | None = None


def _start_worker(job: Job) -> None:
    global _encoder
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _encoder = TaskEncoder(job)


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers, and they would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _run_task(task: Task) -> TaskResult:
    assert _encoder is not None
    return _encoder(task)
