"""How the fields of a record become a document, and JSON lines."""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..config import SourceConfig
from ..documents import Document, Turn, clean_text
from ..errors import DataError
from .files import Part, is_compressed, opened, splits_at_newlines, text_lines

_MAX_WEIGHT = 3.4e38  # of a float32
UNREADABLE = object()
"""A value that its type does not allow, such as text that is not UTF-8."""

Sized = list[tuple[Part, int]]


class _Unusable(Exception):
    """Why a record makes no document."""


# Documents


def document(place: str, record: object, config: SourceConfig, problem: str | None = None) -> Document:
    """The document that a record holds; its place names it unless a field does."""
    if not isinstance(record, Mapping):
        return Document(place, None, _no_text(config.text, record))
    notes = [problem] if problem else []
    identity = place
    try:
        identity = (_scalar(record, config.id, notes) if config.id else None) or place
        if config.messages:
            turns = _turns(record, config.messages, notes)
            text = "".join(turn.text for turn in turns)
        else:
            turns, text = (), _text(record, config.text, notes)
        found = {label: _scalar(record, field, notes) for label, field in config.labels.items()}
        weight = _weight(record, config.weight) if config.weight else 1.0
    except _Unusable as error:
        return Document(identity, None, str(error))
    labels = {label: value for label, value in found.items() if value}
    return Document(identity, text, notes[0] if notes else None, labels, weight, turns)


def _lookup(record: Mapping[Any, Any], name: str) -> Any:
    """A field by its name, or by the names of the records around it and its own, joined with dots; None if missing."""
    value: Any = record
    if name in record:
        return record[name]
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _string(value: object, notes: list[str]) -> str | None:
    """Text that UTF-8 can hold, or None for what is no text. Bytes are UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            notes.append(f"not UTF-8 at byte {error.start}")
            return value.decode(errors="replace")
    if not isinstance(value, str):
        return None
    text, broken = clean_text(value)
    if broken:
        notes.append("a lone surrogate")
    return text


def _text(record: Mapping[Any, Any], field: str, notes: list[str]) -> str:
    text = _string(_lookup(record, field), notes)
    if text is None:
        raise _Unusable(_no_text(field, record))
    return text


def _no_text(field: str, record: object) -> str:
    """Why a record has no text, with the fields that hold some."""
    if not isinstance(record, Mapping):
        return "not a JSON object: one stands in each line, {...}"
    items = record.items() if isinstance(record, Mapping) else ()
    fields = [str(name) for name, value in items if isinstance(value, (str, bytes)) and value]
    return f"no text in field {field!r}" + (f" (`text:` may be {shown(fields[:5])})" if fields else "")


def _scalar(record: Mapping[Any, Any], field: str, notes: list[str]) -> str | None:
    """A label or an id as text; None when it is missing, null, empty or not a number."""
    value = _lookup(record, field)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (str, bytes)):
        return _string(value, notes) or None
    if value is UNREADABLE or isinstance(value, (Mapping, Sequence)) or hasattr(value, "__array__"):
        raise _Unusable(f"field {field!r} holds no single value")
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


def _weight(record: Mapping[Any, Any], field: str) -> float:
    value = _lookup(record, field)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        weight = float(value)
        if not isinstance(value, bool) and 0 <= weight <= _MAX_WEIGHT:
            return weight
    shown = repr(value) if isinstance(value, (str, int, float)) else "none" if value is None else type(value).__name__
    raise _Unusable(f"field {field!r} holds no weight, a number of at least 0: {shown[:40]}")


def _turns(record: Mapping[Any, Any], field: str, notes: list[str]) -> tuple[Turn, ...]:
    messages = _lookup(record, field)
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise _Unusable(f"no conversation in field {field!r}: a list of {{role, content}}")
    turns = []
    for number, message in enumerate(messages):
        role = _string(message.get("role"), notes) if isinstance(message, Mapping) else None
        text = _said(message.get("content"), notes) if isinstance(message, Mapping) else None
        if not role or text is None:
            missing = "role" if not role else "text in `content`"
            raise _Unusable(f"message {number} of field {field!r} has no {missing}")
        turns.append(Turn(role, text))
    return tuple(turns)


def _said(content: object, notes: list[str]) -> str | None:
    """A message's text: one string, or the strings of its parts, all of which must be text."""
    if not isinstance(content, Sequence) or isinstance(content, (str, bytes)):
        return _string(content, notes)
    parts = [
        _string(part.get("text"), notes) if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
        for part in content
    ]
    texts = [part for part in parts if part is not None]
    return "".join(texts) if len(texts) == len(parts) else None


def shown(names: Sequence[str]) -> str:
    """Names for a line of print, whatever is in them: control characters escaped, and not too much of it."""
    return ", ".join(printable(name[:40]) for name in names[:20]) + (", ..." if len(names) > 20 else "")


def printable(text: str) -> str:
    """A text with its control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def columns_for(config: SourceConfig) -> list[str]:
    """The fields that a source reads, each once."""
    fields = [config.messages or config.text, config.id, *config.labels.values(), config.weight]
    return list(dict.fromkeys(field for field in fields if field))


def project(names: Sequence[str], config: SourceConfig, where: str) -> list[str]:
    """The columns of a table that hold the fields that are read. Raises DataError for one that is not there."""
    found = []
    for field in columns_for(config):
        column = field if field in names else field.partition(".")[0]
        if column not in names:
            one = len(names) == 1 and re.search(r"[;\t|]", names[0])
            hint = " (columns are parted by commas here)" if one else ""
            raise DataError(f"{where}: no column {field!r}; there are {shown(names)}{hint}")
        if list(names).count(column) > 1:
            raise DataError(f"{where}: more than one column is called {column!r}")
        found.append(column)
    return list(dict.fromkeys(found))


# JSON lines


def jsonl_parts(config: SourceConfig, files: Sized, task_bytes: int) -> Sized:
    """Files in byte ranges where these can be read alone, else whole. A line is read with the range of its start."""
    sized = []
    for part, size in files:
        if is_compressed(part.path) or not splits_at_newlines(config.encoding):
            sized.append((part, size))
            continue
        for start in range(0, max(size, 1), task_bytes):
            stop = min(start + task_bytes, size)
            sized.append((Part(part.path, part.id, start, stop), stop - start))
    return sized


def read_jsonl(part: Part, config: SourceConfig) -> Iterator[Document]:
    """A document for each line that is not blank."""
    with opened(part.path) as file:
        for place, line, problem in text_lines(file, config.encoding, part.start, part.stop):
            if not line.strip(" \t\r\n\v\f"):
                continue
            identity = f"{part.id}@{place}"
            try:
                record = json.loads(line.removeprefix("\ufeff"))  # of files that were joined
            except (ValueError, RecursionError):
                yield Document(identity, None, f"not JSON, {problem}" if problem else "not JSON")
            else:
                yield document(identity, record, config, problem)
