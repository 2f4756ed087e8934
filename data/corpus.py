"""From a data config to a prepared corpus: tokenizer, token store, row plan. Each is made once and then only opened.

A preparation may be killed at any point: what it had committed is used by the next attempt, and the directory ends up
with the same bytes. A prepared corpus never reads its sources again, but says when they have changed; delete its
directory to read them anew.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from durable import Damaged, Locked, atomic_write, file_lock

from .config import DataConfig
from .errors import DataError
from .making.attempt import remove_attempt
from .making.build import Build, build, check_problems, tasks_of
from .making.engines import LOCAL, Engine
from .making.place import check, checked_directory
from .making.verified import verify
from .prepared import Prepared
from .reading.files import stdin_waits
from .rows.curriculum import plain_order
from .rows.plan import Plan, make_plan, plan_id
from .sources import reads_stdin
from .store import MANIFEST, Store
from .tokens.sample import verification_sample

_BYTES_PER_TOKEN = 3.5  # of a trained tokenizer on code or English, for estimates only


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
            store = Store.open(directory)
            made = store is None
            found = _planned(store or build(config, directory, progress, engine), config, context)
        if progress:
            for line in found.doubts():
                print(f"warning: {line}", file=sys.stderr)
    else:
        made = False
        verify(found.store)
    if progress and not made and any(map(reads_stdin, config.sources.values())) and stdin_waits():
        print(f"standard input was not read: {directory} is complete; delete it to read anew", file=sys.stderr)
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
    """Make damaged files of a corpus again, and name them; see `data.making.mend`."""
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
    check_problems(config, store.manifest["problems"], store.shards, directory, {})
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
