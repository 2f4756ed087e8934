"""From a data config to a prepared corpus: tokenizer, token store, row plan. Each is made once and then only opened.

A preparation may be killed at any point: what it had committed is used by the next attempt, and the directory ends up
with the same bytes. A prepared corpus never reads its sources again, but says when they have changed; delete its
directory to read them anew.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from durable import Damaged, Locked, atomic_write, file_lock, sha256

from .build import build, check_problems, given, remove_leftovers, tasks_of
from .changes import changed
from .config import SOURCE_NAME, TOKENIZERS, DataConfig, SourceConfig
from .errors import DataError
from .plan import Plan, RowPlan, make_plan, plan_id
from .sample import verification_sample
from .store import FORMAT, Store
from .tokenizer import Tokenizer

_NEEDS = {"python": "packages", "hf": "path"} | dict.fromkeys(("code", "text", "jsonl", "csv", "parquet"), "files")
_BYTES_PER_TOKEN = 3.5  # of a trained tokenizer on code or English, for estimates only


class Prepared:
    """A committed corpus and its rows for one config and context. Opened, never changed."""

    def __init__(self, store: Store, plan: Plan, config: DataConfig, context: int) -> None:
        self.store = store
        self.plan = plan
        self.config = config
        self.context = context
        self.directory = store.directory
        self.tokenizer_hash: str = store.manifest["tokenizer_sha256"]
        """sha256 of tokenizer.json."""
        self.source_names = tuple(store.manifest["names"])
        """What `Batch.source` indexes."""

    @property
    def train(self) -> RowPlan:
        """Rows to train on."""
        return self.plan.train

    @property
    def val(self) -> RowPlan:
        """Held-out rows."""
        return self.plan.val

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return self.store.tokenizer

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of everything that decides a batch's tokens, hexadecimal: token files, tokenizer and rows."""
        content = [FORMAT, self.tokenizer_hash, [shard.sha256["bin"] for shard in self.store.shards], self.plan.digest]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def bytes_by_source(self, side: str) -> dict[str, int]:
        """UTF-8 bytes of the `train` or `val` texts, for each source that has any."""
        return dict(self.plan.facts["bytes"][side])

    def token_counts(self) -> np.ndarray:
        """How often each id is a target of the training rows, int64 (V,)."""
        plan, counts = self.train, np.zeros(self.tokenizer.vocab_size, np.int64)
        for shard in np.unique(plan.shard).tolist():
            here = plan.shard == shard
            first, length = plan.start[here] + 1, plan.length[here]
            tokens = self.store.tokens(shard)
            steps = np.zeros(len(tokens) + 1, np.int32)  # +1 where a piece's targets begin, -1 after their end
            np.add.at(steps, first, 1)
            np.add.at(steps, first + length, -1)
            counts += np.bincount(tokens[np.cumsum(steps[:-1]) > 0], minlength=len(counts))
        return counts

    def val_documents(self) -> Iterator[bytes]:
        """The held-out texts in store order, UTF-8."""
        spans, pieces = self.plan.val_spans, self.tokenizer.pieces
        table = np.array([*pieces, None], object)[:-1]  # the None keeps numpy from making one array of bytes
        for shard, start, length in zip(spans.shard.tolist(), spans.start.tolist(), spans.length.tolist(), strict=True):
            yield b"".join(table[self.store.tokens(shard)[start + 1 : start + length]])

    def changed(self) -> list[str]:
        """What differs in the sources from when they were read, a few words each: versions, or files by name, size
        and time. Reads no document."""
        return changed(self.config, self.store.manifest, self.directory)

    def summary(self) -> list[str]:
        """Facts worth printing, one a line."""
        shards, facts = self.store.shards, self.plan.facts
        documents, nbytes, tokens = (sum(getattr(s, name) for s in shards) for name in ("documents", "bytes", "tokens"))
        dropped: Counter[str] = Counter(unparsable=self.store.manifest["problems"].get("unparsable", 0))
        for reasons in facts["dropped"].values():
            dropped.update(reasons)
        kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count) or "none"
        lines = [
            f"corpus      {self.directory} (read once; delete it to read the sources again)",
            f"read        {documents:,} documents, {nbytes:,} bytes, {tokens:,} tokens, "
            f"{nbytes / max(tokens, 1):.2f} bytes/token, vocabulary {self.store.manifest['vocab_size']:,}",
            f"dropped     {kinds}",
        ]
        for side, plan in (("train", self.train), ("val", self.val)):
            lines.append(
                f"{side:<11} {sum(facts['documents'][side].values()):,} documents, {plan.targets:,} targets, "
                f"{plan.rows:,} rows of {self.context}, {plan.padding:.2%} padding"
            )
            if len(self.source_names) > 1:
                lines += [f"  {name:<9} {rows:,} rows" for name, rows in plan.rows_by_source.items() if rows]
        return lines


