"""CSV and Parquet files, and Arrow tables as records. Nothing here is imported before a table is read."""

import contextlib
import csv
import sys
from collections.abc import Iterator
from typing import Any

from ..config import SourceConfig
from ..documents import Document
from ..errors import DataError
from .files import Part, opened, text_lines
from .records import UNREADABLE, document, project, shown

BATCH_ROWS = 256
"""Rows of a table that become Python values together."""


# CSV


def read_csv(part: Part, config: SourceConfig) -> Iterator[Document]:
    """A document for each row below the header; quoted line ends are text. Raises DataError without a header."""
    csv.field_size_limit(sys.maxsize)  # a document may be long
    read: list[tuple[int, str | None]] = []  # place of each line of the row, and what is wrong with its bytes
    with opened(part.path) as file:

        def lines() -> Iterator[str]:
            for place, line, problem in text_lines(file, config.encoding):
                read.append((place, problem))
                yield line

        rows = csv.reader(lines(), strict=True)
        names = _header(part.path, rows, read, config)
        while True:
            read.clear()
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                for place, _ in read:  # after a quote that is never closed, rows: none is lost without being counted
                    yield Document(f"{part.id}@{place}", None, f"not CSV ({error})")
                continue
            place, problem = read[0][0], _first_problem(read)
            if row and len(row) != len(names):
                wrong = f"{len(row)} fields instead of {len(names)}"
                yield Document(f"{part.id}@{place}", None, f"not CSV ({wrong})")
            elif row:
                yield document(f"{part.id}@{place}", dict(zip(names, row, strict=True)), config, problem)


def _header(
    path: str, rows: Iterator[list[str]], read: list[tuple[int, str | None]], config: SourceConfig
) -> list[str]:
    try:
        names = next((row for row in rows if row), None)
    except csv.Error as error:
        raise DataError(f"{path}: no CSV header ({_first_problem(read) or error})") from None
    if names is None:
        raise DataError(f"{path}: is empty; a CSV file starts with the names of its columns")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have one name: {shown(names)}")
    problem = _first_problem(read)
    project(names, config, f"{path}, {problem}" if problem else path)
    return names


def _first_problem(read: list[tuple[int, str | None]]) -> str | None:
    return next((problem for _, problem in read if problem), None)


# Parquet


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[Any]:
    """A Parquet file; what is wrong with it is a DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: No such file or directory") from None
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{path}: cannot be read as parquet ({reason})") from None


def parquet_parts(config: SourceConfig, files: list[tuple[Part, int]], task_bytes: int) -> list[tuple[Part, int]]:
    """Row groups, together until they hold about `task_bytes` of the columns that are read."""
    sized: list[tuple[Part, int]] = []
    for part, _ in files:
        with _parquet(part.path) as file:
            columns = project(file.schema_arrow.names, config, part.path)
            check_text(file.schema_arrow, config, part.path)
            rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            per_row = _bytes_per_row(file, rows, columns)
        start, filled = 0, 0.0
        for stop, count in enumerate(rows, 1):
            filled += count * per_row
            if filled >= task_bytes or stop == len(rows):
                sized.append((Part(part.path, part.id, start, stop), int(filled)))
                start, filled = stop, 0.0
    return sized


def _bytes_per_row(file: Any, rows: list[int], columns: list[str]) -> float:
    """Of the first rows: the sizes in the footer are after encoding, and asking for those of a damaged column ends the
    process (pyarrow 26)."""
    group = next((i for i, count in enumerate(rows) if count), None)
    if group is None:
        return 0.0
    batch = next(file.iter_batches(BATCH_ROWS, [group], columns, use_threads=False), None)
    return batch.nbytes / batch.num_rows if batch is not None and batch.num_rows else 0.0


def check_text(schema: Any, config: SourceConfig, where: str) -> None:
    """Raise DataError when the column of the text holds none."""
    names = [field.name for field in schema if _holds_text(field.type)]
    if not config.messages and config.text in schema.names and config.text not in names:
        hint = f"; `text:` may be {shown(names[:5])}" if names else ""
        kind = schema.field(config.text).type
        raise DataError(f"{where}: column {config.text!r} holds {kind}, no text{hint}")


def _holds_text(kind: Any) -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return any(word in str(kind) for word in ("string", "binary")) and not pyarrow.types.is_nested(kind)


def read_parquet(part: Part, config: SourceConfig) -> Iterator[Document]:
    """A document for each row of some row groups, named by its number in the file."""
    with _parquet(part.path) as file:
        groups = range(part.start, file.metadata.num_row_groups if part.stop is None else part.stop)
        row = sum(file.metadata.row_group(i).num_rows for i in range(part.start))
        columns = project(file.schema_arrow.names, config, part.path)
        for group in groups:
            for batch in file.iter_batches(BATCH_ROWS, [group], columns, use_threads=False):
                for record in arrow_records(batch):
                    yield document(f"{part.id}@{row}", record, config)
                    row += 1


def arrow_records(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow table or batch; text is given as bytes, since nothing has checked that it is UTF-8."""
    columns = [_values(batch.column(i)) for i in range(batch.num_columns)]
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _values(column: Any) -> list[Any]:
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.large_binary())
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # text that is not UTF-8 inside a record, or a date that Python has not
        values = [_value(item) for item in column]
    return values


def _value(item: Any) -> Any:
    try:
        return item.as_py()
    except (ValueError, OverflowError):
        return UNREADABLE
