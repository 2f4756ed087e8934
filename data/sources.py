"""Where documents come from: sorted lists of tasks, and the reader of each.

A *task* is a picklable description of some input (files, byte ranges, dataset rows); it holds no data. Which tasks
there are depends on the input alone, never on how many workers read them, so every worker count writes the same shards.
Nothing here imports a package whose source it reads.
"""

import functools
import glob
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import IO, Any, Literal

from .config import SourceConfig
from .documents import Document, clean_text, decode
from .errors import DataError
from .packages import package_paths, python_files

TASK_BYTES = 16 << 20
"""Input of one task: seconds of work, and enough tasks to share out."""
_GZIP_RATIO = 4  # text per compressed byte, for progress and sampling only

Side = Literal["train", "val"]


@dataclass(frozen=True)
class Part:
    """A file, or the bytes (jsonl) or rows (hf) `start:stop` of an input, or shard `start` of `stop` of a stream (hf);
    `id` names it in the store."""

    path: str
    id: str
    start: int = 0
    stop: int | None = None


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


def list_tasks(source: str, side: Side, config: SourceConfig) -> list[Task]:
    """The tasks of one source, in the order of its documents. Raises DataError when there is nothing to read."""
    lister = {"python": _python_parts, "text": file_parts, "jsonl": _jsonl_parts, "hf": _hf_parts}[config.kind]
    sized = lister(source, config)
    whole = config.max_documents is not None and config.kind in ("jsonl", "hf")  # counted while reading, in one place
    if config.max_documents is not None and not whole:
        sized = sized[: config.max_documents]
    groups: list[list[tuple[Part, int]]] = []
    filled = TASK_BYTES
    for part, size in sized:
        if (filled >= TASK_BYTES or config.kind == "hf") and not (whole and groups):  # hf: parts are large already
            groups.append([])
            filled = 0
        groups[-1].append((part, size))
        filled += size
    return [
        Task(source, side, index, config, tuple(part for part, _ in group), sum(size for _, size in group))
        for index, group in enumerate(groups)
    ]


def read(task: Task) -> Iterator[Document]:
    """The documents of one task, in order. Raises DataError when a file cannot be read."""
    reader = {"python": _read_files, "text": _read_files, "jsonl": _read_jsonl, "hf": _read_hf}[task.config.kind]
    limit = task.config.max_documents
    for count, document in enumerate(reader(task)):
        if count == limit:
            return
        yield document


def _open(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _excluded(config: SourceConfig, *names: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in config.exclude for name in names)


# Python packages


def _python_parts(source: str, config: SourceConfig) -> list[tuple[Part, int]]:
    """Package after package, each sorted by path."""
    found: dict[str, tuple[Part, int]] = {}
    for package in config.packages:
        name = package.replace(".", "/")
        sized = []
        for root in package_paths(package):
            for path in [root] if root.is_file() else python_files(root):
                relative = path.name if root.is_file() else path.relative_to(root).as_posix()
                identity = relative if root.is_file() else f"{name}/{relative}"
                if not _excluded(config, relative, identity):
                    sized.append((Part(str(path), identity), path.stat().st_size))
        for part, size in sorted(sized, key=lambda item: (item[0].id, item[0].path)):
            found.setdefault(part.path, (part, size))
    if not found:
        raise DataError(f"data source {source!r}: no .py file in packages {', '.join(config.packages)}")
    return list(found.values())


# Files


def file_parts(source: str, config: SourceConfig) -> list[tuple[Part, int]]:
    """(file, bytes) for all that the patterns match, once, sorted by name below the pattern's fixed folder."""
    found: dict[str, Part] = {}
    real_folder = functools.cache(os.path.realpath)  # one look at each folder: files are many
    for pattern in config.files:
        paths = [pattern] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)
        base = _fixed_folder(pattern)
        matched = 0
        for path in sorted(paths):
            if path == pattern and os.path.isdir(path):
                raise DataError(f"data source {source!r}: {pattern} is a directory; write {pattern.rstrip('/')}/**/*")
            name = os.path.relpath(path, base).replace(os.sep, "/")
            if os.path.isfile(path) and not _excluded(config, name, path):
                folder, last = os.path.split(path)
                real = os.path.realpath(path) if os.path.islink(path) else os.path.join(real_folder(folder), last)
                found.setdefault(real, Part(path, name))
                matched += 1
        if not matched:
            raise DataError(f"data source {source!r}: no file matches {pattern!r} in {os.getcwd()}")
    parts = sorted(found.values(), key=lambda part: (part.id, part.path))
    return [(part, os.path.getsize(part.path)) for part in parts]


