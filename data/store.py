"""Tokens on disk: content-named shards, and the manifest that binds them.

    <dir>/<hash12>/manifest.json     written last: without it there is no corpus
                   tokenizer.json
                   unreadable.jsonl    [source, id, problem] of each document that had no text to keep
                   inputs.json         what the input files looked like, to notice a change; no part of the corpus
                   attempt.json, tasks/ while the corpus is being made: see data.making.attempt
                   shards/<name>.bin   little-endian u16 or u32: E t1 .. tn E t1 .. tm E
                   shards/<name>.mask  u8 for each token: 1 = a target; missing when all are
                   shards/<name>.npz   one array for each column, see COLUMNS; unknown ones are ignored
                   shards/<name>.json  counts and sha256, written last: the commit record of the shard
                   derived/            columns computed from the tokens; made again when missing or damaged
                   plans/<id>.npz      rows for one split, packing and context; made again when missing or damaged
                   card.md, card.html  of the plan that was made last, for people; no part of the corpus

E ends a document, and one stands at each end of a shard, so that a document of n tokens has n + 1 pairs
(input, target): inputs bin[s : s + n + 1], targets bin[s + 1 : s + n + 2]. Boundaries are offsets, never found by
looking for E. Nothing is pickled, and no file but inputs.json depends on the times of files.
"""

import functools
import io
import json
import os
import zipfile
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from durable import Damaged, atomic_write, sha256

from .tokenizer import FILE, Tokenizer

FORMAT = 2
MANIFEST = "manifest.json"
UNREADABLE = "unreadable.jsonl"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest little-endian type that holds every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as the bytes of an npz: the same arrays, the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
    return buffer.getvalue()


def from_file(path: Path) -> dict[str, np.ndarray]:
    """Every array of an npz. Raises Damaged when it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise Damaged(f"{path}: cannot be read ({type(error).__name__})") from None


@dataclass(frozen=True)
class Shard:
    """The commit record of one shard."""

    name: str
    source: str
    side: str
    documents: int
    tokens: int
    """Without the E's."""
    bytes: int
    """UTF-8 bytes of its texts."""
    dtype: str
    sizes: dict[str, int]
    """Bytes of each file, by suffix: bin, npz and, when only some tokens are targets, mask."""
    sha256: dict[str, str]

    def damages(self, folder: Path, *, content: bool, known: Collection[str] = ()) -> list[str]:
        """What is wrong with each file that has not its size or, with `content`, its hash; the hashes of the files that
        `known` names are not looked at."""
        found = []
        for suffix, size in self.sizes.items():
            path = folder / f"{self.name}.{suffix}"
            if not path.is_file():
                found.append(f"{path}: missing")
            elif path.stat().st_size != size:
                found.append(f"{path}: {path.stat().st_size} bytes, not {size}")
            elif content and path.name not in known and sha256(path) != self.sha256[suffix]:
                found.append(f"{path}: sha256 differs")
        return found


def write_shard(
    folder: Path,
    name: str,
    tokens: np.ndarray,
    mask: np.ndarray | None,
    columns: Mapping[str, np.ndarray],
    source: str,
    side: str,
) -> Shard:
    """Write the files of a shard and, last, its record. `tokens` has the shard's dtype and every E; `mask` says which
    of them are targets, None: all."""
    offsets = columns["offsets"]
    assert int(offsets[-1]) == len(tokens) - 1 and tokens.dtype.itemsize in (2, 4)
    sizes, hashes = {}, {}
    files = {"bin": tokens.tobytes(), "npz": to_bytes(columns)}
    if mask is not None:
        files["mask"] = mask.astype(np.uint8).tobytes()
    for suffix, content in files.items():
        path = folder / f"{name}.{suffix}"
        atomic_write(path, content)
        sizes[suffix], hashes[suffix] = len(content), sha256(path)
    documents = len(offsets) - 1
    shard = Shard(
        name=name,
        source=source,
        side=side,
        documents=documents,
        tokens=len(tokens) - documents - 1,
        bytes=int(columns["nbytes"].sum()),
        dtype=tokens.dtype.str,
        sizes=sizes,
        sha256=hashes,
    )
    atomic_write(folder / f"{name}.json", json.dumps(asdict(shard), indent=1))
    return shard


