"""Where documents come from: sorted lists of tasks, and the reader of each. Home of Hugging Face datasets.

A *task* is a picklable description of some input (files, byte ranges, row groups, dataset rows); it holds no data.
Which tasks there are depends on the input alone, never on how many workers read them, so every worker count writes the
same shards. Nothing here imports a package whose source it reads.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .config import SourceConfig
from .documents import Document
from .errors import DataError
from .reading.codebase import code_parts, read_code
from .reading.files import STDIN, Part, decode_file, file_parts, read_bytes, stdin_file
from .reading.packages import python_parts
from .reading.records import document, jsonl_parts, project, read_jsonl
from .reading.tables import BATCH_ROWS, arrow_records, check_text, parquet_parts, read_csv, read_parquet

TASK_BYTES = 4 << 20
"""Input of one task of a small source: a fraction of a second of work, so that processes end together."""
_MOST_TASK_BYTES, _TASKS = 256 << 20, 256
"""Of a large source, tasks grow so that there are about so many, up to a minute of work."""

Side = Literal["train", "val"]


@dataclass(frozen=True)
class Task:
    """Input number `index` of a source. `size` is its text in bytes, estimated; 0 when it cannot be known."""

    source: str
    side: Side
    index: int
    config: SourceConfig
    parts: tuple[Part, ...]
    size: int

    @property
    def label(self) -> str:
        """What this task's shards are called, unique in the corpus."""
        return f"{self.side}-{self.source}-{self.index:05d}"


def list_tasks(source: str, side: Side, config: SourceConfig, directory: Path | None = None) -> list[Task]:
    """The tasks of one source, in the order of its documents. Raises DataError when there is nothing to read.

    What came from standard input is in the corpus `directory`; see `files.spool_stdin`.
    """
    sized, limit = _parts(source, config, stdin_file(directory, side, source, config))
    one_file_each = config.kind in ("python", "code", "text")
    whole = config.max_documents is not None and not one_file_each  # counted while reading, in one place
    if one_file_each:
        sized = sized[: config.max_documents]
    groups: list[list[tuple[Part, int]]] = []
    filled = limit
    for part, size in sized:
        if (filled >= limit or config.kind == "hf") and not (whole and groups):  # hf: parts are large already
            groups.append([])
            filled = 0
        groups[-1].append((part, size))
        filled += size
    return [
        Task(source, side, index, config, tuple(part for part, _ in group), sum(size for _, size in group))
        for index, group in enumerate(groups)
    ]


