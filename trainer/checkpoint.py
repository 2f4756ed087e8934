"""Checkpoints of a run: written whole or not at all, read back, and pruned only after that.

What a checkpoint holds is the caller's business, who passes a function that writes its files; what makes it safe is
here, in `shelf` and in `durable`.
"""

import copy
import errno
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Self

from durable import SaveFailed, commit_directory, flush, list_checkpoints, step_of

from .distributed import Ranks
from .rundir import note
from .shelf import PERMANENT, TMP, Shelf

ATTEMPTS = 3
"""Saves that may fail in a row."""
ROOM = 1.2
"""Free space wanted, as a multiple of what a checkpoint takes."""


@dataclass(frozen=True)
class Failure:
    """Why a save did not work."""

    reason: str
    full: bool
    """Whether there was no room for it."""


class Saver:
    """Writes and keeps the checkpoints of a run; at most one save at a time. A `with` block waits for the last.

    keep        the newest intact checkpoints that stay, besides the best one, which has the lowest `nll` in its state
    keep_every  those whose step is a multiple of this stay for ever
    background  save in a thread; after a failed save the next are in the foreground, until one has worked
    warn        is told, on rank 0, of what failed

    Every rank makes one and calls `save` and `wait` at the same points of the run; `check` when it likes.
    """

    def __init__(
        self,
        run: Path,
        *,
        keep: int,
        keep_every: int | None,
        background: bool,
        ranks: Ranks,
        warn: Callable[[str], None],
    ) -> None:
        self.run, self.keep, self.keep_every, self.background, self.warn = run, keep, keep_every, background, warn
        self.ranks = ranks.aside() if background else ranks  # training goes on talking while the thread does
        self.shelf = Shelf(run)
        self._pending: tuple[int, Future[Failure | None]] | None = None
        self._remarks: list[str] = []
        self._failed = 0  # in a row

    def save(
        self, step: int, write: Callable[[Path], None], state: dict[str, Any], nbytes: int, *, last: bool = False
    ) -> None:
        """Store the checkpoint of `step`, after waiting for the one before; one of the same step is replaced.

        write   puts this rank's files into a directory; in the background it runs while training goes on
        state   JSON; its `nll`, a float or None, says how good the checkpoint is
        nbytes  of the files of all ranks together
        last    nothing will try again: in the foreground, and a failure is raised

        A failure leaves everything as it was. Raises `SaveFailed` for the third in a row.
        """
        self.wait()
        whole = {"step": step, **copy.deepcopy(state)}
        if self.keep_every and step % self.keep_every == 0:
            whole[PERMANENT] = True
        act = partial(self._save, self.shelf.place(step), write, whole, nbytes)
        if self.beside(last=last):
            self._pending = step, _in_thread(act)
        else:
            self._settle(step, act(), last=last)

    def beside(self, *, last: bool) -> bool:
        """Whether a save, the `last` or another, that starts now is in the background; to be asked after `wait`."""
        return self.background and not last and not self._failed

    @property
    def busy(self) -> bool:
        """Whether a save is under way in the background."""
        return self._pending is not None and not self._pending[1].done()

    def check(self) -> None:
        """Tell of a save in the background that has failed; costs nothing."""
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Until no save is under way. Before a copy of the weights is made for the next, there is none in memory."""
        if self._pending:
            (step, outcome), self._pending = self._pending, None
            self._settle(step, outcome.result(), last=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None or self.ranks.world_size == 1:  # after an error the other ranks may be gone
            self.wait()

    def _settle(self, step: int, failure: Failure | None, *, last: bool) -> None:
        """Act on how a save has ended, which is the same on every rank."""
        lead, remarks, self._remarks = self.ranks.rank == 0, self._remarks, []
        for remark in remarks:
            self.warn(remark)
        self._failed = self._failed + 1 if failure else 0
        if failure is None:
            return
        if lead:
            self._record("save_failed", step, reason=failure.reason)
        problem = f"the checkpoint of step {step} was not saved: {failure.reason}"
        if last or self._failed >= ATTEMPTS:
            raise SaveFailed(problem if last else f"{problem} ({self._failed} saves in a row failed: the run ends)")
        if lead:
            newest = max(map(step_of, list_checkpoints(self.run)), default=None)
            have = "there is none yet" if newest is None else f"the newest is that of step {newest}"
            rule = f"the next save tries again; {ATTEMPTS} failures in a row end the run"
            self.warn(f"{problem}; {have}. Training goes on, and {rule}")

    def _save(self, place: Path, write: Callable[[Path], None], state: dict[str, Any], nbytes: int) -> Failure | None:
        failure = self._attempt(place, write, state, nbytes)
        if failure and failure.full and self.ranks.any(self._make_room()):
            failure = self._attempt(place, write, state, nbytes)
        if failure is None and self.ranks.rank == 0:
            self._tidy(place)
        return failure

    def _attempt(
        self, place: Path, write: Callable[[Path], None], state: dict[str, Any], nbytes: int
    ) -> Failure | None:
        """Every rank takes part in each act, or in none after one that failed anywhere."""
        tmp, rank = place.with_suffix(TMP), self.ranks.rank
        failure = (
            self._agree(lambda: self._open(tmp, nbytes) if rank == 0 else None)
            or self._agree(lambda: write(tmp))
            or self._agree(lambda: _flush_all(tmp) if rank > 0 else None)  # what this machine still has in memory
            or self._agree(lambda: commit_directory(tmp, place, state) if rank == 0 else None)
        )
        if failure and rank == 0:
            shutil.rmtree(tmp, ignore_errors=True)
        return failure

    def _agree(self, act: Callable[[], None]) -> Failure | None:
        """Do this rank's part; the first failure of any rank."""
        failure = None
        try:
            act()
        except Exception as error:
            failure = _explain(error, self.shelf.folder)
        return next(filter(None, self.ranks.each(failure)), None)

    def _open(self, tmp: Path, nbytes: int) -> None:
        """Make the directory to write to, if there is room for what comes."""
        self.shelf.folder.mkdir(exist_ok=True)
        shutil.rmtree(tmp, ignore_errors=True)
        free, wanted = shutil.disk_usage(self.shelf.folder).free, int(nbytes * ROOM)
        if free < wanted:
            lack = f"a checkpoint wants {wanted / 2**20:.1f} MiB of free space, there are {free / 2**20:.1f}"
            raise OSError(errno.ENOSPC, lack, str(self.shelf.folder))
        tmp.mkdir()

    def _make_room(self) -> bool:
        """Remove what the next checkpoint, once it is there, makes superfluous; whether there was any."""
        if self.ranks.rank > 0:
            return False
        found = bool(list(self.shelf.leftovers()))
        with suppress(OSError):
            self.shelf.sweep()
            found |= bool(self.shelf.prune(max(1, self.keep - 1)))
        return found

    def _tidy(self, place: Path) -> None:
        """After a save: the best one is known by its name, and what is no longer kept goes."""
        self.shelf.trust(place)
        self._record("save", step_of(place))
        try:
            self.shelf.point_to_best()
            gone = self.shelf.prune(self.keep)
        except OSError as error:
            self._remarks.append(f"old checkpoints stay: {_explain(error, self.shelf.folder).reason}")
        else:
            if gone:
                self._record("pruned", step_of(place), steps=gone)

    def _record(self, event: str, step: int, **facts: Any) -> None:
        with suppress(OSError):  # the disk that has no room for a checkpoint
            note(self.run, event, step, **facts)


def _in_thread(act: Callable[[], Failure | None]) -> Future[Failure | None]:
    """Start `act` in a thread that does not outlive the process: it may be waiting for a rank that is gone."""
    future: Future[Failure | None] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="saver", daemon=True).start()
    return future


def _flush_all(directory: Path) -> None:
    for path in directory.iterdir():
        flush(path)


def _explain(error: Exception, folder: Path) -> Failure:
    """An error in one line. safetensors tells the system's errors in words alone."""
    if isinstance(error, OSError):
        reason = f"{error.filename or folder}: {error.strerror or error}"
        return Failure(reason, error.errno in (errno.ENOSPC, errno.EDQUOT))
    first = (str(error).splitlines() or [""])[0]
    full = any(f"(os error {number})" in first for number in (errno.ENOSPC, errno.EDQUOT))
    return Failure(f"{folder}: {type(error).__name__}: {first}", full)
