"""Hashing a corpus once: files that were found intact and have not been touched since are not hashed again.

`<dir>/.<hash12>.verified`, beside the corpus, holds what the file system says of each file: size, inode, and the times
of its last change of content and of any kind, which no program can set back. `corpus verify` always hashes everything.
"""

import contextlib
import json
import os
import time
from pathlib import Path

from durable import atomic_write

from ..store import Store

WORTH = 64 << 20
"""Bytes: what is smaller is hashed each time."""
_SETTLED = 2 * 10**9  # ns: a file as young as this may change again without another time


def verify(store: Store) -> None:
    """Raise Damaged unless every file is what the manifest says, by its hash or by an earlier look."""
    if sum(size for shard in store.shards for size in shard.sizes.values()) < WORTH:
        store.verify()
        return
    record = store.directory.with_name(f".{store.directory.name}.verified")
    before, looks = _read(record), _looks(store)
    known = {name for name, look in looks.items() if before.get(name) == look}
    now = time.time_ns()
    store.verify(known=known)
    settled = {name: look for name, look in looks.items() if name in known or look[3] < now - _SETTLED}
    if settled != before:
        with contextlib.suppress(OSError):  # a corpus of somebody else: it is hashed each time
            atomic_write(record, json.dumps(settled))


def _looks(store: Store) -> dict[str, list[int]]:
    """Of each file of the shards that is there."""
    found = {}
    for shard in store.shards:
        for suffix in shard.sizes:
            name = f"{shard.name}.{suffix}"
            with contextlib.suppress(FileNotFoundError):
                about = os.stat(store.folder / name)
                found[name] = [about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns]
    return found


def _read(record: Path) -> dict[str, list[int]]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
