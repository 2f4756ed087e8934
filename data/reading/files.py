"""Files: which ones a pattern means, their bytes, and their lines. Every ending that is compressed is read as its text.

Nothing depends on the order in which a folder lists its files: parts are sorted by name.
"""

import codecs
import contextlib
import functools
import glob
import gzip
import io
import os
import select
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, cast

from durable import fsync_directory

from ..config import DataConfig, SourceConfig
from ..documents import clean_text, decode
from ..errors import DataError

STDIN = "-"
"""The pattern that means standard input."""
_TEXT_PER_BYTE = {".gz": 4, ".zst": 4}  # of a compressed file, for progress and sampling only
_LOOKS = {
    b"\x1f\x8b": "gzip data: name the file *.gz",
    b"\x28\xb5\x2f\xfd": "zstd data: name the file *.zst",
    b"PAR1": "a table: kind: parquet reads it",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"BZh": "bzip2 data: unpack it, or use .gz or .zst",
    b"\xfd7zXZ\0": "xz data: unpack it, or use .gz or .zst",
    b"\xff\xfe": "perhaps `encoding: utf-16`",
    b"\xfe\xff": "perhaps `encoding: utf-16`",
}
_BROKEN = "\udfff"  # stands for what a decoder could not read; no decoder makes one of valid text


@dataclass(frozen=True)
class Part:
    """A file, or the bytes (jsonl), row groups (parquet) or rows (hf) `start:stop` of an input, or shard `start` of
    `stop` of a stream (hf); `id` names it in the store."""

    path: str
    id: str
    start: int = 0
    stop: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of every document in it."""


def excluded(config: SourceConfig, *names: str) -> bool:
    """Whether one of a file's names matches a pattern of `exclude`."""
    return any(fnmatchcase(name, pattern) for pattern in config.exclude for name in names)


def file_parts(source: str, config: SourceConfig, stdin: Path | None = None) -> list[tuple[Part, int]]:
    """(file, bytes of text) for all that the patterns match, once, sorted by name below the pattern's fixed folder.

    `stdin` is the file that holds standard input; without it `-` is passed over.
    """
    found: dict[str, Part] = {}
    real_folder = functools.cache(os.path.realpath)  # one look at each folder: files are many
    for pattern in config.files:
        if pattern == STDIN:
            if stdin is not None:
                found.setdefault(STDIN, Part(str(stdin), "stdin"))
            continue
        paths = [pattern] if os.path.lexists(pattern) else glob.glob(pattern, recursive=True)
        base = fixed_folder(pattern)
        matched = 0
        for path in sorted(paths):
            if path == pattern and os.path.isdir(path):
                raise DataError(f"data source {source!r}: {pattern} is a directory; write {pattern.rstrip('/')}/**/*")
            name = relative_name(path, base)
            if os.path.isfile(path) and not excluded(config, name, path):
                folder, last = os.path.split(path)
                real = os.path.realpath(path) if os.path.islink(path) else os.path.join(real_folder(folder), last)
                found.setdefault(real, Part(path, name))
                matched += 1
        if not matched:
            raise not_found(source, config, "file", pattern)
    parts = sorted(found.values(), key=lambda part: (part.id, part.path))
    return [(part, os.path.getsize(part.path) * _TEXT_PER_BYTE.get(_ending(part.path), 1)) for part in parts]


def not_found(source: str, config: SourceConfig, what: str, pattern: str) -> DataError:
    """That a pattern of a source matches nothing, and where its files are to be had."""
    whence = f"; it is to be had at {config.origin}" if config.origin else ""
    return DataError(f"data source {source!r}: no {what} matches {pattern!r} in {os.getcwd()}{whence}")


def fixed_folder(pattern: str) -> str:
    """The longest leading folder of a glob without wildcards."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or "."


def relative_name(path: str, base: str) -> str:
    """What a file is called below a folder, as text that can be printed."""
    name = os.path.relpath(path, base).replace(os.sep, "/")
    return name.encode(errors="backslashreplace").decode()


def is_compressed(path: str) -> bool:
    """Whether a file can only be read from its start."""
    return _ending(path) in _TEXT_PER_BYTE


def _ending(path: str) -> str:
    return os.path.splitext(path)[1]


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed as its ending says. A failure to read them, in the block too, is a DataError."""
    try:
        raw = open(path, "rb")  # noqa: SIM115 (closed below; its failure is told in other words)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    with raw:
        try:
            yield _decompressed(raw, _ending(path))
        except (OSError, EOFError, zlib.error, UnicodeError) as error:  # the last: UTF-16 without a byte order mark
            raise DataError(f"{path}: cannot be read to its end ({error})") from None


def _decompressed(raw: IO[bytes], ending: str) -> IO[bytes]:
    if ending == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if ending == ".zst":
        import pyarrow

        stream: Any = pyarrow.input_stream(raw, compression="zstd")
        return io.BufferedReader(stream, 1 << 20)
    return raw


