"""`train.py` and its launcher with ranks that hurt themselves: `python faulty.py launch FAULTS.json [options] CONFIG`.

FAULTS.json names a log and faults, each `{"kind", "rank", "step"}`: that rank does it to itself at the beginning of
that step, the first time that it comes there. What happens when goes to the log, a JSON object a line. Nothing else
differs from the real commands: the launcher and the training script run as they are.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAUSE = 1.5
"""Seconds that a stopped process waits to be continued."""


def note(log: str, event: str, **facts: Any) -> None:
    """Append to the log; the clock is the same in all processes of a machine."""
    line = json.dumps({"event": event, "time": time.monotonic(), "rank": os.environ.get("RANK"), **facts}) + "\n"
    with open(log, "ab", buffering=0) as file:
        file.write(line.encode())


def hurt(kind: str) -> None:
    """Do it to this process."""
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "raise":
        raise RuntimeError("this rank was hurt")
    elif kind in ("hang", "nap"):
        time.sleep(3600 if kind == "hang" else 2 * PAUSE)
    elif kind == "pause":
        subprocess.Popen(["sh", "-c", f"sleep {PAUSE}; kill -CONT {os.getpid()}"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        os.kill(os.getpid(), signal.Signals[kind])


def train(plan: str, argv: Sequence[str]) -> None:
    """Run `train.py`, and hurt this rank when its time has come."""
    from learner import Learner

    told = json.loads(Path(plan).read_text())
    rank, begin_step = int(os.environ.get("RANK", "0")), Learner.seed_dropout

    def begin_and_hurt(learner: Learner, step: int, micro: int) -> None:
        for number, fault in enumerate(told["faults"]):
            done = Path(f"{plan}.{number}")
            if (fault["rank"], fault["step"]) == (rank, step) and not done.exists():
                done.touch()
                note(told["log"], fault["kind"], step=step)
                hurt(fault["kind"])
        begin_step(learner, step, micro)

    setattr(Learner, "seed_dropout", begin_and_hurt)  # noqa: B010
    sys.argv = ["train.py", *argv]
    note(told["log"], "started")
    shown = sys.excepthook

    def note_and_show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        note(told["log"], "raised", error=f"{kind.__name__}: {error}")
        shown(kind, error, where)

    sys.excepthook = note_and_show
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def launch(plan: str, argv: Sequence[str]) -> int:
    """Run `scripts.launch` on the hurt training script, and note when it sees a start end."""
    from scripts import launch as launcher

    log, start = json.loads(Path(plan).read_text())["log"], launcher.Supervisor._start

    def start_and_note(supervisor: launcher.Supervisor) -> launcher.Ended:
        ended = start(supervisor)
        note(log, "ended", code=ended.code)
        return ended

    setattr(launcher.Supervisor, "_start", start_and_note)  # noqa: B010
    launcher.TRAIN = (__file__, "train", plan)
    return launcher.main(argv)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    mode, plan, *argv = sys.argv[1:]
    if mode == "train":
        train(plan, argv)
    sys.exit(launch(plan, argv))
