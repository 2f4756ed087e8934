"""`train.py` and its launcher with ranks that hurt themselves.

`python faulty.py launch FAULTS.json [options] CONFIG`, or `train FAULTS.json CONFIG` without the launcher.

FAULTS.json names a log and faults, each `{"kind", "rank", "step", "micro"}`: that rank does it to itself at the
beginning of that micro-batch, the first time that it comes there; kinds of `harm.SPOIL` spoil the micro-batch. What
happens when goes to the log, a JSON object a line. Nothing else differs from the real commands: the launcher and the
training script run as they are.
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
    elif kind == "hang":
        time.sleep(3600)
    elif kind == "pause":
        subprocess.Popen(["sh", "-c", f"sleep {PAUSE}; kill -CONT {os.getpid()}"], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        os.kill(os.getpid(), signal.Signals[kind])


def train(plan: str, argv: Sequence[str]) -> None:
    """Run `train.py`, and hurt this rank when its time has come."""
    told = json.loads(Path(plan).read_text())
    if told.get("clock"):
        from scripts.faults.harm import jumping_clock

        time.time, time.time_ns = jumping_clock()
    if told.get("memory"):
        limit_memory(told["memory"])
    if told["faults"]:
        install(plan, told)
    sys.argv = ["train.py", *argv]
    note(told["log"], "started")
    shown = sys.excepthook

    def note_and_show(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        note(told["log"], "raised", error=f"{kind.__name__}: {error}")
        shown(kind, error, where)

    sys.excepthook = note_and_show
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def install(plan: str, told: dict[str, Any]) -> None:
    """Put the faults where this process will come across them."""
    from learner import Learner
    from scripts.faults.harm import SPOIL, digest, spoil_weight

    rank, before, spoils = int(os.environ.get("RANK", "0")), list[str](), list[str]()
    begin, forward, update = Learner.seed_dropout, Learner.forward, Learner.update

    def begin_and_hurt(learner: Learner, step: int, micro: int) -> None:
        for number, fault in enumerate(told["faults"]):
            kind, done = fault["kind"], Path(f"{plan}.{number}.{rank}")
            if (fault["step"], fault["micro"]) != (step, micro) or done.exists():
                continue
            done.touch()
            if kind in SPOIL:
                before[:] = [digest(learner)]  # looked at by all ranks: none may be changed by this step
            if fault["rank"] != rank:
                continue
            note(told["log"], kind, step=step)
            if kind in SPOIL or kind == "weight":
                spoils.append(kind)
                break  # another one of this step is for when the run comes here again
            hurt(kind)
        begin(learner, step, micro)

    def forward_spoiled(learner: Learner, batch: Any, **options: Any) -> Any:
        if not spoils or spoils == ["weight"]:
            return forward(learner, batch, **options)
        return SPOIL[spoils.pop()](lambda changed: forward(learner, changed, **options), batch)

    def update_and_look(learner: Learner, factor: float, finite: Any, momentum: float) -> None:
        update(learner, factor, finite, momentum)
        if before:
            note(told["log"], "looked", changed=before.pop() != digest(learner))
        if spoils:
            spoils.clear()
            spoil_weight(learner.model)

    for name, changed in (("seed_dropout", begin_and_hurt), ("forward", forward_spoiled), ("update", update_and_look)):
        setattr(Learner, name, changed)


def limit_memory(mebibytes: int) -> None:
    """Leave this process so much address space beyond what it has with everything imported."""
    import resource

    import torch._dynamo  # noqa: F401  # which tensors without contents, and so what is told of memory, need

    import assemble  # noqa: F401
    import instruments  # noqa: F401
    import scripts.summary  # noqa: F401

    status = Path("/proc/self/status").read_text().splitlines()
    size = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + (mebibytes << 20),) * 2)


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