def prepare(config: DataConfig, context: int, *, progress: bool = True) -> Prepared:
    """Make what is missing of the corpus and its rows, and open it. Rows hold `context` inputs.

    Other processes that prepare the same corpus wait. With `progress`, stderr shows bars, whom this one waits for, and
    one line when the sources have changed since they were read. Raises DataError for bad input and Damaged for damaged
    files; every byte is verified.
    """
    directory = _checked_directory(config, context)
    found = _open(directory, config, context)
    if found is None:
        try:
            (directory / "shards").mkdir(parents=True, exist_ok=True)
            (directory / "plans").mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"data.dir: cannot make {directory}: {error.strerror}") from None
        with _lock(directory.parent / f".{directory.name}.lock", progress):
            remove_leftovers(directory)
            store = Store.open(directory) or build(config, directory, progress)
            store.verify()
            plan = _plan(store, config, context)
            path = _plan_path(store, config, context)
            if not path.is_file() or path.read_bytes() != plan.to_bytes():
                atomic_write(path, plan.to_bytes())
        found = Prepared(store, plan, config, context)
    else:
        found.store.verify()
    if progress and (changes := found.changed()):
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        what = "; ".join(changes[:3]) + more
        print(
            f"the sources have changed since they were read ({what}): delete {directory} to read anew", file=sys.stderr
        )
    return found


