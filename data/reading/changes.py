"""Whether the sources still are what a corpus was made from, judged without reading them.

A `python` source is judged by the versions of its packages, which the manifest holds; files by their names, sizes and
times, of which `inputs.json` holds a digest. That file is no part of the corpus: copies of the same files have other
times. Nothing is said of a source that is no longer there, since the corpus is complete without it, nor of datasets
on the hub.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config import DataConfig, SourceConfig
from ..errors import DataError
from .codebase import code_parts
from .files import file_parts
from .packages import versions

INPUTS = "inputs.json"


def file_digests(config: DataConfig) -> dict[str, str]:
    """What the files of each source that has any look like. Raises DataError when some are missing."""
    found = {key: _digest(_name(key), source) for key, source in _sources(config)}
    return {key: digest for key, digest in found.items() if digest}


def changed(config: DataConfig, manifest: Mapping[str, Any], directory: Path) -> list[str]:
    """What differs from when the corpus was prepared, a few words each; empty when nothing is known to."""
    sources = dict(_sources(config))
    installed = {name: version for source in sources.values() for name, version in versions(source).items()}
    recorded: dict[str, str] = manifest.get("packages", {})
    both = [(name, recorded.get(name, "unknown"), version) for name, version in installed.items()]
    found = [f"{name} {old}, now {new}" for name, old, new in both if old != new and "unknown" not in (old, new)]
    for key, digest in _recorded(directory).items():
        try:
            now = _digest(_name(key), sources[key]) if key in sources else None
        except (DataError, OSError):
            continue
        if now and now != digest:
            found.append(f"files of source {_name(key)!r}")
    return found


def _sources(config: DataConfig) -> Iterator[tuple[str, SourceConfig]]:
    """(key, source): the key is its side and name."""
    for side, sources in (("train", config.sources), ("val", config.split.sources)):
        yield from ((f"{side} {name}", source) for name, source in sources.items())


def _name(key: str) -> str:
    return key.partition(" ")[2]


def _digest(name: str, source: SourceConfig) -> str | None:
    """Of names, sizes and times of a source's files; None when it has none on this machine."""
    if source.files:
        parts = code_parts(name, source) if source.kind == "code" else file_parts(name, source)
        files = [(part.id, part.path) for part, _ in parts]
    else:
        folder = [f"{glob.escape(source.path)}/**"] if source.path and os.path.isdir(source.path) else []
        found = {path for pattern in (*folder, *source.data_files) for path in glob.glob(pattern, recursive=True)}
        paths = sorted(path for path in found if os.path.isfile(path))
        files = [(path, path) for path in paths]
    digest = hashlib.blake2b(digest_size=8)
    for identity, path in files:
        about = os.stat(path)
        digest.update(f"{identity!r} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest() if files else None


def _recorded(directory: Path) -> dict[str, str]:
    try:
        found = json.loads((directory / INPUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of an older corpus, or damaged: nothing can be said
        return {}
    return found if isinstance(found, dict) else {}
