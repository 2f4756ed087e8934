"""Append-only files of one JSON object a line, each with its `step`: `metrics.jsonl` and `samples.jsonl`.

A row survives a kill of the process once `append` returns, and a crash of the machine once `sync` does.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import durable

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"


class Rows:
    """The file at `path`, open for appending after everything beyond step `keep` was dropped, and a torn last line."""

    def __init__(self, path: Path, keep: int) -> None:
        _rewind(path, keep)
        self.rows = read_rows(path)
        self._file = open(path, "ab")  # noqa: SIM115 - held open until close
        self.last: int | None = self.rows[-1]["step"] if self.rows else None

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and flush it. Raises ValueError when its step is before the last one."""
        if self.last is not None and row["step"] < self.last:
            raise ValueError(f"{self._file.name}: step {row['step']} comes after step {self.last}")
        self._file.write(_line(row))
        self._file.flush()
        self.last = row["step"]

    def sync(self) -> None:
        """Make every row durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close; again is harmless."""
        if not self._file.closed:
            self.sync()
            self._file.close()


class Mark:
    """How far a copy of the rows has come: the last step it holds, kept beside it at `path`.

    `step` is -1 when there is no mark, or one of a copy by another name. A mark outlives a kill of the process; after
    a crash of the machine it may be an older one.
    """

    def __init__(self, path: Path, name: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._path, self._name, self.step = path, name, -1
        with contextlib.suppress(ValueError, KeyError, TypeError):
            mark = json.loads(path.read_bytes())
            if mark["name"] == name:
                self.step = int(mark["step"])

    def move(self, step: int) -> None:
        """The copy holds everything up to `step`."""
        mark = json.dumps({"name": self._name, "step": step}).ljust(80) + "\n"
        with open(self._path, "r+b", buffering=0) as file:  # in place: a rename takes too long for every row
            file.write(mark.encode())
        self.step = step


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows in `path`, none when it does not exist; a torn last line is left out.

    Raises `Damaged`, naming the line, when any other line is not a JSON object with an integer step.
    """
    return [row for row, _ in _lines(path)]


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, in order; see `read_rows`."""
    return read_rows(Path(run_dir) / METRICS)


def finite(value: Any) -> Any:
    """`value` for strict JSON: numpy and torch scalars as Python numbers, nan and infinities as None, deeply."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if not isinstance(value, str | int | float | None) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rewind(path: Path, keep: int) -> None:
    if not path.exists():
        return
    kept = b"".join(line for row, line in _lines(path) if row["step"] <= keep)
    if kept != path.read_bytes():
        durable.atomic_write(path, kept)


def _lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Each row with the bytes of its line, newline included."""
    pieces = path.read_bytes().split(b"\n") if path.exists() else [b""]
    found = []
    for number, piece in enumerate(pieces, 1):
        if number == len(pieces) and not piece:
            break
        try:
            row = json.loads(piece, parse_constant=_refuse)
            if type(row["step"]) is not int:
                raise TypeError("step")
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(pieces):  # no newline after it: the write was cut off
                break
            raise durable.Damaged(f"{path}:{number}: not a JSON object with an integer step") from None
        found.append((row, piece + b"\n"))
    return found


def _line(row: Mapping[str, Any]) -> bytes:
    row = finite(row)
    try:
        return json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, its escape has
        return json.dumps(row, allow_nan=False).encode() + b"\n"


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