def find_shard(folder: Path, name: str) -> Shard | None:
    """The record of a shard that is there and intact, else None."""
    try:
        shard = Shard(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
        intact = shard.name == name and not shard.damages(folder, content=True)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
    return shard if intact else None


class Store:
    """A committed corpus, read only. Shards are mapped, not loaded."""

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self.shards = [Shard(**record) for record in manifest["shards"]]
        self.end_id: int = manifest["end_id"]
        self.keeps_derived = False
        """Whether `data.cleaning.derived` may write here: only a process that prepares the corpus, under its lock."""
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, directory: Path) -> "Store | None":
        """The corpus in a directory; None when it has not been committed. Raises Damaged when it cannot be read."""
        path = directory / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise Damaged(f"{path}: format {manifest['format']}, this program reads {FORMAT}; delete {directory}")
            store, dtype = cls(directory, manifest), token_dtype(manifest["vocab_size"]).str
            if wrong := next((shard for shard in store.shards if shard.dtype != dtype), None):
                raise Damaged(f"{path}: ids of {wrong.name} have type {wrong.dtype}, not {dtype}; delete {directory}")
            return store
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{path}: cannot be read ({type(error).__name__}); delete {directory}") from None

    @property
    def folder(self) -> Path:
        """Where the shards are."""
        return self.directory / "shards"

    def verify(self, *, content: bool = True, known: Collection[str] = ()) -> None:
        """Raise Damaged, naming the files, if a shard or the tokenizer is not what the manifest says.

        `content=False` looks at sizes only, and at the tokenizer; see `damages` for `known`.
        """
        found = self.damages(content=content, known=known)
        if found:
            more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
            raise Damaged(
                f"{'; '.join(found[:5])}{more}; `python -m scripts.prepare CONFIG --repair` mends it while the sources "
                f"are the same, or delete {self.directory} to prepare it again"
            )

    def damages(self, *, content: bool = True, known: Collection[str] = ()) -> list[str]:
        """What is wrong with each damaged file, one line each; files that are not of the corpus are ignored.

        `content=False` compares sizes; `known` names files of the folder whose hashes need not be looked at.
        """
        path, found = self.directory / FILE, []
        want = self.manifest["tokenizer_sha256"]
        if not path.is_file():
            found.append(f"{path}: missing")
        elif (have := sha256(path)) != want:
            found.append(f"{path}: sha256 {have[:12]} does not match the store, which was made with {want[:12]}")
        with ThreadPoolExecutor() as threads:  # hashing releases the interpreter lock
            for some in threads.map(lambda i: self._shard_damages(i, content, known), range(len(self.shards))):
                found += some
        return found

    def _shard_damages(self, number: int, content: bool, known: Collection[str]) -> list[str]:
        """See `damages`; where the content is looked at, an id that the vocabulary lacks is damage too."""
        shard, size = self.shards[number], self.manifest["vocab_size"]
        found = shard.damages(self.folder, content=content, known=known)
        if content and not found and f"{shard.name}.bin" not in known:
            ids = self.tokens(number)
            if int(ids.max()) >= size:
                at = int(np.argmax(ids >= size))
                path = self.folder / f"{shard.name}.bin"
                found.append(f"{path}: token {at} is {int(ids[at])}, and ids end at {size - 1}")
        return found

    def tokens(self, shard: int) -> np.ndarray:
        """The ids of one shard."""
        record = self.shards[shard]
        return self._map(f"{record.name}.bin", np.dtype(record.dtype))

    def _map(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        """A plain array over a mapped file of the folder, which slices faster than a memmap."""
        found = self._maps.get(name)
        if found is None:
            path = self.folder / name
            try:
                found = np.asarray(np.memmap(path, dtype, "r"))
            except (OSError, ValueError) as error:
                raise Damaged(f"{path}: cannot be mapped ({error})") from None
            self._maps[name] = found
        return found

    def mask(self, shard: int) -> np.ndarray | None:
        """Which tokens of one shard are targets, u1 of the length of its tokens; None: all."""
        record = self.shards[shard]
        return self._map(f"{record.name}.mask", np.dtype("u1")) if "mask" in record.sizes else None

    @functools.cached_property
    def label_names(self) -> tuple[str, ...]:
        """Every label that some document has, sorted."""
        names = {name[6:] for columns in self._columns for name in columns if name.startswith("label:")}
        return tuple(sorted(names))

    def label(self, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        """(index into the values for each document of the store, -1: none; int32), (the values, sorted)."""
        codes = [columns.get(f"label:{name}") for columns in self._columns]
        own = [json.loads(columns[f"values:{name}"].tobytes()) if f"values:{name}" in columns else []
               for columns in self._columns]  # fmt: skip
        values = tuple(sorted({value for some in own for value in some}))
        number = {value: i for i, value in enumerate(values)}
        parts = [np.zeros(0, np.int32)]
        for record, code, some in zip(self.shards, codes, own, strict=True):
            table = np.array([*(number[value] for value in some), -1], np.int32)  # the last entry is for -1
            parts.append(np.full(record.documents, -1, np.int32) if code is None else table[code])
        return np.concatenate(parts), values

    @functools.cached_property
    def weights(self) -> np.ndarray | None:
        """Weight of each document of the store in the loss, float32; None: all are 1."""
        if not any("weight" in columns for columns in self._columns):
            return None
        pairs = zip(self.shards, self._columns, strict=True)
        parts = [columns.get("weight", np.ones(record.documents, np.float32)) for record, columns in pairs]
        return np.concatenate(parts)

    def documents_at(self, shard: np.ndarray, token: np.ndarray) -> np.ndarray:
        """Which document of the store each (shard, token) is in, int64; the E before a document is the document's."""
        offsets = self.column("offsets")
        first = np.cumsum([0, *(record.documents for record in self.shards)])
        found = np.empty(len(token), np.int64)
        for number in np.unique(shard).tolist():
            here = shard == number
            found[here] = first[number] + np.searchsorted(offsets[number], token[here], side="right") - 1
        return found

    def count_targets(self, shard: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """How many of the targets of each run of (input, target) pairs are to be learned, int64."""
        found = length.astype(np.int64)
        for number in np.unique(shard).tolist():
            mask = self.mask(number)
            if mask is not None:
                here = shard == number
                before = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])  # targets before each token
                first = start[here] + 1
                found[here] = before[first + length[here]] - before[first]
        return found

    def read_ahead(self, shard: int, start: np.ndarray, length: np.ndarray) -> None:
        """Ask the system to fetch these runs of tokens of one shard soon, where it can be asked."""
        if not hasattr(os, "posix_fadvise"):
            return
        record = self.shards[shard]
        size = np.dtype(record.dtype).itemsize
        file = os.open(self.folder / f"{record.name}.bin", os.O_RDONLY)
        try:
            for at, count in zip((start * size).tolist(), ((length + 1) * size).tolist(), strict=True):
                os.posix_fadvise(file, at, count, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(file)

    def column(self, name: str) -> list[np.ndarray]:
        """One column of every shard. Raises Damaged when a shard lacks it."""
        missing = [
            record.name for record, columns in zip(self.shards, self._columns, strict=True) if name not in columns
        ]
        if missing:
            raise Damaged(f"{self.folder / missing[0]}.npz: no column {name!r}")
        return [columns[name] for columns in self._columns]

    @functools.cached_property
    def _columns(self) -> list[dict[str, np.ndarray]]:
        return [from_file(self.folder / f"{record.name}.npz") for record in self.shards]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return Tokenizer((self.directory / FILE).read_bytes().decode(), str(self.directory / FILE))
