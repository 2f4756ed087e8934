"""Tensors in safetensors files: each whole in one, or its rows spread over several, one of each process.

Shapes: R rows, the first dimension of a tensor; one without dimensions counts as a single row. With n processes,
process k has the rows from k * ceil(R / n) on, ceil(R / n) of them as long as there are any: as FSDP2 shares them out.

The whole tensors of a set `model` are in `model.safetensors`, the parts in `model.part1of2.safetensors` and so on: a
name says how many there are. A part's metadata tell where its rows begin, under the keys of PyTorch's own distributed
safetensors checkpoints, and each tensor's whole shape, so that nothing can be missing unseen. They are a single entry:
the library writes several in a random order, and the same tensors have to be the same file.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from durable import Damaged

_ROWS = "DCP_SHARDING_INFO"  # JSON: {name: {"saved_offsets": [first row, 0, ...], "shape": whole shape}}


def rows_of(shape: tuple[int, ...], part: int, parts: int) -> tuple[int, int]:
    """The first row of a tensor that `part` of `parts` has, and one more than the last."""
    rows = shape[0] if shape else 1
    share = -(-rows // parts)
    return min(rows, part * share), min(rows, (part + 1) * share)


@dataclass(frozen=True)
class Part:
    """What one process stores of a set of tensors."""

    number: int
    of: int
    rows: Mapping[str, Tensor] = field(repr=False)
    """Its rows of each tensor, on the CPU."""
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Whole."""

    def write(self, directory: Path, name: str) -> None:
        """Store it as one of the files of the set `name`. Raises SafetensorError where that fails."""
        metadata, rows = {"format": "pt"}, dict(self.rows)
        file = f"{name}.safetensors"
        if self.of > 1:
            file = f"{name}.part{self.number + 1}of{self.of}.safetensors"
            rows = {key: tensor for key, tensor in rows.items() if tensor.numel() or self.number == 0}
            about = {key: {"saved_offsets": self._offset(key), "shape": self.shapes[key]} for key in rows}
            metadata = {_ROWS: json.dumps(about)}
        save_file(rows, directory / file, metadata)
        (directory / file).chmod(directory.stat().st_mode & 0o666)  # for all who may see the directory

    def _offset(self, key: str) -> list[int]:
        shape = self.shapes[key]
        return [rows_of(shape, self.number, self.of)[0], *(0 for _ in shape[1:])] if shape else []


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor in a file."""

    start: int
    stop: int
    file: Any
    path: Path


@dataclass(frozen=True)
class Stored:
    """A tensor on disk."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[_Piece, ...] = field(repr=False)

    def read_into(self, target: Tensor, start: int = 0) -> None:
        """Fill `target`, on any device, with as many rows as it has, from row `start` on."""
        stop = start + (target.shape[0] if self.shape else 1)
        for piece in self.pieces:
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low >= high:
                continue
            try:
                if self.shape:
                    rows = piece.file.get_slice(self.name)[low - piece.start : high - piece.start]
                    target[low - start : high - start].copy_(rows)
                else:
                    target.copy_(piece.file.get_tensor(self.name))
            except (OSError, SafetensorError) as error:
                raise Damaged(f"{piece.path}: {self.name} cannot be read ({error})") from None


@contextmanager
def open_tensors(directory: Path, name: str) -> Iterator[dict[str, Stored]]:
    """The tensors of the set `name` in `directory`, to be read inside the `with` block; nothing is read before.

    Raises `Damaged` when a file is missing or none, or rows are missing or there twice.
    """
    found: dict[str, list[tuple[tuple[int, ...], torch.dtype, _Piece]]] = {}
    with ExitStack() as stack:
        for path in _files(directory, name):
            try:
                file = stack.enter_context(safe_open(path, "pt"))
                for key, shape, dtype, start, rows in _contents(file):
                    found.setdefault(key, []).append((shape, dtype, _Piece(start, start + rows, file, path)))
            except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise Damaged(f"{path}: cannot be read ({error})") from None
        yield {key: _join(directory, key, pieces) for key, pieces in sorted(found.items())}


def _files(directory: Path, name: str) -> list[Path]:
    """The one file of a set, or all its parts in order."""
    whole = directory / f"{name}.safetensors"
    pattern = re.compile(rf"{re.escape(name)}\.part(\d+)of(\d+)\.safetensors")
    parts = {path.name for path in directory.iterdir() if pattern.fullmatch(path.name)} if directory.is_dir() else set()
    if not parts:
        return [whole]
    if whole.exists():
        raise Damaged(f"{directory}: both {whole.name} and {min(parts)}")
    match = pattern.fullmatch(min(parts))
    count = int(match[2]) if match else 0
    wanted = [f"{name}.part{k}of{count}.safetensors" for k in range(1, count + 1)]
    if stray := sorted(parts ^ set(wanted)):
        raise Damaged(f"{directory}: {stray[0]} is {'superfluous' if stray[0] in parts else 'missing'}")
    return [directory / file for file in wanted]


def _contents(file: Any) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, int, int]]:
    """(name, whole shape, dtype, first row, rows) of each tensor with rows in an open file."""
    metadata = file.metadata() or {}
    about = json.loads(metadata[_ROWS]) if _ROWS in metadata else None
    for key in file.keys():  # noqa: SIM118 (it is no dict)
        here = file.get_slice(key)
        have = tuple(here.get_shape())
        shape = tuple(map(int, about[key]["shape"])) if about is not None else have
        start = int(about[key]["saved_offsets"][0]) if about is not None and shape else 0
        if len(shape) != len(have) or shape[1:] != have[1:]:
            raise ValueError(f"{key} has shape {have}, which is no part of {shape}")
        empty = here[:0] if have else file.get_tensor(key)
        yield key, shape, empty.dtype, start, have[0] if have else 1


def _join(directory: Path, key: str, found: list[tuple[tuple[int, ...], torch.dtype, _Piece]]) -> Stored:
    """One tensor of its pieces, which have to follow one another without a gap."""
    shape, dtype, _ = found[0]
    if any((shape, dtype) != other[:2] for other in found):
        raise Damaged(f"{directory}: the parts of {key} differ in shape or type")
    pieces = tuple(sorted((piece for _, _, piece in found), key=lambda piece: (piece.start, piece.stop)))
    end = 0
    for piece in pieces:
        if piece.start != end:
            raise Damaged(f"{piece.path}: {key} has row {piece.start} where row {end} was due")
        end = piece.stop
    if end != (shape[0] if shape else 1):
        raise Damaged(f"{directory}: {key} ends with row {end} of {shape[0] if shape else 1}")
    return Stored(key, shape, dtype, pieces)
