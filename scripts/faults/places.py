"""What happens to a run's directory: nothing may be written there, it vanishes (F17), a second process (F19)."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from configs import load

from .damage import contents
from .runs import SHORT, TINY, Runs, check, check_code
from .saves import NotAllowed
from .scenario import Outcome

NOBODY = 65534
PLACES = [
    (place, mode)
    for place in ("", "checkpoints", "config.yaml", "metrics.jsonl", "samples.jsonl", "eval")
    for mode in (0o000, 0o555)
    if (place, mode) != ("config.yaml", 0o555)  # it is replaced, not written to
]
"""What another user may not use or write in a run, and the mode that this has then."""
BEFORE_REFUSAL = ("assemble", "instruments", "train", "scripts.plan_memory", "scripts.summary", "trainer.shelf")
"""What a process imports before it comes to a run's directory; the other user may not be able to read it."""


def as_nobody(start: Callable[[], int], owned: Path, spoil: Callable[[], None]) -> tuple[int, str]:
    """`start` something in a process of a user who owns what is in `owned` until `spoil` is done: (code, stderr).

    Raises NotAllowed where this process may not do so.
    """
    if os.getuid() != 0:
        raise NotAllowed("only root can start a process as another user")
    for module in BEFORE_REFUSAL:
        importlib.import_module(module)
    load(TINY)  # imports more
    for each in (owned, *owned.rglob("*")):
        os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
    spoil()
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            try:
                sys.stderr = open(told.fileno(), "w", closefd=False)  # noqa: SIM115
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                code = start()
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 99
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        return code, told.read().decode()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder is on a file system that cannot be written. Raises NotAllowed where none may be mounted."""
    bind = ["mount", "--bind", str(folder), str(folder)]
    if not shutil.which("mount") or subprocess.run(bind, capture_output=True).returncode:
        raise NotAllowed("no file system may be mounted")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def unwritable(runs: Runs, outcome: Outcome, count: int) -> None:
    """F17: `count` places in a run that another user may not write, no place for a run at all, a read-only file
    system, and a directory that is moved away from under a run."""
    with tempfile.TemporaryDirectory(prefix="thimble-places-") as reachable:
        Path(reachable).chmod(0o755)
        ours = Runs(Path(reachable))
        ours.runs.mkdir()
        shutil.copy(TINY, ours.runs.parent)
        shutil.copytree(runs.runs / runs.clean(*SHORT), ours.runs / "whole")
        shutil.copytree(runs.corpora, ours.corpora)
        with suppress(NotAllowed):
            _as_another_user(ours, outcome, count)
        with suppress(NotAllowed), read_only(ours.runs), outcome.injection("a read-only file system", 2):
            before = contents(ours.runs)
            for name in ("whole", "new"):
                ended = ours.finish(name, *SHORT, "train.steps=30")
                check_code(ended, 2)
                check("Read-only file system" in ended.told and "Traceback" not in ended.told, "not told in a line")
            check(contents(ours.runs) == before, "something was written")
    with outcome.injection("moved away"):
        _moved(runs, outcome)
    outcome.detection = f"{outcome.survived}/{outcome.injected}"


def _as_another_user(ours: Runs, outcome: Outcome, count: int) -> None:
    import train

    def start(name: str) -> Callable[[], int]:
        config = str(ours.runs.parent / Path(TINY).name)
        return lambda: train.main(ours.arguments(name, *SHORT, "train.steps=30", config=config)[1:])

    for number, (place, mode) in enumerate(PLACES[:count]):
        run = shutil.copytree(ours.runs / "whole", ours.runs / f"place-{number}")
        before = contents(run)
        with outcome.injection(f"{place or 'the directory'} has mode {mode:o}"):
            code, told = as_nobody(start(run.name), run, lambda at=run / place, to=mode: at.chmod(to))  # type: ignore[misc]
            (run / place).chmod(0o755)
            check(code == 2, f"exit code {code}: {told[-500:]}")
            check("Permission denied" in told and str(run) in told and len(told.splitlines()) <= 2, f"it said {told}")
            check(contents(run) == before, "files of the run were changed")
    with outcome.injection("no place for a run"):
        code, told = as_nobody(start("nowhere"), ours.runs, lambda: ours.runs.chmod(0o555))
        ours.runs.chmod(0o755)
        check(code == 2 and "cannot write the run" in told and "Permission denied" in told, f"{code}, it said {told}")
        check(not (ours.runs / "nowhere").exists(), "something was made")


def _moved(runs: Runs, outcome: Outcome) -> None:
    """Three saves in a row find no place; then the run ends in one line, and what is elsewhere is whole."""
    run, away = runs.runs / "moved", runs.runs / "moved-away"

    def move(process: subprocess.Popen[str]) -> None:
        run.rename(away)

    ended = runs.hit("moved", 7, move, *SHORT, "train.steps=300", "track.every=1")
    check_code(ended, 1)
    check("3 saves in a row failed" in ended.told and str(run) in ended.told, f"it said {ended.told[-500:]}")
    check("Traceback" not in ended.told and not run.exists(), "not told in a line")
    check(runs.saved(away.name) >= 6, "its checkpoint is gone")


def locked(runs: Runs, outcome: Outcome, count: int) -> None:
    """F19: `count` times a second process on the run of a live one, then a start after its holder was killed."""
    first = runs.start(*runs.arguments("held", *SHORT))
    try:
        while not (runs.runs / "held" / "status.json").exists() and first.poll() is None:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it holds the run as long as it takes
        for number in range(count):
            before = contents(runs.runs / "held")
            with outcome.injection(f"second process {number + 1}"):
                ended = runs.finish("held", *SHORT)
                check_code(ended, 2)
                check(f"in use by process {first.pid}" in ended.told, f"it did not say by whom: {ended.told}")
                check(contents(runs.runs / "held") == before, "it changed the run")
        first.send_signal(signal.SIGCONT)
        told = first.communicate()[1]
        with outcome.injection("the first process, unharmed"):
            check(first.returncode == 0, f"the first process ended with {first.returncode}: {told[-1000:]}")
            runs.check_same(runs.clean(*SHORT), "held")
    finally:
        first.kill()
    outcome.detection = f"{outcome.survived}/{outcome.injected}"
