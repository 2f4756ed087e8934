"""Documents that share a word n-gram with an evaluation text (Brown et al., 2020, appendix C)."""

import glob
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..config import DecontaminateConfig
from ..documents import decode
from ..errors import DataError
from ..reading.files import is_compressed, read_bytes
from ..store import Store
from .derived import derived
from .shingles import ngrams, texts, words

_SHORT = 4
"""A text of fewer words, such as an answer or a name, would be found everywhere: only a document that is nothing else
counts."""


def digest(config: DecontaminateConfig | None) -> str | None:
    """Of what the evaluation files hold and how it is looked for, hexadecimal; None without any."""
    if config is None:
        return None
    content = sorted(hashlib.sha256(path.read_bytes()).hexdigest() + _suffix(path) for path in _files(config))
    return hashlib.sha256(json.dumps([config.ngram, content]).encode()).hexdigest()[:16]


def contaminated(store: Store, config: DecontaminateConfig) -> np.ndarray:
    """Which documents of the store share an n-gram with an evaluation text, bool (documents,).

    A text of fewer than `ngram` words must stand in the document whole. Raises DataError when a pattern names no file.
    """
    found: list[dict[int, np.ndarray]] = []  # read when a shard needs it

    def compute(shard: int) -> np.ndarray:
        if not found:
            found.append(_wanted(config))
        parts = [_holds_any(group, found[0]) for group in texts(store, shard)]
        return np.concatenate([np.zeros(0, bool), *parts])

    name = f"contaminated-{digest(config)}"
    return np.concatenate([np.zeros(0, bool), *derived(store, name, compute)])


def _files(config: DecontaminateConfig) -> list[Path]:
    found: set[str] = set()
    for pattern in config.files:
        here = [path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]
        if not here:
            raise DataError(f"data.clean.decontaminate.files: no file matches {pattern!r}")
        found.update(here)
    return [Path(path) for path in sorted(found)]


def _suffix(path: Path) -> str:
    """The ending of a file without that of its compression."""
    return (path.with_suffix("") if is_compressed(str(path)) else path).suffix


def _wanted(config: DecontaminateConfig) -> dict[int, np.ndarray]:
    """{words of an n-gram: the hashes of those to look for, sorted}; 0: those that must be the whole document."""
    evaluation = words([text.encode(errors="replace") for path in _files(config) for text in _strings(path)])
    counts, pieces = evaluation.counts, ngrams(evaluation, config.ngram)
    size = np.where(counts < min(_SHORT, config.ngram), 0, np.minimum(counts, config.ngram))[pieces.document]
    return {n: np.unique(pieces.values[size == n]) for n in np.unique(size).tolist()}


def _strings(path: Path) -> Iterator[str]:
    """The texts of a file, which may be compressed: of `.jsonl` every string in every line, else all of it."""
    text, problem = decode(read_bytes(str(path)))
    if "\0" in text:  # a table, an archive or UTF-16: nothing would ever be found
        raise DataError(f"data.clean.decontaminate.files: {path} is no text; write it as .jsonl or as UTF-8 text")
    if _suffix(path) != ".jsonl":
        yield text
        return
    if problem:
        raise DataError(f"{path}: {problem}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield from _strings_in(json.loads(line))
            except (ValueError, RecursionError):
                raise DataError(f"{path}:{number}: not JSON; a .jsonl has a JSON value on each line") from None


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings_in(inner)


def _holds_any(group: list[bytes], wanted: dict[int, np.ndarray]) -> np.ndarray:
    """Which of some texts hold an n-gram that is wanted, bool (texts,)."""
    every, found = words(group), np.zeros(len(group), bool)
    for n, hashes in wanted.items():
        pieces = ngrams(every, n or _SHORT)  # of a text with fewer words the one hash of them all
        at = np.minimum(np.searchsorted(hashes, pieces.values), len(hashes) - 1)
        found[pieces.document[hashes[at] == pieces.values]] = True
    return found
