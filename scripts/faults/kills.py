"""Processes that are killed or asked to stop (F1, F12), and the file that a kill leaves half written (F24)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from trainer.rows import METRICS, Rows

from .runs import SAVE_EVERY, SHORT, Runs, check, check_code
from .scenario import Outcome
from .supervised import Fault, strike_alone, wait_for


def killed(runs: Runs, outcome: Outcome, count: int, *overrides: str) -> None:
    """F1: kill -9 at random steps of one run and, every third time, at a random moment, wherever it is then."""
    steps = SAVE_EVERY * max(count, 4)
    every_step = (*SHORT, *overrides, "track.every=1", f"train.steps={steps}")
    name = "-".join(["killed", *overrides]).replace("=", "-")
    began, clean = time.monotonic(), runs.clean(*every_step)
    clean_seconds = time.monotonic() - began
    rng, kills, starts = random.Random(name), [], []
    for number, step in enumerate(sorted(rng.sample(range(1, steps - 2), count))):
        seconds = rng.uniform(0.5, 4.0) if number % 3 == 2 else 120.0
        with outcome.injection(f"kill {number + 1}, at step {step}"):
            resumed = runs.saved(name)
            ended = runs.hit(name, step, subprocess.Popen.kill, *every_step, seconds=seconds)
            check_code(ended, -signal.SIGKILL)
            starts.append([(ended.began, resumed), *(ended.seen or [(ended.began + ended.seconds, resumed)])])
            kills.append((starts[-1][-1][1], runs.saved(name)))  # raises Damaged if nothing can be loaded
            outcome.costs(kills[-1][0] - kills[-1][1])
    resumed = runs.saved(name)
    last = runs.hit(name, steps, lambda process: None, *every_step)
    starts.append([(last.began, resumed), *last.seen])
    try:
        check_code(last, 0)
        runs.check_same(clean, name)
    except AssertionError as error:
        outcome.fail(f"the run is not the one it would have been: {error}")
    outcome.figures = {
        "steps": steps, "kills": kills, "clean_seconds": clean_seconds,
        "clean": [(row["step"], row["train/loss"]) for row in runs.rows(clean)],
        "killed": [(row["step"], row["train/loss"]) for row in runs.rows(name)],
        "progress": [[(round(t - starts[0][0][0], 2), step) for t, step in start] for start in starts],
    }  # fmt: skip


def interrupted(runs: Runs, outcome: Outcome, count: int) -> None:
    """F12: Ctrl-C once, which saves, and in turn twice, which ends the process in the middle of a step."""
    for number in range(count):
        if number % 2:
            with outcome.injection("SIGINT twice"):
                _interrupt_twice(runs, outcome, f"interrupted-twice-{number}")
            continue
        name = f"interrupted-{number}"
        with outcome.injection("SIGINT"):
            ended = runs.hit(name, 5 + number, lambda process: process.send_signal(signal.SIGINT), *SHORT)
            check_code(ended, 75)
            status = runs.status(name)
            check(status["state"] == "stopped" and status["exit"] == 75, f"status.json says {status}")
            outcome.costs(max(0, runs.last_row(name) - runs.saved(name)))
            check_code(runs.finish(name, *SHORT), 0)
            runs.check_same(runs.clean(*SHORT), name)


def _interrupt_twice(runs: Runs, outcome: Outcome, name: str) -> None:
    """In the middle of a step that would never end."""

    def twice(process: subprocess.Popen[str], log: Path) -> None:
        wait_for(log, "hang")
        process.send_signal(signal.SIGINT)
        time.sleep(2)  # within a second it would count as the first, passed on by a launcher
        process.send_signal(signal.SIGINT)

    struck = strike_alone(runs, name, {"faults": [Fault("hang", 0, 9)]}, act=twice)
    check_code(struck.ended, 130)
    check(runs.status(name)["exit"] == 130, f"status.json says {runs.status(name)}")
    outcome.costs(9 - runs.saved(name))
    check_code(runs.finish(name, *SHORT), 0)
    runs.check_same(runs.clean(*SHORT), name)


def cut_metrics(runs: Runs, outcome: Outcome, count: int) -> None:
    """F24: the metrics of a killed run, cut at `count` of the bytes after its checkpoint, or at all if fewer.

    The first of those runs is gone on with.
    """
    every_step = (*SHORT, "track.every=1")
    check_code(runs.hit("cut", 10, subprocess.Popen.kill, *every_step), -signal.SIGKILL)
    step, file = runs.saved("cut"), runs.runs / "cut" / METRICS
    data = file.read_bytes()
    kept = b"".join(line for line in data.splitlines(keepends=True) if _step(line) <= step)
    check(data.startswith(kept) and len(data) > len(kept), "no rows after the checkpoint")
    places, scratch = range(len(kept), len(data)), runs.runs / "scratch.jsonl"
    sizes = random.Random(0).sample(places, min(count, len(places)))
    for size in sizes:
        with outcome.injection(f"cut at byte {size}"):
            scratch.write_bytes(data[:size])
            Rows(scratch, step).close()
            check(scratch.read_bytes() == kept, "rows are missing or doubled")
    outcome.detection = f"{outcome.survived}/{outcome.injected}"
    os.truncate(file, sizes[0])
    with outcome.injection(f"cut at byte {sizes[0]}, gone on with"):
        check_code(runs.finish("cut", *every_step), 0)
        runs.check_same(runs.clean(*every_step), "cut")
    outcome.lost = 0


def _step(line: bytes) -> int:
    """Of a row; beyond every step when the line is torn."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return sys.maxsize
