"""Faults inside a save: killed at every system call (F2), and no room for it (F3)."""

import ctypes
import itertools
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import torch

import durable
from trainer.checkpoint import Saver
from trainer.distributed import Place, Ranks

from .runs import Runs, check
from .scenario import Outcome

TRACE_ME, NEXT_CALL = 0, 24  # requests of ptrace(2)
NOT_ALLOWED = 77
FILE = "model.safetensors"


class NotAllowed(Exception):
    """This machine does not let us do it."""


def make_saver(run: Path, *, keep: int = 1, background: bool = False, keep_every: int | None = None,
               warn: Callable[[str], None] = print) -> Saver:  # fmt: skip
    """A saver for one process."""
    run.mkdir(parents=True, exist_ok=True)
    alone = Ranks(Place(), torch.device("cpu"))
    return Saver(run, keep=keep, keep_every=keep_every, background=background, ranks=alone, warn=warn)


def store(
    saver: Saver, step: int, *, nll: float | None = None, size: int = 256, nbytes: int = 0, last: bool = False
) -> None:
    """Save `size` bytes that say of which step they are. Without `nbytes` nobody looks first whether there is room."""

    def write(directory: Path) -> None:
        (directory / FILE).write_bytes(bytes([step]) * size)
        (directory / "model.json").write_text("{}\n")

    saver.save(step, write, {"nll": nll}, nbytes, last=last)


def loaded(run: Path) -> int | None:
    """The step that a run goes on from, after its weights were looked at; None for a fresh start."""
    newest, _ = durable.newest_checkpoint(run)
    if newest is None:
        return None
    step = durable.verify(newest)["step"]
    check(set((newest / FILE).read_bytes()) == {step}, f"the weights of {newest} are of another step")
    return step


def steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return [durable.step_of(path) for path in durable.list_checkpoints(run)]


def stops(act: Callable[[], None]) -> Generator[int, None, None]:
    """Do `act` in a forked child that stops before and after each system call; yields the number of the stop.

    The child is killed when the iterator is closed. Raises NotAllowed where a process may not trace its child.
    """
    libc = ctypes.CDLL(None)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    child = os.fork()
    if child == 0:
        code = NOT_ALLOWED
        try:
            if libc.ptrace(TRACE_ME, 0, None, None) == 0:
                code = 1
                os.kill(os.getpid(), signal.SIGSTOP)
                act()
                code = 0
        finally:
            os._exit(code)
    alive = True
    try:
        for number in itertools.count():
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                alive = False
                if os.WEXITSTATUS(status) == NOT_ALLOWED:
                    raise NotAllowed("a process may not trace its child")
                check(os.WEXITSTATUS(status) == 0, "the save failed without being killed")
                return
            yield number
            libc.ptrace(NEXT_CALL, child, None, None)
    finally:
        if alive:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def killed_at(act: Callable[[], None], stop: int) -> bool:
    """Do `act` in a child that is killed at a stop; whether it came to that."""
    with closing(stops(act)) as going:
        return any(number == stop for number in going)


def killed_after(act: Callable[[], None], changes: int, folder: Path) -> bool:
    """Do `act` in a child that is killed when `folder` has changed so many times; whether it came to that.

    Killed at any other stop it leaves the same files behind as at one of these.
    """
    seen, before = 0, _picture(folder)
    with closing(stops(act)) as going:
        for _ in going:
            now = _picture(folder)
            seen, before = seen + (now != before), now
            if seen == changes:
                return True
    return False


def _picture(folder: Path) -> list[tuple[str, int, int]]:
    """What is in a folder, as far as a save changes it."""
    if not folder.is_dir():
        return []
    found = []
    for entry in os.scandir(folder):
        about = entry.stat(follow_symlinks=False)
        found.append((entry.path, about.st_ino, about.st_size))
        if entry.is_dir(follow_symlinks=False):
            found += _picture(Path(entry.path))
    return sorted(found)


SAVES = {"the first": (None, 1), "a newer one": (1, 2), "the same step again": (1, 1)}
"""What is saved: (step that is there before, step that is saved)."""