def _fixed_folder(pattern: str) -> str:
    """The longest leading folder of a glob without wildcards."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or "."


def _read_files(task: Task) -> Iterator[Document]:
    for part in task.parts:
        with _open(part.path) as file:
            yield Document(part.id, *decode(file.read()))


# JSON lines


def _jsonl_parts(source: str, config: SourceConfig) -> list[tuple[Part, int]]:
    """Plain files in byte ranges, compressed ones whole. A line belongs to the range in which it starts."""
    sized = []
    for part, size in file_parts(source, config):
        if part.path.endswith(".gz"):
            sized.append((part, size * _GZIP_RATIO))
        else:
            for start in range(0, max(size, 1), TASK_BYTES):
                stop = min(start + TASK_BYTES, size)
                sized.append((Part(part.path, part.id, start, stop), stop - start))
    return sized


def _read_jsonl(task: Task) -> Iterator[Document]:
    for part in task.parts:
        with _open(part.path) as raw:
            try:
                file = gzip.GzipFile(fileobj=raw) if part.path.endswith(".gz") else raw
                yield from _read_lines(file, part, task.config.text)
            except (OSError, EOFError) as error:
                raise DataError(f"{part.path}: cannot be read to its end ({error})") from None


def _read_lines(file: IO[bytes] | gzip.GzipFile, part: Part, field: str) -> Iterator[Document]:
    offset = part.start
    if offset:
        file.seek(offset - 1)
        offset += len(file.readline()) - 1  # the rest of a line that the range before has read
    while part.stop is None or offset < part.stop:
        line = file.readline()
        if not line:
            return
        identity = f"{part.id}@{offset}"
        offset += len(line)
        if line.strip():
            yield _parse_line(identity, line, field)


def _no_text(field: str, record: object) -> str:
    """Why a record has no text, with the fields that hold some."""
    fields = (
        [str(name) for name, value in record.items() if isinstance(value, str)] if isinstance(record, Mapping) else []
    )
    return f"no text in field {field!r}" + (f" (`text:` may be {', '.join(fields[:5])})" if fields else "")


def _parse_line(identity: str, line: bytes, field: str) -> Document:
    text, problem = decode(line)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return Document(identity, None, "not JSON")
    if not isinstance(record, Mapping) or not isinstance(record.get(field), str):
        return Document(identity, None, _no_text(field, record))
    text, broken = clean_text(record[field])
    return Document(identity, text, problem or ("a lone surrogate" if broken else None))


# Hugging Face datasets


@functools.cache
def _load(config: SourceConfig) -> Any:
    """The dataset that a config names: a directory made by `save_to_disk`, a builder with files, or a hub name.

    Loaded once for all tasks of a source, each of which would take as long again.
    """
    try:
        import datasets
    except ImportError:
        raise DataError("sources of kind hf need the datasets package: pip install datasets") from None
    path = str(config.path)
    try:
        if os.path.isfile(os.path.join(path, "dataset_dict.json")):
            return datasets.load_from_disk(path)[config.split]
        if os.path.isfile(os.path.join(path, "state.json")):
            return datasets.load_from_disk(path)
        return datasets.load_dataset(
            path,
            config.name,
            data_files=list(config.data_files) or None,
            split=config.split,
            streaming=config.streaming,
        )
    except Exception as error:  # whatever a builder or the hub raises: the user's path, name or split is wrong
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"dataset {path!r} cannot be loaded: {type(error).__name__}: {reason}") from None


def _hf_parts(source: str, config: SourceConfig) -> list[tuple[Part, int]]:
    _load.cache_clear()  # a list is made of what is there now
    data = _load(config)
    if config.text not in (data.column_names or [config.text]):
        columns = ", ".join(data.column_names)
        raise DataError(f"data source {source!r}: no column {config.text!r}; there are {columns}")
    path = str(config.path)
    if not hasattr(data, "num_rows"):  # a stream: its length is not known
        shards = int(getattr(data, "num_shards", 1))  # since datasets 3.2
        return [
            (Part(path, f"{config.split}-{i}" if shards > 1 else config.split, i, shards), 0) for i in range(shards)
        ]
    size = int(data.data.nbytes)
    rows = max(1, int(TASK_BYTES * data.num_rows / max(size, 1)))
    return [
        (Part(path, config.split, start, min(start + rows, data.num_rows)), size * rows // max(data.num_rows, 1))
        for start in range(0, data.num_rows, rows)
    ]


def _read_hf(task: Task) -> Iterator[Document]:
    data = _load(task.config)
    for part in task.parts:
        if hasattr(data, "num_rows"):
            first, rows = part.start, data.select(range(part.start, part.stop or 0))
        else:
            first, rows = 0, data.shard(part.stop, part.start) if (part.stop or 1) > 1 else data
        for row, record in enumerate(rows, first):
            text = record.get(task.config.text)
            if isinstance(text, str):
                text, broken = clean_text(text)
                yield Document(f"{part.id}@{row}", text, "a lone surrogate" if broken else None)
            else:
                yield Document(f"{part.id}@{row}", None, _no_text(task.config.text, record))