@contextlib.contextmanager
def _lock(path: Path, progress: bool) -> Iterator[None]:
    """Hold the lock of a corpus; says, once, if another process has it."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(path, wait=False))
        except Locked:
            if progress:
                holder = path.read_text(encoding="utf-8").strip() or "another process"
                print(f"waiting for {holder}, which prepares the same corpus", file=sys.stderr)
            held.enter_context(file_lock(path, wait=True))
        yield


def lookup(config: DataConfig, context: int) -> Prepared | None:
    """The corpus if it has been prepared, else None. Writes nothing; of the files, only the sizes are verified."""
    directory = _checked_directory(config, context)
    found = _open(directory, config, context)
    if found is None:
        store = Store.open(directory)
        if store is None:
            return None
        found = Prepared(store, _plan(store, config, context), config, context)
    found.store.verify(content=False)
    return found


@dataclass(frozen=True)
class Estimate:
    """What a corpus would hold. None: it cannot be known without reading it."""

    documents: int | None
    bytes: int | None
    tokens: int | None


def estimate(config: DataConfig) -> Estimate:
    """A guess from file sizes, before anything is prepared. Writes nothing, and reads nothing but, for `level: char`,
    the start of a few documents, since the bytes of a character depend on the language."""
    _check(config)
    tasks = tasks_of(config)
    if any(task.config.streaming for task in tasks):
        return Estimate(None, None, None)
    countable = all(task.config.kind in ("python", "text") for task in tasks)
    nbytes = sum(task.size for task in tasks)
    match config.tokenizer.level:
        case "byte":
            per_token = 1.0
        case "char":
            sample = "".join(verification_sample(tasks)) or " "
            per_token = len(sample.encode()) / len(sample)
        case _:
            per_token = _BYTES_PER_TOKEN
    documents = sum(len(task.parts) for task in tasks) if countable else None
    return Estimate(documents, nbytes, int(nbytes / per_token))


def corpus_directory(config: DataConfig) -> Path:
    """Where the corpus of a config lives: named by the sources and the tokenizer, which decide its tokens."""
    tokenizer: dict[str, Any] = given(config.tokenizer)
    if config.tokenizer.file is not None:
        path = Path(config.tokenizer.file)
        if not path.is_file():
            raise DataError(f"data.tokenizer.file: no file {path}")
        tokenizer["file"] = sha256(path)
    key = {
        "format": FORMAT,
        "sources": [[name, _located(source)] for name, source in config.sources.items()],
        "val": [[name, _located(source)] for name, source in config.split.sources.items()],
        "tokenizer": tokenizer,
        "text": [config.redact, config.detect_language],
    }
    return Path(config.dir) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _located(source: SourceConfig) -> dict[str, Any]:
    """What is given of a source, with the place of what is relative to the working directory."""
    found = given(source)
    if source.kind in ("text", "jsonl"):
        found["files"] = [os.path.abspath(pattern) for pattern in source.files]
        if source.exclude:  # its patterns are held against paths as they are spelled
            found["spelled"] = source.files
    if source.kind == "hf" and source.path is not None:
        builder = "/" not in source.path  # a name on the hub has its files there
        if source.data_files and builder:
            found["data_files"] = [file if "://" in file else os.path.abspath(file) for file in source.data_files]
        if os.path.exists(source.path):
            found["path"] = os.path.abspath(source.path)
    return found


def _checked_directory(config: DataConfig, context: int) -> Path:
    _check(config)
    if context < 1:
        raise DataError(f"context is {context}; rows need at least 1 token")
    return corpus_directory(config)


def _check(config: DataConfig) -> None:
    """Raise DataError for what the types of a config cannot rule out."""
    if not config.sources:
        raise DataError("data.sources is empty: name at least one source")
    for where, sources in (("data.sources", config.sources), ("data.split.sources", config.split.sources)):
        for name, source in sources.items():
            if not re.fullmatch(SOURCE_NAME, name):
                rule = "is 1 to 64 letters, digits, _ and -, the first a letter or digit"
                raise DataError(f"{where}: the name of a source {rule}, not {name!r}")
            if source.kind not in _NEEDS:
                raise DataError(f"{where}.{name}.kind is {source.kind!r}; it may be {', '.join(_NEEDS)}")
            if not getattr(source, _NEEDS[source.kind]):
                raise DataError(f"{where}.{name}: kind {source.kind} needs {_NEEDS[source.kind]}")
    chosen = [name for name in TOKENIZERS if getattr(config.tokenizer, name) is not None]
    if len(chosen) != 1:
        ways = ", ".join(TOKENIZERS)
        raise DataError(f"data.tokenizer needs exactly one of {ways}; given: {', '.join(chosen) or 'none'}")
    unknown = set(config.mixture) ^ set(config.sources) if config.mixture else set()
    if unknown:
        raise DataError(f"data.mixture must name every source once or be empty; look at {', '.join(sorted(unknown))}")


def _open(directory: Path, config: DataConfig, context: int) -> Prepared | None:
    """The corpus when both store and plan are there."""
    store = Store.open(directory)
    if store is None:
        return None
    check_problems(config, Counter(store.manifest["problems"]), store.shards, directory)
    try:
        plan = Plan.read(_plan_path(store, config, context))
    except (Damaged, KeyError, ValueError, TypeError):  # missing or unreadable: it is made again
        return None
    _check_mixture(plan, config)
    return Prepared(store, plan, config, context)


def _plan_path(store: Store, config: DataConfig, context: int) -> Path:
    return store.directory / "plans" / f"{plan_id(store.manifest, config.split, config.pack, context)}.npz"


def _plan(store: Store, config: DataConfig, context: int) -> Plan:
    plan = make_plan(store, store.manifest["names"], config.split, config.pack, context)
    _check_mixture(plan, config)
    return plan


def _check_mixture(plan: Plan, config: DataConfig) -> None:
    plan.train.order(config.mixture, 0)
