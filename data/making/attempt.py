"""What an unfinished preparation leaves for the next one, for other slices, and for the driver of any engine.

    <corpus>/attempt.json                 what the tokenizer was made from: while that is the same, so is tokenizer.json
             tasks/<label>-<digest>.json  the commit record of a task, written after its shards

The digest covers all that decides a task's shards: the tokenizer, the options, and the names, sizes and times of its
files. So a record that is there and whose shards are intact stands for a task whose input need not be read again. All
of it is removed when the corpus has been committed.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from ..config import SourceConfig
from ..sources import Task
from ..store import FORMAT, Shard, find_shard
from .encode import Job, TaskResult

ATTEMPT = "attempt.json"
TASKS = "tasks"


def given(config: Any) -> dict[str, Any]:
    """The fields of a config that are not at their default, so that a new field keeps old names valid."""
    values = asdict(config)
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    defaults |= {f.name: f.default_factory() for f in fields(config) if f.default_factory is not MISSING}
    return {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}


def deciding(source: SourceConfig) -> dict[str, Any]:
    """What is given of a source, but for what no token depends on."""
    return {name: value for name, value in given(source).items() if name not in ("license", "origin")}


class Inputs:
    """What the tasks' input looks like now. No input is read."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._looks: dict[str, list[Any]] = {}
        self.of_tasks = [
            [task.label, deciding(task.config), [self._path(file) for file in task.config.data_files],
             [(part.id, part.start, part.stop, self._path(part.path)) for part in task.parts]]
            for task in tasks
        ]  # fmt: skip

    def _path(self, path: str) -> list[Any]:
        """Size and time of a file, or of each file of a folder or glob; nothing of what is not here, such as a name on
        the hub."""
        found = self._looks.get(path)
        if found is None:
            if os.path.isdir(path):
                found = [self._path(file) for file in sorted(glob.glob(f"{glob.escape(path)}/**/*", recursive=True))
                         if os.path.isfile(file)]  # fmt: skip
            elif os.path.isfile(path):
                about = os.stat(path)
                found = [about.st_size, about.st_mtime_ns]
            else:
                found = [self._path(file) for file in sorted(glob.glob(path, recursive=True)) if os.path.isfile(file)]
            self._looks[path] = found
        return found

    def tokenizer_digest(self, directory: Path) -> str:
        """Of all that a made tokenizer depends on: the input, and what the corpus directory is named by."""
        return _digest(directory.name, self.of_tasks)

    def records(self, folder: Path, tasks: Sequence[Task], job: Job) -> list[Path]:
        """Where the record of each task goes."""
        how = [FORMAT, job.tokenizer_sha256, job.shard_bytes, job.redact, job.detect_language]
        return [
            folder / f"{task.label}-{_digest(how, about)}.json"
            for task, about in zip(tasks, self.of_tasks, strict=True)
        ]


def _digest(*values: Any) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_result(record: Path, shards: Path, *, content: bool) -> TaskResult | None:
    """What a task gave, from its record; None unless its shards are there and, with `content`, intact."""
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
        result = TaskResult(**values | {"shards": [Shard(**shard) for shard in values["shards"]]})
        there = not any(shard.damages(shards, content=False) for shard in result.shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    intact = there and (not content or all(find_shard(shards, shard.name) == shard for shard in result.shards))
    return result if intact else None


def remove_attempt(directory: Path) -> None:
    """Remove what only unfinished preparations need, and files that a killed one was writing."""
    (directory / ATTEMPT).unlink(missing_ok=True)
    shutil.rmtree(directory / TASKS, ignore_errors=True)
    for path in directory.rglob(".*.tmp"):
        path.unlink(missing_ok=True)
