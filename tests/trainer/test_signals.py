"""Stops asked for where Python's handlers get no turn; processes that must not outlive what started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.signals import EXIT_KILLED, PARENT

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = """
import ctypes
from trainer.signals import StopRequest
lock, c = ctypes.create_string_buffer(64), ctypes.CDLL(None)
with StopRequest(last_words=lambda: print("last words", flush=True)) as stop, stop.polling():
    c.pthread_mutex_lock(lock)
    print("waits", flush=True)
    c.pthread_mutex_lock(lock)  # for ever, and a signal does not end it
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_second_signal_ends_a_process_that_waits_in_compiled_code(number: signal.Signals):
    process = subprocess.Popen([sys.executable, "-c", BLOCKED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # the first once more: a launcher and its process group pass on the same one
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == "last words\n" and process.returncode == EXIT_KILLED


LAUNCHED = """
import os, pathlib, sys, time
from scripts import launch
from trainer.signals import run_process
def wait(argv):
    pathlib.Path(sys.argv[1], f"{os.environ.get('RANK')}.pid").write_text(str(os.getpid()))
    time.sleep(600)
if __name__ == "__main__" and "RANK" in os.environ:
    run_process(wait)
launch.TRAIN = (__file__, sys.argv[1])
launch.main(["configs/tiny.yaml", "--nproc", "2", f"run.dir={sys.argv[1]}"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has to help")
def test_ranks_do_not_outlive_a_launcher_that_is_killed(tmp_path: Path):
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, script, tmp_path], cwd=ROOT, env=environment)
    ranks = [tmp_path / f"{rank}.pid" for rank in (0, 1)]
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(file.exists() and file.read_text() for file in ranks):
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in ranks]
    launcher.kill()
    launcher.wait()
    while time.monotonic() < until and any(map(alive, pids)):
        time.sleep(0.05)
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended; init may take its time to bury one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has to help")
def test_a_process_whose_launcher_is_gone_before_it_began_ends():
    began = "from trainer.signals import end_with_parent; end_with_parent(); print('goes on')"
    environment = {**os.environ, PARENT: str(os.getppid())}  # not the parent of what is started here
    done = subprocess.run([sys.executable, "-c", began], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")
