"""Ranks that die, hang, raise, are paused or asked to stop, under the launcher (F8 to F11, F22)."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .runs import SHORT, Ended, Runs, check, check_code, read_lines
from .scenario import Outcome

TIMEOUT = 4
"""train.timeout where a rank hangs, seconds."""
QUICK = ("--backoff", "0")


@dataclass(frozen=True)
class Fault:
    kind: str
    """kill, raise, hang, pause, weight, one of `harm.SPOIL`, or the name of a signal."""
    rank: int
    step: int
    micro: int = 0


@dataclass
class Struck:
    """A launched run whose ranks hurt themselves."""

    ended: Ended
    log: list[dict[str, Any]]
    """What happened when; see `faulty.py`."""

    def since(self, fault: Fault, event: str) -> float:
        """Seconds from a fault to the next `event`."""
        at = next(line["time"] for line in self.log if line["event"] == fault.kind and line["step"] == fault.step)
        return next(line["time"] - at for line in self.log if line["event"] == event and line["time"] > at)

    def codes(self) -> list[int]:
        """How each start ended."""
        return [line["code"] for line in self.log if line["event"] == "ended"]


def strike(
    runs: Runs,
    name: str,
    faults: Sequence[Fault],
    *overrides: str,
    options: Sequence[str] = ("--nproc", "2", *QUICK),
    act: Callable[[subprocess.Popen[str], Path], None] = lambda launcher, log: None,
) -> Struck:
    """Launch a run with `faults`, `act` on it, and see it end."""
    return _struck(runs, name, {"faults": faults}, "launch", options, overrides, act)


def strike_alone(
    runs: Runs,
    name: str,
    plan: Mapping[str, Any],
    *overrides: str,
    processes: int = 1,
    act: Callable[[subprocess.Popen[str], Path], None] = lambda process, log: None,
) -> Struck:
    """The same without the launcher, which starts a run again; for `plan` see `faulty.py`."""
    return _struck(runs, name, {"faults": [], **plan}, "train", (), overrides, act, processes=processes)


def _struck(
    runs: Runs,
    name: str,
    plan: dict[str, Any],
    mode: str,
    options: Sequence[str],
    overrides: Sequence[str],
    act: Callable[[subprocess.Popen[str], Path], None],
    processes: int = 1,
) -> Struck:
    log, file = write_plan(runs, name, plan)
    driver = str(Path(__file__).with_name("faulty.py"))
    _, config, *settings = runs.arguments(name, *SHORT, *overrides)
    began = time.monotonic()
    process = runs.start(*runs.launcher(processes), driver, mode, str(file), *options, config, *settings)
    try:
        act(process, log)
        out, err = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            process.kill()
    return Struck(Ended(process.returncode, out + err, began, time.monotonic() - began), read_lines(log))


def write_plan(runs: Runs, name: str, plan: dict[str, Any]) -> tuple[Path, Path]:
    """Write what `faulty.py` is to do to a run; returns its log and the file."""
    log, file = runs.runs / f"{name}.log", runs.runs / f"{name}.faults.json"
    runs.runs.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plan | {"log": str(log), "faults": [vars(fault) for fault in plan["faults"]]}))
    return log, file


def wait_for(log: Path, event: str, seconds: float = 120.0) -> dict[str, Any]:
    """The line of the log that tells an event, once it is there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        text = log.read_text() if log.exists() else ""
        for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):
            if line["event"] == event:
                return line
        time.sleep(0.01)
    raise AssertionError(f"no {event} in {seconds:g} s")


def clean(runs: Runs) -> str:
    """The name of a run of two processes that nothing happened to; made once."""
    name = "two-ranks"
    if not (runs.runs / name).exists():
        check_code(runs.finish(name, *SHORT, processes=2), 0)
    return name


def killed_rank(runs: Runs, outcome: Outcome, count: int) -> None:
    """F8: kill -9 of one of two ranks, again and again."""
    faults = [Fault("kill", number % 2, 8 + 5 * number) for number in range(min(count, 3))]
    with outcome.injection("kill -9", len(faults)):
        struck = strike(runs, "rank-killed", faults)
        check_code(struck.ended, 0)
        check(struck.codes() == [137] * len(faults) + [0], f"starts ended with {struck.codes()}")
        noticed = [struck.since(fault, "raised") for fault in faults]
        ended = [struck.since(fault, "ended") for fault in faults]
        check(max(ended) < 2, f"noticed after {max(ended):.2f} s")
        outcome.costs(max(fault.step % 6 for fault in faults))
        outcome.detection = f"by the other rank in {max(noticed):.2f} s, by the launcher in {max(ended):.2f} s"
        runs.check_same(clean(runs), "rank-killed")


