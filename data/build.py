"""Building a token store from the sources of a config: tokenizer, shards, manifest, in this order."""

import json
import logging
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from durable import atomic_write

from .changes import INPUTS, file_digests
from .config import DataConfig, SourceConfig
from .encode import Job, TaskResult, available_workers, encode_tasks
from .errors import DataError
from .packages import versions
from .sample import make_tokenizer, verification_sample
from .sources import Side, Task, list_tasks
from .store import FORMAT, MANIFEST, Store, token_dtype
from .tokenizer import FILE, Tokenizer, fast_encoder

_log = logging.getLogger(__name__)

SHARD_BYTES = 32 << 20
"""Text of one shard."""


def tasks_of(config: DataConfig) -> list[Task]:
    """All input: training sources, then held-out ones."""
    sides: list[tuple[Side, dict[str, SourceConfig]]] = [("train", config.sources), ("val", config.split.sources)]
    return [
        task for side, sources in sides for name, source in sources.items() for task in list_tasks(name, side, source)
    ]


def build(config: DataConfig, directory: Path, progress: bool) -> Store:
    """Tokenizer, shards, manifest, in this order."""
    inputs = json.dumps(file_digests(config), indent=1)  # before anything is read, so that no later change is missed
    tasks = tasks_of(config)
    tokenizer = _tokenizer(config, directory, tasks, progress)
    _check_space(directory, tasks, tokenizer)
    encode, reason = fast_encoder(tokenizer, verification_sample(tasks))
    if reason:
        _log.warning("encoding with tokenizers, several times slower than tiktoken: %s", reason)
    job = Job(
        directory / FILE, directory / "shards", fast=encode != tokenizer.encode_array, shard_bytes=SHARD_BYTES,
        redact=config.redact, detect_language=config.detect_language,
    )  # fmt: skip
    results = _encode(tasks, job, progress)
    shards = [shard for result in results for shard in result.shards]
    problems = Counter[str]()
    for result in results:
        problems.update(undecodable=result.undecodable, unparsable=result.unparsable)
    example = next((result.example for result in results if result.example), None)
    check_problems(config, problems, shards, None, example)
    if not any(shard.tokens for shard in shards):
        raise DataError(f"data.sources: no text in {', '.join(config.sources)}")
    manifest = {
        "format": FORMAT,
        "names": list(dict.fromkeys((*config.sources, *config.split.sources))),
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "end_id": tokenizer.end_id,
        "problems": dict(problems),
        "python": platform.python_version(),
        "packages": {
            name: version
            for source in (*config.sources.values(), *config.split.sources.values())
            for name, version in versions(source).items()
        },
        "sources": {name: given(source) for name, source in config.sources.items()},
        "val_sources": {name: given(source) for name, source in config.split.sources.items()},
        "shards": [asdict(shard) for shard in shards],
    }
    _remove_other_shards(directory / "shards", {shard.name for shard in shards})
    atomic_write(directory / INPUTS, inputs)
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=1))
    return Store(directory, manifest)


def _tokenizer(config: DataConfig, directory: Path, tasks: list[Task], progress: bool) -> Tokenizer:
    """Make and save the corpus's tokenizer. Never an earlier attempt's: the sources may have changed since."""
    tokenizer = make_tokenizer(config.tokenizer, tasks, progress)
    tokenizer.save(directory)
    return tokenizer


def _encode(tasks: list[Task], job: Job, progress: bool) -> list[TaskResult]:
    """One result for each task, in the order of the tasks."""
    from tqdm import tqdm

    results: dict[int, TaskResult] = {}
    total = sum(task.size for task in tasks) or None
    with tqdm(total=total, desc="encode", unit="B", unit_scale=True, disable=not progress) as bar:
        for index, result in encode_tasks(tasks, job, available_workers(tasks)):
            results[index] = result
            bar.update(tasks[index].size)
    return [results[index] for index in range(len(tasks))]


def _check_space(directory: Path, tasks: Sequence[Task], tokenizer: Tokenizer) -> None:
    """Refuse to start what cannot end: about three bytes of text a token unless ids are bytes or characters.

    What an earlier attempt has committed is not written again.
    """
    itemsize = token_dtype(tokenizer.vocab_size).itemsize
    per_byte = itemsize if len(tokenizer.pieces) == 257 or tokenizer.is_char else itemsize / 3
    there = sum(path.with_suffix(".bin").stat().st_size for path in _committed(directory / "shards"))
    need = int(sum(task.size for task in tasks) * per_byte) - there
    free = shutil.disk_usage(directory).free
    if need > free:
        raise DataError(f"data.dir: {directory} needs about {need >> 20} MiB more and has {free >> 20} MiB free")


def _committed(folder: Path) -> list[Path]:
    """The records of shards in a folder that have their tokens beside them."""
    return [path for path in folder.glob("*.json") if path.with_suffix(".bin").is_file()]


def check_problems(
    config: DataConfig, problems: Counter[str], shards: Sequence[Any], prepared: Path | None, example: str | None = None
) -> None:
    """Refuse a corpus with too many unreadable documents."""
    bad = problems.total()
    seen = sum(shard.documents for shard in shards) + problems["unparsable"]
    if bad > config.max_bad_fraction * seen:
        first = f", the first: {example}" if example else ""
        ways = [f"mend them and delete {prepared}" if prepared else "mend or exclude them"]
        if bad < seen:
            ways.append(f"set data.max_bad_fraction above {bad / seen:.2g} to leave them out")
        raise DataError(f"data.sources: {bad} of {seen} documents are unreadable{first}; {', or '.join(ways)}")


def remove_leftovers(directory: Path) -> None:
    """Files that a killed attempt was writing."""
    for path in directory.rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def _remove_other_shards(folder: Path, keep: set[str]) -> None:
    """Shards of an attempt whose sources were changed before it could commit."""
    for path in folder.iterdir():
        if path.stem not in keep:
            path.unlink()


def given(config: Any) -> dict[str, Any]:
    """The fields of a config that are not at their default, so that a new field keeps old names valid."""
    values = asdict(config)
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    defaults |= {f.name: f.default_factory() for f in fields(config) if f.default_factory is not MISSING}
    return {name: value for name, value in values.items() if name not in defaults or defaults[name] != value}
