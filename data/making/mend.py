"""Mending a corpus: damaged files are made again from the sources, and must come out as they were."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from durable import fsync_directory, sha256

from ..config import DataConfig
from ..errors import DataError
from ..sources import Task
from ..store import Shard, Store
from ..tokenizer import FILE, fast_encoder
from ..tokens.sample import make_tokenizer, verification_sample
from .attempt import read_result
from .build import job_of, tasks_of
from .engines import LOCAL, run_tasks


def mend(store: Store, config: DataConfig, progress: bool) -> list[str]:
    """Make every damaged file of a store again; the names of the shards and files that were. Only the tasks that they
    came from are read. Raises DataError, after mending the others, for those that the sources no longer give."""
    tasks = tasks_of(config, store.directory)
    mended = _mend_tokenizer(store, config, tasks, progress)
    damaged = {shard.name: shard for shard in store.shards if shard.damages(store.folder, content=True)}
    concerned = [task for task in tasks if any(name.rsplit("-", 2)[0] == task.label for name in damaged)]
    folder = store.directory / "repair"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        made = _encode_again(store, config, concerned, folder)
        for name, shard in damaged.items():
            if made.get(name) == shard:
                _move(folder, store.folder, shard)
                mended.append(name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    lost = sorted(set(damaged) - set(mended))
    if lost:
        raise DataError(
            f"{', '.join(lost)} cannot be mended: the sources have changed since they were read; "
            f"delete {store.directory} to read them anew"
        )
    return mended


def _mend_tokenizer(store: Store, config: DataConfig, tasks: list[Task], progress: bool) -> list[str]:
    want, path = store.manifest["tokenizer_sha256"], store.directory / FILE
    if path.is_file() and sha256(path) == want:
        return []
    tokenizer = make_tokenizer(config, tasks, progress)
    if tokenizer.sha256 != want:
        raise DataError(f"{path} cannot be mended: the sources give another one; delete {store.directory}")
    tokenizer.save(store.directory)
    return [FILE]


def _encode_again(store: Store, config: DataConfig, tasks: Sequence[Task], folder: Path) -> dict[str, Shard]:
    """The shards of some tasks, written to a folder of their own: what does not fit is never mixed with the corpus."""
    if not tasks:
        return {}
    folder.mkdir()
    encode, _ = fast_encoder(store.tokenizer, verification_sample(tasks))
    job = job_of(config, store.directory, store.tokenizer, folder, fast=encode != store.tokenizer.encode_array)
    records = [folder / f"{task.label}.task" for task in tasks]
    for _ in run_tasks(list(zip(tasks, records, strict=True)), lambda: job, LOCAL, config.workers):
        pass
    results = [read_result(record, folder, content=False) for record in records]
    return {shard.name: shard for result in results if result for shard in result.shards}


def _move(source: Path, target: Path, shard: Shard) -> None:
    for suffix in (*shard.sizes, "json"):
        os.replace(source / f"{shard.name}.{suffix}", target / f"{shard.name}.{suffix}")
    fsync_directory(target)
