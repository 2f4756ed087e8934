"""Building a token store from the sources of a config: tokenizer, shards, manifest, in this order."""

import json
import logging
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from durable import atomic_write, sha256

from ..bars import bar
from ..config import DataConfig, SourceConfig
from ..errors import DataError
from ..reading.changes import INPUTS, file_digests
from ..reading.files import spool_stdin
from ..reading.packages import versions
from ..sources import Side, Task, list_tasks
from ..store import FORMAT, MANIFEST, UNREADABLE, Shard, Store, token_dtype
from ..tokenizer import FILE, Tokenizer, fast_encoder, load_file
from ..tokens.sample import make_tokenizer, verification_sample
from .attempt import ATTEMPT, TASKS, Inputs, given, read_result, remove_attempt
from .encode import Job, TaskResult
from .engines import Engine, run_tasks

_log = logging.getLogger(__name__)

SHARD_BYTES = 32 << 20
"""Text of one shard."""


def tasks_of(config: DataConfig, directory: Path | None = None) -> list[Task]:
    """All input: training sources, then held-out ones. What standard input gave is in the corpus directory."""
    sides: list[tuple[Side, dict[str, SourceConfig]]] = [("train", config.sources), ("val", config.split.sources)]
    return [
        task
        for side, sources in sides
        for name, source in sources.items()
        for task in list_tasks(name, side, source, directory)
    ]