def read_bytes(path: str) -> bytes:
    """A whole file."""
    with opened(path) as file:
        return file.read()


def decode_file(raw: bytes, encoding: str) -> tuple[str, str | None]:
    """(text, problem) of a file's bytes; a problem says what they may be instead."""
    text, problem = decode(raw, encoding)
    return text, problem and problem + looks_like(raw, text, encoding)


def looks_like(raw: bytes, text: str, encoding: str) -> str:
    """What bytes that are not the UTF-8 they should be are instead, in brackets; empty when nothing comes to mind."""
    if codecs.lookup(encoding).name != "utf-8":
        return ""
    for start, meaning in _LOOKS.items():
        if raw.startswith(start):
            return f" ({meaning})"
    high = len(raw) - len(raw.translate(None, bytes(range(128, 256))))
    if text.count("\ufffd") < max(3, high // 2) or b"\0" in raw:
        return ""
    controls = len(raw) - len(raw.translate(None, bytes(range(128, 160))))
    return f" (perhaps `encoding: {'cp1252' if controls else 'latin-1'}`)"


def splits_at_newlines(encoding: str) -> bool:
    """Whether the byte 10 ends a line and nothing else, so that lines can be decoded one by one."""
    return "\n".encode(encoding) == b"\n"


def text_lines(
    file: IO[bytes], encoding: str, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, str, str | None]]:
    """(place, text, problem) of each line that starts in the bytes `start:stop`, with its line end.

    The place is an offset in bytes, or in characters where bytes do not show where lines end (UTF-16).
    """
    if not splits_at_newlines(encoding):
        yield from _decoded_lines(file, encoding)
        return
    offset = start
    if offset:
        file.seek(offset - 1)
        offset += len(file.readline()) - 1  # the rest of a line that the range before has read
    while stop is None or offset < stop:
        line = file.readline()
        if not line:
            return
        text, problem = decode(line, encoding, start=not offset)
        yield offset, text, problem if offset or not problem else problem + looks_like(line, text, encoding)
        offset += len(line)


def _decoded_lines(file: IO[bytes], encoding: str) -> Iterator[tuple[int, str, str | None]]:
    codecs.register_error("mark-broken", _mark_broken)
    place = 0
    for line in io.TextIOWrapper(file, encoding, "mark-broken", newline="\n"):
        text, broken = clean_text(line if place else line.removeprefix("\ufeff"))
        yield place, text, f"not {encoding.upper()}" if broken else None
        place += len(line)


def _mark_broken(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _BROKEN, error.end


# Standard input


def stdin_file(directory: Path | None, side: str, source: str, config: SourceConfig) -> Path | None:
    """The file in the corpus directory that holds what a source read from standard input; None if it reads none.

    Raises DataError when there is no such file.
    """
    if STDIN not in config.files:
        return None
    path = directory and _spool(directory, side, source, config)
    if path is None or not path.is_file():
        raise DataError(f"data source {source!r} reads standard input: {_PIPE}")
    return path


_PIPE = "pipe text into python -m scripts.prepare CONFIG"


def _spool(directory: Path, side: str, source: str, config: SourceConfig) -> Path:
    return directory / "stdin" / f"{side}-{source}.{config.kind}"


def spool_stdin(config: DataConfig, directory: Path) -> None:
    """Copy standard input to a file of the corpus when a source reads it; a killed copy leaves no file.

    What was copied for an attempt that did not end is replaced by what comes now, and kept when nothing comes. Raises
    DataError when more than one source reads standard input, or when nothing ever came.
    """
    sides = (("train", config.sources), ("val", config.split.sources))
    readers = [(side, name, source) for side, sources in sides for name, source in sources.items()]
    readers = [reader for reader in readers if STDIN in reader[2].files]
    if len(readers) > 1:
        names = " and ".join(repr(name) for _, name, _ in readers)
        raise DataError(f"data sources {names}: only one can read standard input")
    for side, name, source in readers:
        path = _spool(directory, side, name, source)
        first = stdin_waits() if path.is_file() else _read_stdin(name)
        if not first:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as copy:
            copy.write(first)
            while chunk := sys.stdin.buffer.read(1 << 20):
                copy.write(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)


def _read_stdin(name: str) -> bytes:
    """The first of what is piped in, however long it takes."""
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError(f"data source {name!r} reads standard input: {_PIPE}")
    first = sys.stdin.buffer.read(1)
    if not first:
        raise DataError(f"data source {name!r}: standard input is empty; {_PIPE}")
    return first


def stdin_waits() -> bytes:
    """The first byte of standard input when something is piped in and there already, else nothing."""
    try:
        waits = not sys.stdin.isatty() and select.select([sys.stdin.buffer], [], [], 0)[0]
    except (AttributeError, OSError, ValueError):  # no standard input, or none that can be asked
        return b""
    return sys.stdin.buffer.read(1) if waits else b""