def task_bytes(total: int) -> int:
    """Input of one task of a source of `total` bytes: a power of two, so that it seldom changes as a corpus grows."""
    wanted = 1 << (max(total // _TASKS, 1) - 1).bit_length()
    return max(TASK_BYTES, min(wanted, _MOST_TASK_BYTES))


def _parts(source: str, config: SourceConfig, stdin: Path | None) -> tuple[list[tuple[Part, int]], int]:
    """(parts with their sizes, bytes of a task)."""
    try:
        bytes(range(256)).decode(config.encoding, "replace")
    except (LookupError, ValueError):
        raise DataError(f"data source {source!r}: no encoding {config.encoding!r}; try utf-8 or latin-1") from None
    match config.kind:
        case "python":
            found = python_parts(source, config)
        case "code":
            found = code_parts(source, config)
        case "hf":
            return _hf_parts(source, config)
        case _:
            found = file_parts(source, config, stdin)
    limit = task_bytes(sum(size for _, size in found))
    match config.kind:
        case "jsonl":
            return jsonl_parts(config, found, limit), limit
        case "parquet":
            return parquet_parts(config, found, limit), limit
    return found, limit


def read(task: Task) -> Iterator[Document]:
    """The documents of one task, in order. Raises DataError when a file cannot be read."""
    config = task.config
    documents = (document for part in task.parts for document in _READERS[config.kind](part, config))
    for count, found in enumerate(documents):
        if count == config.max_documents:
            return
        yield replace(found, labels={**found.labels, **config.constants}) if config.constants else found


def reads_stdin(config: SourceConfig) -> bool:
    """Whether a source reads standard input, of which nothing is known before it is read."""
    return STDIN in config.files


def _read_file(part: Part, config: SourceConfig) -> Iterator[Document]:
    yield Document(part.id, *decode_file(read_bytes(part.path), config.encoding), labels=part.labels)


# Hugging Face datasets


def _load(config: SourceConfig) -> Any:
    return _load_once(str(config.path), config.name, config.split, config.data_files, config.streaming)


@functools.cache
def _load_once(path: str, name: str | None, split: str, data_files: tuple[str, ...], streaming: bool) -> Any:
    """The dataset that a config names: a directory made by `save_to_disk`, a builder with files, or a hub name.

    Loaded once for all tasks of a source, each of which would take as long again.
    """
    try:
        import datasets
    except ImportError:
        raise DataError("sources of kind hf need the datasets package: pip install datasets") from None
    with _told(path):
        if os.path.isfile(os.path.join(path, "dataset_dict.json")):
            return datasets.load_from_disk(path)[split]
        if os.path.isfile(os.path.join(path, "state.json")):
            return datasets.load_from_disk(path)
        files = list(data_files) or None
        return datasets.load_dataset(path, name, data_files=files, split=split, streaming=streaming)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """Whatever a builder or the hub raises is a DataError: the path, name or split is wrong, or the network away."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().split("\n")), "")
        way = "; without a network, `path` is a directory" if "Connect" in type(error).__name__ else ""
        raise DataError(f"dataset {path!r} cannot be loaded: {type(error).__name__}: {reason}{way}") from None


def _hf_parts(source: str, config: SourceConfig) -> tuple[list[tuple[Part, int]], int]:
    _load_once.cache_clear()  # a list is made of what is there now
    data = _load(config)
    where = f"data source {source!r}"
    columns = project(data.column_names, config, where) if data.column_names else None
    path = str(config.path)
    if not hasattr(data, "num_rows"):  # a stream: its length is not known
        shards = int(getattr(data, "num_shards", 1))  # since datasets 3.2
        names = [f"{config.split}-{i}" if shards > 1 else config.split for i in range(shards)]
        return [(Part(path, name, i, shards), 0) for i, name in enumerate(names)], TASK_BYTES
    check_text(data.features.arrow_schema, config, where)
    size = int(data.select_columns(columns or []).data.nbytes)
    limit = task_bytes(size)
    rows = max(1, int(limit * data.num_rows / max(size, 1)))
    return [
        (Part(path, config.split, start, min(start + rows, data.num_rows)), size * rows // max(data.num_rows, 1))
        for start in range(0, data.num_rows, rows)
    ], limit


def _read_hf(part: Part, config: SourceConfig) -> Iterator[Document]:
    data = _load(config)
    with _told(part.path):
        if data.column_names:
            data = data.select_columns(project(data.column_names, config, part.path))
        if hasattr(data, "num_rows"):
            first, records = part.start, _table_records(data, part.start, part.stop or 0)
        else:
            first, records = 0, iter(data.shard(part.stop, part.start) if (part.stop or 1) > 1 else data)
        for row, record in enumerate(records, first):
            yield document(f"{part.id}@{row}", record, config)


def _table_records(data: Any, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Rows of a dataset on disk, as Arrow holds them: nothing is decoded that is not read."""
    table = data.with_format("arrow")
    for low in range(start, stop, BATCH_ROWS):
        yield from arrow_records(table[low : min(low + BATCH_ROWS, stop)])


_READERS: dict[str, Callable[[Part, SourceConfig], Iterator[Document]]] = {
    "python": _read_file,
    "code": read_code,
    "text": _read_file,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "parquet": read_parquet,
    "hf": _read_hf,
}
