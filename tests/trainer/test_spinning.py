"""Threads that wait for each other sleep while another process has a CPU, and spin while none has.

The scripts run in a process of their own, with two OpenMP threads. They count how often the second one has gone to
sleep of itself, which a thread that spins does not: no time is measured.
"""

import ctypes
import subprocess
import sys
import threading
import time
from itertools import accumulate, chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer import spinning
from trainer.spinning import Spinning

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "2"}
BEGIN = """
import os, sys, threading, time
from pathlib import Path
import torch
from trainer import spinning
from trainer.spinning import Spinning

cpu, before = torch.device("cpu"), set(os.listdir("/proc/self/task"))
x = torch.ones(1 << 20)
(mate,) = set(os.listdir("/proc/self/task")) - before

def naps():
    "How often OpenMP's second thread has gone to sleep of itself in so many operators."
    def count():
        lines = Path(f"/proc/self/task/{mate}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("voluntary_ctxt_switches")).split()[1])
    start = count()
    for _ in range(1000):
        x.add_(1)
    return count() - start

def until(asleep, spinning, work):
    end = time.monotonic() + 60
    while spinning.asleep != asleep:
        assert time.monotonic() < end
        work()
"""
SWITCHED = """
with Spinning(cpu) as first:
    awake = naps()
    first._change(sleep=True)
    asleep = naps()
    first._change(sleep=False)
    print(asleep > 700, awake < 300, naps() < 300)
"""
BESIDE_OTHERS = """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread: others share it from here on
others = [os.posix_spawn(sys.executable, [sys.executable, "-c", "while True: pass"], os.environ) for _ in range(2)]
told = []
try:
    with Spinning(cpu, told.append) as kept:
        until(True, kept, lambda: sum(range(10**5)))
        until(False, kept, lambda: time.sleep(0.1))
        until(True, kept, lambda: sum(range(10**5)))
    print(kept.asleep, len(told), told[0] == spinning.NOTICE, [t.name for t in threading.enumerate()])
finally:
    for other in others:
        os.kill(other, 9)
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script], cwd=ROOT, env=SETTINGS, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_second_team_makes_threads_sleep():
    assert run(SWITCHED) == "True True True\n"


def test_beside_busy_processes_and_without_them():
    assert run(BESIDE_OTHERS) == "False 1 True ['MainThread']\n"


class Library:
    """Stands in for OpenMP, on a machine of two CPUs."""

    def __init__(self) -> None:
        self.teams = list[int]()

    def omp_get_num_procs(self) -> int:
        return 2

    def GOMP_parallel(self, function: object, data: None, size: ctypes.c_uint, flags: object) -> None:
        self.teams.append(size.value)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(spinning, "openmp", lambda: made)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in spinning.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.mark.parametrize(
    ("shares", "teams", "asleep"),
    [
        ([0.0], 0, False),
        ([0.15], 0, False),
        ([0.3, 0.0, 0.3, 0.0], 0, False),  # not two looks in a row
        ([0.3], 1, True),
        ([1.7, 1.7, 0.15], 1, True),
        ([0.3, 0.3, 0.05, 0.3, 0.05, 0.15], 1, True),
        ([0.3, 0.3, 0.05], 1, False),
        ([0.3, 0.3, 0.05, 0.05, 0.3], 2, True),
    ],
)
def test_what_looks_lead_to(
    library: Library, monkeypatch: pytest.MonkeyPatch, shares: list[float], teams: int, asleep: bool
):
    """`shares` of a second each are what threads waited between looks, the last of them ever after."""
    seconds = chain([0.0], accumulate(chain(shares, repeat(shares[-1]))))
    looks = 0

    def waited() -> dict[str, float]:
        nonlocal looks
        looks += 1
        return {"1": next(seconds), f"new {looks}": 5.0}  # a thread that was not there before says nothing

    monkeypatch.setattr(spinning, "EVERY", 1e-4)
    monkeypatch.setattr(spinning, "waited", waited)
    monkeypatch.setattr(spinning, "time", SimpleNamespace(monotonic=lambda: float(looks)))
    told = list[str]()
    with Spinning(CPU, told.append) as kept:
        while looks < len(shares) + 5:
            time.sleep(1e-3)
        assert (library.teams, kept.asleep, len(told)) == ([2] * teams, asleep, min(teams, 1))
    assert not kept.asleep


def test_where_the_system_gives_no_more_threads_nothing_changes(library: Library, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spinning._Team, "start", lambda team: (_ for _ in ()).throw(RuntimeError("no new thread")))
    told = list[str]()
    kept = Spinning(CPU, told.append)
    kept._change(sleep=True)
    assert not kept.asleep and not told


def watches(device: torch.device = CPU) -> bool:
    with Spinning(device):
        return "spinning" in [thread.name for thread in threading.enumerate()]


def test_where_nothing_is_done(library: Library, monkeypatch: pytest.MonkeyPatch):
    assert watches()
    assert not watches(torch.device("cuda"))
    for name in spinning.CHOSEN:
        with monkeypatch.context() as patched:
            patched.setenv(name, "1")
            assert not watches()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not watches()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(spinning, "openmp", lambda: None)
    assert not watches()


def test_a_kernel_that_does_not_count(monkeypatch: pytest.MonkeyPatch):
    assert spinning.openmp() is not None
    monkeypatch.setattr(spinning, "waited", dict)
    assert spinning.openmp() is None