class Build:
    """A preparation under way: what there is to do, and what has been done by any process so far.

    The tokenizer is made or found here, so one process at a time may begin; `encode` may run in several at once, and
    `commit`, by one, ends it.
    """

    def __init__(self, config: DataConfig, directory: Path, progress: bool) -> None:
        self.config, self.directory, self.progress = config, directory, progress
        self.digests = file_digests(config)  # before anything is read, so that no later change is missed
        spool_stdin(config, directory)
        self.tasks = tasks_of(config, directory)
        (directory / TASKS).mkdir(exist_ok=True)
        inputs = Inputs(self.tasks)
        tokenizer = _tokenizer(config, directory, self.tasks, inputs.tokenizer_digest(directory), progress)
        self.tokenizer = tokenizer
        self.job = job_of(config, directory, tokenizer, directory / "shards", fast=False)
        self.records = inputs.records(directory / TASKS, self.tasks, self.job)

    def missing(self, indices: Iterable[int], *, content: bool) -> list[int]:
        """Those of some tasks that are not done, or whose shards are not there; `content`: not intact."""
        chosen = list(indices)
        with ThreadPoolExecutor() as threads:  # hashing releases the interpreter lock
            results = threads.map(lambda index: self._result(index, content=content), chosen)
            return [index for index, result in zip(chosen, results, strict=True) if result is None]

    def _result(self, index: int, *, content: bool) -> TaskResult | None:
        return read_result(self.records[index], self.job.folder, content=content)

    def encode(self, indices: Sequence[int], engine: Engine) -> None:
        """Do these tasks, except what has been done; nothing of that is read again."""
        todo = self.missing(indices, content=True)
        if not todo:
            return
        _check_space(self.directory, self.tasks, self.tokenizer)
        sizes = [self.tasks[index].size for index in todo]
        work = [(self.tasks[index], self.records[index]) for index in todo]
        before = sum(self.tasks[index].size for index in indices) - sum(sizes)
        with bar("encode", shown=self.progress, total=before + sum(sizes) or None, done=before) as encoding:
            for place in run_tasks(work, self._verified_job, engine, self.config.workers):
                encoding.update(sizes[place])

    def _verified_job(self) -> Job:
        """The job, with the fast encoder if it gives the reference's ids."""
        encode, reason = fast_encoder(self.tokenizer, verification_sample(self.tasks))
        if reason:
            _log.warning("encoding with tokenizers, several times slower than tiktoken: %s", reason)
        return replace(self.job, fast=encode != self.tokenizer.encode_array)

    def commit(self) -> Store:
        """Write the manifest of a preparation whose every task is done, and remove all that is not of the corpus."""
        results = []
        for index, record in enumerate(self.records):
            result = self._result(index, content=False)
            if result is None:
                raise RuntimeError(f"{record}: missing after its task was done; the same command goes on")
            results.append(result)
        shards = [shard for result in results for shard in result.shards]
        names = list(dict.fromkeys((*self.config.sources, *self.config.split.sources)))
        problems = {name: {"undecodable": 0, "unparsable": 0} for name in names}
        unreadable, examples = [], dict[str, str]()
        for task, result in zip(self.tasks, results, strict=True):
            problems[task.source]["undecodable"] += result.undecodable
            problems[task.source]["unparsable"] += len(result.unparsable)
            unreadable += [json.dumps([task.source, *found]) + "\n" for found in result.unparsable]
            if result.example:
                examples.setdefault(task.source, result.example)
        check_problems(self.config, problems, shards, None, examples)
        if not any(shard.tokens for shard in shards):
            raise DataError(f"data.sources: no text in {', '.join(self.config.sources)}")
        atomic_write(self.directory / UNREADABLE, "".join(unreadable))
        manifest = self._manifest(shards, problems, sum(result.redacted for result in results))
        _remove_other_shards(self.job.folder, {shard.name for shard in shards})
        atomic_write(self.directory / INPUTS, json.dumps(self.digests, indent=1))
        atomic_write(self.directory / MANIFEST, json.dumps(manifest, indent=1))
        remove_attempt(self.directory)
        return Store(self.directory, manifest)

    def _manifest(self, shards: Sequence[Shard], problems: dict[str, dict[str, int]], redacted: int) -> dict[str, Any]:
        config = self.config
        return {
            "format": FORMAT,
            "names": list(dict.fromkeys((*config.sources, *config.split.sources))),
            "tokenizer_sha256": self.tokenizer.sha256,
            "vocab_size": self.tokenizer.vocab_size,
            "end_id": self.tokenizer.end_id,
            "problems": problems,
            "redacted": redacted,
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


def job_of(config: DataConfig, directory: Path, tokenizer: Tokenizer, folder: Path, *, fast: bool) -> Job:
    """What workers need to encode a config's tasks into `folder` with the tokenizer of a corpus directory."""
    return Job(
        directory / FILE, tokenizer.sha256, folder, fast=fast, shard_bytes=SHARD_BYTES,
        redact=config.redact, detect_language=config.detect_language,
    )  # fmt: skip


def build(config: DataConfig, directory: Path, progress: bool, engine: Engine) -> Store:
    """Tokenizer, shards, manifest, in this order."""
    preparation = Build(config, directory, progress)
    preparation.encode(range(len(preparation.tasks)), engine)
    return preparation.commit()


def _tokenizer(config: DataConfig, directory: Path, tasks: list[Task], inputs: str, progress: bool) -> Tokenizer:
    """The corpus's tokenizer: that of an earlier attempt when it was made from the same inputs, else a new one."""
    record = directory / ATTEMPT
    try:
        made = json.loads(record.read_text(encoding="utf-8"))
        if made == {"inputs": inputs, "tokenizer_sha256": sha256(directory / FILE)}:
            return load_file(directory / FILE)
    except (OSError, ValueError):  # none, or none that can be read
        pass
    tokenizer = make_tokenizer(config, tasks, progress)
    record.unlink(missing_ok=True)
    tokenizer.save(directory)
    atomic_write(record, json.dumps({"inputs": inputs, "tokenizer_sha256": tokenizer.sha256}))
    return tokenizer


def _check_space(directory: Path, tasks: Sequence[Task], tokenizer: Tokenizer) -> None:
    """Refuse to start what cannot end: about three bytes of text a token unless ids are bytes or characters.

    What an earlier attempt has committed is not written again.
    """
    itemsize = token_dtype(tokenizer.vocab_size).itemsize
    per_byte = itemsize if tokenizer.by_unit else itemsize / 3
    there = sum(path.with_suffix(".bin").stat().st_size for path in _committed(directory / "shards"))
    need = int(sum(task.size for task in tasks) * per_byte) - there
    free = shutil.disk_usage(directory).free
    if need > free:
        raise DataError(f"data.dir: {directory} needs about {need >> 20} MiB more and has {free >> 20} MiB free")


def _committed(folder: Path) -> list[Path]:
    """The records of shards in a folder that have their tokens beside them."""
    return [path for path in folder.glob("*.json") if path.with_suffix(".bin").is_file()]


def check_problems(
    config: DataConfig,
    problems: Mapping[str, Mapping[str, int]],
    shards: Sequence[Shard],
    prepared: Path | None,
    examples: Mapping[str, str],
) -> None:
    """Refuse a corpus with a source that has too many unreadable documents. Those that are kept as they are do not
    count."""
    for name, counts in problems.items():
        bad = counts["unparsable"] + (counts["undecodable"] if config.clean.undecodable == "drop" else 0)
        seen = sum(shard.documents for shard in shards if shard.source == name) + counts["unparsable"]
        if bad > config.max_bad_fraction * seen:
            first = f", the first: {examples[name]}" if name in examples else ""
            ways = [f"mend them and delete {prepared}" if prepared else "mend or exclude them"]
            if bad < seen:
                ways.append(f"set data.max_bad_fraction above {bad / seen:.2g} to leave them out")
            where = f"data.sources: {bad} of {seen} documents of {name!r} are unreadable"
            raise DataError(f"{where}{first}; {', or '.join(ways)}")


def _remove_other_shards(folder: Path, keep: set[str]) -> None:
    """Shards of an attempt whose sources were changed before it could commit."""
    for path in folder.iterdir():
        if path.stem not in keep:
            path.unlink(missing_ok=True)
