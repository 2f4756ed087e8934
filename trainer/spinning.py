"""Threads of a CPU that would spin while they wait for each other give way to other processes."""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

EVERY = 0.5
"""Seconds between two looks."""
LOOKS = 2
"""How many of them in a row must say the same before anything is changed."""
SHARED, ALONE = 0.2, 0.1
"""Seconds that the threads of this process have waited for a CPU, in a second: from the first on others use the CPUs
as well; below the second no longer. On a machine of our own it is about 0.01."""
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Settings of the user's own about spinning, which are left alone."""
NOTICE = "other processes use these CPUs too: steps take longer, and threads sleep, not spin, while they wait"


class Spinning:
    """Inside a `with` block, OpenMP's threads spin for each other only while no other process wants their CPUs.

    torch's threads meet after every operator. With GNU OpenMP, which is torch's on Linux, those that are early spin for
    milliseconds. No wait is shorter where each has a CPU; but where another process has one of them, spinners use up
    the turns of the thread that they wait for, and a step takes several times as long as the lost CPU explains. By
    itself OpenMP gives up after microseconds only when it has more threads than there are CPUs. So it gets them: once
    the kernel says that our threads wait for their turns, one more team is made, which sleeps until they no longer do.

    Results are the same: the threads that compute, and what each of them does, stay. `told` gets a line the first time.
    Nothing is done on a GPU, with one thread, with another OpenMP, or where the environment sets one of `CHOSEN`.
    """

    def __init__(self, device: torch.device, told: Callable[[str], None] | None = None) -> None:
        self._told = told
        self._over = threading.Event()
        self._team: _Team | None = None
        self._thread: threading.Thread | None = None
        several = device.type == "cpu" and torch.get_num_threads() > 1
        self._library = openmp() if several and not any(name in os.environ for name in CHOSEN) else None

    def __enter__(self) -> "Spinning":
        if self._library:
            self._thread = threading.Thread(target=self._watch, name="spinning", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread:
            self._over.set()
            self._thread.join()
            self._change(sleep=False)

    @property
    def asleep(self) -> bool:
        """Whether threads that wait sleep at present."""
        return self._team is not None

    def _watch(self) -> None:
        before, since, in_a_row = waited(), time.monotonic(), 0
        while not self._over.wait(EVERY):
            now, at = waited(), time.monotonic()
            share = sum(seconds - before[thread] for thread, seconds in now.items() if thread in before) / (at - since)
            before, since = now, at
            sleep = share >= (ALONE if self.asleep else SHARED)
            in_a_row = in_a_row + 1 if sleep != self.asleep else 0
            if in_a_row == LOOKS:
                self._change(sleep=sleep)
                in_a_row = 0

    def _change(self, *, sleep: bool) -> None:
        if self._team:
            self._team.end()
            self._team = None
        if sleep and self._library:
            self._team = _Team.of(self._library)
            if self._team and self._told:
                self._told(NOTICE)
                self._told = None


class _Team(threading.Thread):
    """A thread that holds an OpenMP team of its own, which does nothing, until `end()`."""

    def __init__(self, library: ctypes.CDLL, size: int) -> None:
        super().__init__(name="sleeping team", daemon=True)
        self._library, self._size = library, size
        self._there, self._over = threading.Event(), threading.Event()

    @classmethod
    def of(cls, library: ctypes.CDLL) -> "_Team | None":
        """One that makes OpenMP's threads more than there are CPUs; None where the system gives no more threads."""
        team = cls(library, max(2, library.omp_get_num_procs() - torch.get_num_threads() + 2))
        try:
            team.start()
        except RuntimeError:
            return None
        team._there.wait()
        return team

    def run(self) -> None:
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # of NULL: what each thread of the team runs
        self._library.GOMP_parallel(nothing, None, ctypes.c_uint(self._size), ctypes.c_uint(0))
        self._there.set()
        self._over.wait()

    def end(self) -> None:
        """The team goes with the thread that made it."""
        self._over.set()
        self.join()


def openmp() -> ctypes.CDLL | None:
    """The GNU OpenMP that this process has loaded; None without one, or where the kernel does not count waiting."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
        loaded = [line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line]
        return ctypes.CDLL(loaded[0]) if loaded and waited() else None
    except OSError:
        return None


def waited() -> dict[str, float]:
    """Seconds that each thread of this process has waited for a CPU although it could have run."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            found[thread] = int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):  # it has just ended, or the kernel was built without
            continue
    return found
