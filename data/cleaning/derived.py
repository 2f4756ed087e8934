"""Columns that are computed from the stored tokens when they are first needed, and kept beside the shards.

`<corpus>/derived/<name>-<digest>.npz` holds those of one shard. The digest covers all that decides its content, and
the file's own checksums are verified as it is read: one that is missing or damaged is computed again.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from durable import Damaged, atomic_write

from ..store import Shard, Store, from_file, to_bytes

_VERSION = 1  # of every computation


def derived(store: Store, name: str, compute: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    """One array (documents of the shard, ...) for each shard. `name` must tell apart whatever `compute` may give.

    Files are written only by a process that prepares the corpus, see `Store.keeps_derived`.
    """
    folder = store.directory / "derived"
    for number, shard in enumerate(store.shards):
        path = folder / f"{name}-{_digest(store, shard)}.npz"
        values = _read(path, shard.documents)
        if values is None:
            values = compute(number)
            assert len(values) == shard.documents
            if store.keeps_derived:
                folder.mkdir(exist_ok=True)
                atomic_write(path, to_bytes({"values": values}))
        yield values


def _digest(store: Store, shard: Shard) -> str:
    """Names what a shard's texts are decoded from."""
    content = [_VERSION, store.manifest["tokenizer_sha256"], shard.sha256["bin"], shard.sha256["npz"]]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _read(path: Path, documents: int) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        values = from_file(path)["values"]
    except (Damaged, KeyError):
        return None
    return values if values.ndim and len(values) == documents else None