def hung_rank(runs: Runs, outcome: Outcome, count: int) -> None:
    """F9: one of two ranks sleeps for ever."""
    fault = Fault("hang", 1, 8)
    with outcome.injection("a rank hangs"):
        struck = strike(runs, "rank-hung", [fault], f"train.timeout={TIMEOUT}")
        check_code(struck.ended, 0)
        check_stacks(runs.runs / "rank-hung", struck.ended.told)
        outcome.costs(fault.step % 6)
        outcome.detection = f"after {struck.since(fault, 'ended'):.1f} s, {TIMEOUT} of them train.timeout"
        runs.check_same(clean(runs), "rank-hung")


def check_stacks(run: Path, told: str) -> None:
    """Both ranks have said where they were: one in what hangs, one waiting for it."""
    for rank, where in enumerate(("train.py", "faulty.py")):
        for text in ((run / f"stacks.rank{rank}.txt").read_text(), told):
            check(f"rank {rank} made no progress for {TIMEOUT} s" in text, f"nothing is said of rank {rank}")
        check(where in (run / f"stacks.rank{rank}.txt").read_text(), f"rank {rank} is not in {where}")


def raising_rank(runs: Runs, outcome: Outcome, count: int) -> None:
    """F10: one of two ranks raises; what it raised stands before what the other makes of it."""
    fault = Fault("raise", 1, 8)
    with outcome.injection("a rank raises"):
        struck = strike(runs, "rank-raised", [fault])
        check_code(struck.ended, 0)
        check_root_cause(struck, fault)
        outcome.costs(fault.step % 6)
        outcome.detection = f"in {struck.since(fault, 'ended'):.2f} s"
        runs.check_same(clean(runs), "rank-raised")


def check_root_cause(struck: Struck, fault: Fault) -> None:
    """The rank that was hurt raised first, and its own words are there."""
    after = struck.log.index(next(line for line in struck.log if line["event"] == fault.kind))
    first = next(line for line in struck.log[after:] if line["event"] == "raised")
    check((first["rank"], first["error"]) == ("1", "RuntimeError: this rank was hurt"), f"first of all: {first}")
    told = struck.ended.told
    check(told.find("this rank was hurt") > 0, "the reason is not told")


def paused_rank(runs: Runs, outcome: Outcome, count: int) -> None:
    """F22: SIGSTOP of one of two ranks, and SIGCONT in less than the timeout."""
    fault = Fault("pause", 1, 8)
    with outcome.injection("SIGSTOP and SIGCONT"):
        struck = strike(runs, "rank-paused", [fault], f"train.timeout={TIMEOUT}")
        check_code(struck.ended, 0)
        check(struck.codes() == [0], f"starts ended with {struck.codes()}")
        runs.check_same(clean(runs), "rank-paused")


def asked(runs: Runs, outcome: Outcome, count: int) -> None:
    """F11: stop signals to one rank, to the launcher and so to torchrun, and twice."""
    asked_once(runs, outcome)
    asked_twice(runs, outcome)


def asked_once(runs: Runs, outcome: Outcome) -> None:
    """One rank is asked and the run started again; then the launcher is, and with it all end."""
    one_rank, launched = Fault("SIGTERM", 1, 4), Fault("pause", 1, 9)

    def usr1(launcher: subprocess.Popen[str], log: Path) -> None:
        wait_for(log, "pause")
        time.sleep(0.7)  # until it has started what wakes it up, which the signal would end
        os.kill(launcher.pid, signal.SIGUSR1)

    with outcome.injection("SIGTERM to one rank, SIGUSR1 to the launcher", 2):
        struck = strike(runs, "asked", [one_rank, launched], act=usr1)
        check_code(struck.ended, 75)
        check(struck.codes() == [75, 75], f"starts ended with {struck.codes()}")  # started again after the first alone
        check(runs.saved("asked") == runs.status("asked")["step"] == 10, f"stopped at step {runs.saved('asked')}")
        check_code(runs.finish("asked", *SHORT, processes=2), 0)
        runs.check_same(clean(runs), "asked")
    outcome.costs(0)


def asked_twice(runs: Runs, outcome: Outcome) -> None:
    """One rank is in a step without an end, the other waits for it in a collective."""

    def twice(launcher: subprocess.Popen[str], log: Path) -> None:
        wait_for(log, "hang")  # in this step it stays
        launcher.terminate()
        time.sleep(2)  # within a second it would count as the first
        launcher.terminate()

    with outcome.injection("SIGTERM twice"):
        struck = strike(runs, "asked-twice", [Fault("hang", 1, 4)], act=twice)
        check_code(struck.ended, 130)
        check(runs.status("asked-twice")["exit"] == 130, f"status.json says {runs.status('asked-twice')}")
