"""A rank that makes no progress says where it hangs, and ends, so that the others and their launcher can go on."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from .distributed import Place, Ranks

EXIT_HUNG = 1
_LOOKS = 20  # in the time allowed, but not more often than each 0.05 s and at least each second
_LONGEST_GRACE = 10.0  # seconds


class Watchdog:
    """Ends this process once `seconds` have passed since the last `beat()`, for the length of a `with` block.

    The stacks of all threads go to stderr and `<run>/stacks.rank<r>.txt`, in the same moment on every rank: those that
    wait for the one that hangs are late as well. Then all wait a little for each other, since the first to leave tears
    down the connections, and end with code 1. Nothing is counted before the first beat, nor while the process is
    stopped (SIGSTOP). With one process it does nothing.

    The time is counted by a thread that the main thread hands nothing but a number. Where even that thread gets no
    turn, because compiled code keeps the interpreter's lock, faulthandler's own prints to stderr and ends the process.
    """

    def __init__(self, run: Path, ranks: "Ranks | Place", seconds: float):
        self.path, self.rank, self.seconds = run / f"stacks.rank{ranks.rank}.txt", ranks.rank, seconds
        self.every = min(1.0, max(0.05, seconds / _LOOKS))
        self.beats = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.alone = ranks.world_size == 1

    def beat(self) -> None:
        """There is progress. Costs an addition: neither a system call nor a wait for the device."""
        self.beats += 1

    def __enter__(self) -> "Watchdog":
        if not self.alone:
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self.alone:
            self.over.set()
            self.thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        """Count own naps, not the clock: a process that was stopped has slept through one of them, not through many."""
        seen, naps = 0, 0
        while not self.over.wait(self.every):
            seen, naps = self.beats, naps + 1 if self.beats == seen else 0
            if not seen:
                continue
            if naps * self.every >= self.seconds:
                self._end()
            faulthandler.dump_traceback_later(self.seconds + 2 * self.every, exit=True, file=2)

    def _end(self) -> None:
        grace = min(_LONGEST_GRACE, self.seconds / 4)
        faulthandler.dump_traceback_later(2 * grace, exit=True, file=2)  # a disk that hangs must not keep us
        self._dump(sys.__stderr__ or sys.stderr)
        with contextlib.suppress(OSError), self.path.open("w") as file:
            self._dump(file)
        time.sleep(grace)
        os._exit(EXIT_HUNG)

    def _dump(self, file: IO[str]) -> None:
        file.write(f"rank {self.rank} made no progress for {self.seconds:g} s; its threads are at:\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
