"""From a data config to a prepared corpus: tokenizer, token store, row plan. Each is made once and then only opened.

A preparation may be killed at any point: what it had committed is used by the next attempt, and the directory ends up
with the same bytes. A prepared corpus never reads its sources again, but says when they have changed; delete its
directory to read them anew.
"""

import contextlib
import functools
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from durable import Damaged, Locked, atomic_write, file_lock

from .config import DataConfig
from .errors import DataError
from .making.attempt import remove_attempt
from .making.build import Build, build, check_problems, tasks_of
from .making.engines import LOCAL, Engine
from .making.place import check, checked_directory
from .making.verified import verify
from .reading.changes import changed
from .rows.curriculum import difficulty, plain_order
from .rows.fim import special_ids
from .rows.plan import Plan, RowPlan, make_plan, plan_id
from .sources import reads_stdin
from .store import FORMAT, MANIFEST, Store
from .tokenizer import Tokenizer
from .tokens.sample import verification_sample

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
        """Of everything that decides a batch and the order of rows, hexadecimal: token and mask files, tokenizer, rows,
        and what a curriculum goes by."""
        shards = [shard.sha256 for shard in self.store.shards]
        content = [FORMAT, self.tokenizer_hash, [each["bin"] for each in shards], self.plan.digest]
        if any("mask" in each for each in shards):
            content.append([each.get("mask") for each in shards])
        if self.config.curriculum:
            content.append(hashlib.sha256(difficulty(self, self.config.curriculum).tobytes()).hexdigest())
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
            read, mask = np.cumsum(steps[:-1]) > 0, self.store.mask(shard)
            counts += np.bincount(tokens[read if mask is None else read & (mask > 0)], minlength=len(counts))
        if plan.fim.any():
            counts[list(special_ids(self.tokenizer))] += int((plan.fim > 0).sum())
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
            if side == "train" and (lost := sum(facts["lost"].values())):
                lines.append(f"lost        {lost:,} targets, in documents longer than a row")
            if len(self.source_names) > 1:
                lines += [f"  {name:<9} {rows:,} rows" for name, rows in plan.rows_by_source.items() if rows]
        return lines


def prepare(config: DataConfig, context: int, *, progress: bool = True, engine: Engine = LOCAL) -> Prepared:
    """Make what is missing of the corpus and its rows, and open it. Rows hold `context` inputs.

    Other processes that prepare the same corpus wait. With `progress`, stderr shows bars, whom this one waits for, and
    one line when the sources have changed since they were read. Raises DataError for bad input and Damaged for damaged
    files; every file that may have changed since it was last verified is verified.
    """
    directory = checked_directory(config, context)
    found = _open(directory, config, context)
    if found is None:
        with _at_work(directory, progress):
            store = Store.open(directory) or build(config, directory, progress, engine)
            found = _planned(store, config, context)
    else:
        verify(found.store)
    if progress and (changes := found.changed()):
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        what = "; ".join(changes[:3]) + more
        print(
            f"the sources have changed since they were read ({what}): delete {directory} to read anew", file=sys.stderr
        )
    return found


def prepare_slice(
    config: DataConfig, context: int, index: int, count: int, *, progress: bool = True
) -> Prepared | list[str]:
    """Encode task `index` of the corpus and every `count`-th after it, beside other processes, here or on other
    machines with the same files, that do the others.

    Returns the corpus, if this completed it or it was complete, else the labels of the tasks that are not done.
    """
    if not 0 <= index < count:
        raise DataError(f"slice {index}/{count}: slices of {count} are 0/{count} to {count - 1}/{count}")
    directory = checked_directory(config, context)
    with _at_work(directory, progress):
        preparation = None if Store.open(directory) else Build(config, directory, progress)
    if preparation is not None:
        everything = range(len(preparation.tasks))
        try:
            preparation.encode(everything[index::count], LOCAL)
        except FileNotFoundError:
            if Store.open(directory) is None:
                raise  # else another process did the same, and has put its tools away
    with _at_work(directory, progress):
        store = Store.open(directory)
        if store is None and preparation is not None:
            missing = preparation.missing(everything, content=False)
            if missing:
                return [preparation.tasks[place].label for place in missing]
            store = preparation.commit()
        assert store is not None
        return _planned(store, config, context)


def repair(config: DataConfig, context: int, *, progress: bool = True) -> list[str]:
    """Make damaged files of a corpus again, and name them; see `data.mend`."""
    from .making.mend import mend

    directory = checked_directory(config, context)
    with _at_work(directory, progress):
        store = Store.open(directory)
        return [] if store is None else mend(store, config, progress)


@contextlib.contextmanager
def _at_work(directory: Path, progress: bool) -> Iterator[None]:
    """Be the only process that makes this corpus; its folders are there, and of a finished one, no leftovers."""
    try:
        for folder in ("shards", "plans"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"data.dir: cannot make {directory}: {error.strerror}") from None
    with _lock(directory.parent / f".{directory.name}.lock", progress):
        if (directory / MANIFEST).exists():
            remove_attempt(directory)
        yield


def _planned(store: Store, config: DataConfig, context: int) -> Prepared:
    """The corpus with its rows, which are written if they are not there. Every file is verified first."""
    from .card.sections import try_write_card

    verify(store)
    store.keeps_derived = True
    plan = _plan(store, config, context)
    path, found = _plan_path(store, config, context), Prepared(store, plan, config, context)
    if not path.is_file() or path.read_bytes() != plan.to_bytes():
        try_write_card(found)  # before the plan: with that, nothing is made again
        atomic_write(path, plan.to_bytes())
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
    directory = checked_directory(config, context)
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
    check(config)
    if any(reads_stdin(source) for source in (*config.sources.values(), *config.split.sources.values())):
        return Estimate(None, None, None)
    tasks = tasks_of(config)
    if any(task.config.streaming for task in tasks):
        return Estimate(None, None, None)
    countable = all(task.config.kind in ("python", "code", "text") for task in tasks)
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
    name = plan_id(store.manifest, config.split, config.pack, context, config.clean)
    return store.directory / "plans" / f"{name}.npz"


def _plan(store: Store, config: DataConfig, context: int) -> Plan:
    plan = make_plan(store, store.manifest["names"], config.split, config.pack, context, config.clean)
    _check_mixture(plan, config)
    return plan


def _check_mixture(plan: Plan, config: DataConfig) -> None:
    starts = {"phases": [0] * len(config.phases)}
    plain_order(config, plan.train.rows_by_source, plan.train.targets_by_source, starts, 0)
