"""A process without progress ends itself, and says where it was."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import ctypes, os, pathlib, signal, subprocess, sys, time
from types import SimpleNamespace
from trainer.watchdog import Watchdog

def hang_somewhere():
    {hang}

ranks = SimpleNamespace(rank=1, world_size={world_size})
with Watchdog(pathlib.Path(sys.argv[1]), ranks, 1.0) as watchdog:
    time.sleep(1.5)
    for beat in range(10):
        watchdog.beat()
        time.sleep(0.2)
    hang_somewhere()
print("left")
"""
HOLDS_THE_LOCK = "ctypes.PyDLL(None).sleep(30)"
STOPPED = """subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)"""


def run(tmp_path: Path, hang: str, world_size: int = 2) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(hang=hang, world_size=world_size)
    return subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_a_hang_is_shown_and_ended(tmp_path: Path):
    done = run(tmp_path, "time.sleep(30)")
    assert done.returncode == 1
    for text in (done.stderr, (tmp_path / "stacks.rank1.txt").read_text()):
        assert text.startswith("rank 1 made no progress for 1 s") and "in hang_somewhere" in text


def test_a_hang_that_keeps_the_interpreter_to_itself_too(tmp_path: Path):
    done = run(tmp_path, HOLDS_THE_LOCK)
    assert done.returncode == 1 and "in hang_somewhere" in done.stderr


@pytest.mark.parametrize(("hang", "world_size"), [("pass", 2), (STOPPED, 2), ("time.sleep(2)", 1)])
def test_progress_a_pause_and_one_process_are_left_alone(tmp_path: Path, hang: str, world_size: int):
    done = run(tmp_path, hang, world_size)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
    assert not list(tmp_path.iterdir())