def killed(runs: Runs, outcome: Outcome, count: int) -> None:
    """F2: the saving process is killed at each change of the disk, and around about `count` system calls of a save.

    Those are of a newer checkpoint, and of the other kinds of saves a tenth of them.
    """
    trial = runs.runs / "save-trial"
    for kind, (before, step) in SAVES.items():
        origin = runs.runs / f"save-{before}-{step}"
        origin.mkdir(parents=True, exist_ok=True)
        if before is not None:
            store(make_saver(origin), before, nll=2.0)

        def save(step: int = step) -> None:
            store(make_saver(trial), step, nll=1.0)

        shutil.copytree(origin, trial)
        number = sum(1 for _ in stops(save))
        changes = partial(killed_after, save, folder=trial), itertools.count(1)
        wanted = count if kind == "a newer one" else -(-count // 10)
        others = partial(killed_at, save), range(0, number, max(1, number // wanted))
        for kill, places in (changes, others):
            for place in places:
                shutil.rmtree(trial)
                shutil.copytree(origin, trial)
                if not kill(place):
                    break
                with outcome.injection(f"{kind}, killed at {place}"):
                    _goes_on(trial, before, step)
        shutil.rmtree(trial)
    outcome.detection = f"{outcome.survived}/{outcome.injected}"
    outcome.lost = 0


def _goes_on(run: Path, before: int | None, step: int) -> None:
    """The run is at one of the two steps, tidies up and saves again."""
    found = loaded(run)
    check(found in (before, step), f"at step {found}")
    saver = make_saver(run)
    saver.shelf.go_on_from(found or 0)
    names = {path.name for path in (run / "checkpoints").iterdir()} if (run / "checkpoints").exists() else set()
    wanted = {"best", f"step_{found:08d}"} if found else set()
    check(names == wanted or names == wanted | {"step_00000001"}, f"left behind: {sorted(names)}")
    for path in durable.list_checkpoints(run):
        durable.verify(path)
    check(not found or durable.find_checkpoint(run, "best").name == f"step_{found:08d}", "another best")
    store(saver, step + 1)
    check(loaded(run) == step + 1, "it does not save again")
    check(not list(saver.shelf.leftovers()), "leftovers")


@contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """A real file system of that size. Raises NotAllowed where none may be mounted."""
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
            raise NotAllowed("no file system may be mounted")
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(runs: Runs, outcome: Outcome, count: int) -> None:
    """F3: `count` times each, a limit on files and, where it may be mounted, a disk that gets full or is too small."""
    for number in range(count):
        size = 80_000 + 4000 * number
        with outcome.injection("a file may not grow so far"):
            _fails_and_goes_on(runs.runs / f"limited-{number}", size, 0, largest_file(20_000 + 64 * number))
        for how, known in (("the disk gets full inside a save", 0), ("there is no room for a save", size)):
            with suppress(NotAllowed), small_disk(512) as disk, outcome.injection(how):
                _fails_and_goes_on(disk, size, known, _filled(disk))
    outcome.lost = 0
    outcome.detection = f"{outcome.survived}/{outcome.injected}"


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """Leave 40 kB of a disk."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(free - 40_000))
    yield
    (disk / "filler").unlink()


def _fails_and_goes_on(directory: Path, size: int, nbytes: int, fault: AbstractContextManager[None]) -> None:
    """A save under the fault leaves all as it was and says so; the one after the fault works."""
    run, told = directory / "run", list[str]()
    directory.mkdir(parents=True, exist_ok=True)
    saver = make_saver(run, keep=2, warn=told.append)
    store(saver, 1, nll=1.0, size=size)
    folder = run / "checkpoints"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with fault:
        store(saver, 2, nll=0.5, size=size, nbytes=nbytes)
        after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        check(after == before, f"left behind: {sorted(map(str, after.keys() ^ before.keys()))}")
    check(len(told) == 1 and "step 2 was not saved" in told[0] and str(folder) in told[0], f"it said {told}")
    store(saver, 3, nll=0.7, size=size)
    check(steps(run) == [1, 3] and loaded(run) == 3, "the next save did not work")
