"""The launcher's decisions, on commands that only pretend to train; and the batch script that the docs give."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts import launch

ROOT = Path(__file__).resolve().parents[2]
PRETEND = """
import json, pathlib, sys
run, starts = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
count = len(list(run.glob("start*")))
(run / f"start{count}").touch()
code, step = starts[min(count, len(starts) - 1)]
if step:
    (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
(run / "status.json").write_text(json.dumps({"exit": code, "start": count}))
sys.exit(code)
"""


def supervise(run: Path, starts: list, *, restarts: int = 2, backoff: float = 0.0) -> tuple[int, int]:
    """The code that the launcher ends with, and how often it started; `starts` are (code, newest step) of each."""
    command = [sys.executable, "-c", PRETEND, str(run), json.dumps(starts)]
    code = launch.Supervisor(command, run, hides_codes=False).run(restarts, backoff)
    return code, len(list(run.glob("start*")))


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_what_ended_for_good_is_not_started_again(tmp_path: Path, code: int):
    assert supervise(tmp_path, [(code, 0)]) == (code, 1)


def test_it_gives_up_after_so_many_starts_without_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    assert supervise(tmp_path, [(1, 0)]) == (1, 3)
    assert "giving up" in capfd.readouterr().err


def test_progress_counts_anew(tmp_path: Path):
    starts = [(1, 0), (1, 0), (75, 5), (1, 5), (1, 9), (1, 9), (1, 9), (0, 12)]
    assert supervise(tmp_path, starts) == (0, 8)


def test_the_pause_doubles_until_there_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(launch.Supervisor, "_rest", lambda supervisor, seconds: pauses.append(seconds))
    assert supervise(tmp_path, [(1, 0), (1, 0), (1, 4), (1, 4), (0, 4)], backoff=200.0) == (0, 5)
    assert pauses == [200.0, 300.0, 200.0, 200.0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_stop_that_comes_while_it_waits_ends_it(tmp_path: Path, number: signal.Signals):
    timer = threading.Thread(target=kill_when, args=(tmp_path / "start0", number, 0.5))
    timer.start()
    assert supervise(tmp_path, [(1, 0)], backoff=60.0) == (75, 1)
    timer.join()


def kill_when(file: Path, number: signal.Signals, later: float) -> None:
    while not file.exists():
        time.sleep(0.01)
    time.sleep(later)
    os.kill(os.getpid(), number)


def test_what_rank_0_says_of_the_end_counts(tmp_path: Path):
    told = "import sys; open(sys.argv[1], 'w').write('{\"exit\": 2}'); sys.exit(1)"
    command = [sys.executable, "-c", told, str(tmp_path / "status.json")]
    assert launch.Supervisor(command, tmp_path, hides_codes=True).run(2, 0.0) == 2


REFUSING = """
import os, sys, time
from configs import entry
from durable import Damaged
from trainer.signals import run_process
@entry
def main(argv):
    if os.environ["RANK"] in argv:
        raise Damaged("the weights are not whole")
    time.sleep(600)
run_process(main)
"""


@pytest.mark.parametrize(("ranks", "shown"), [(("1",), "rank 1: "), (("0", "1"), "")])
def test_what_ranks_refuse_is_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ranks: tuple, shown: str
):
    (tmp_path / "refusing.py").write_text(REFUSING)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(launch, "TRAIN", (str(tmp_path / "refusing.py"), *ranks))
    assert launch.main(["configs/tiny.yaml", "--nproc", "2", f"run.dir={tmp_path}"]) == 3
    said = [line for line in capfd.readouterr().err.splitlines() if "not whole" in line]
    assert said == [f"{shown}the weights are not whole"]


def test_a_new_run_that_is_refused_is_not_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    places = [f"run.dir={tmp_path}/runs", f"data.dir={tmp_path}/corpora"]
    source = f"data.sources={{none: {{kind: text, files: [{tmp_path}/none.txt]}}}}"
    assert launch.main(["configs/tiny.yaml", "--nproc", "2", *places, source]) == 2
    said = capfd.readouterr().err
    assert said.count("none.txt") == 1 and "starting again" not in said and "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_bad_options_are_one_line(capsys: pytest.CaptureFixture[str]):
    for words in (["--nproc", "0"], ["--nnodes", "2"], ["--rdzv", "a:1"], ["--backoff", "soon"], ["--restart"]):
        try:
            code = launch.main(["configs/tiny.yaml", *words])
        except SystemExit as stop:
            code = int(str(stop.code))
        assert code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def sbatch() -> str:
    return re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "running.md").read_text(), re.S)[-1]


@pytest.mark.parametrize(("code", "queued"), [(75, True), (0, False), (2, False)])
def test_the_batch_script_queues_again_what_was_stopped(tmp_path: Path, code: int, queued: bool):
    stubs = {
        "scontrol": f'if [ "$1" = show ]; then echo node0; echo node1; else echo "$@" >> {tmp_path}/queue; fi',
        "srun": 'shift; exec "$@"',
        "python": f'echo "$@" > {tmp_path}/launched; kill -USR1 $PPID; exit {code}',
    }
    for name, text in {**stubs, "job": sbatch().partition("\n")[2]}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    surroundings = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        [tmp_path / "job", "configs/tiny.yaml"], env={**surroundings, "SLURM_JOB_NODELIST": "node[0-1]"}
    )
    assert done.returncode == code and (tmp_path / "queue").exists() == queued
    module, name, *options = (tmp_path / "launched").read_text().split()
    assert (module, name) == ("-m", "scripts.launch")
    args = launch.parse(options, prog="launch", description="", flags=launch.FLAGS)
    assert (args.config, args.nnodes, args.rdzv) == ("configs/tiny.yaml", "2", "node0:29500")
