"""Checkpoints that are damaged on disk: cut (F4), flipped (F5), or all of them bad (F6)."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import durable

from .runs import SHORT, Runs, check, check_code
from .scenario import Outcome

KEPT = (*SHORT, "save.keep=3")
SHARES = (0.0, 0.5, 0.99)


def _stopped(runs: Runs, name: str) -> Path:
    """A run with three checkpoints, stopped on the way."""
    first = runs.runs / "stopped"
    if not first.exists():
        check(runs.kill_at("stopped", 15, signal.SIGTERM, *KEPT) == 75, "the run did not stop")
        check(len(durable.list_checkpoints(first)) == 3, "it has not three checkpoints")
    return shutil.copytree(first, runs.runs / name)


def _falls_back(run: Path) -> bool:
    """Whether the newest checkpoint is passed over, with a reason, for the one before."""
    *_, before, newest = durable.list_checkpoints(run)
    found, reasons = durable.newest_checkpoint(run)
    check(found in (before, newest), f"{found} was taken")
    return found == before and any(newest.name in reason for reason in reasons)


def _goes_on(runs: Runs, outcome: Outcome, name: str, hurt: Callable[[Path], None]) -> None:
    """A damaged run is started by its own command: it says what it passes over, and ends as if unharmed."""
    *_, before, newest = durable.list_checkpoints(_stopped(runs, name))
    hurt(newest)
    ended = runs.finish(name, *KEPT)
    check_code(ended, 0)
    check("damaged checkpoint passed over" in ended.told and newest.name in ended.told, "nothing was said")
    outcome.costs(durable.step_of(newest) - durable.step_of(before))
    runs.check_same(runs.clean(*SHORT), name)


def truncated(runs: Runs, outcome: Outcome, count: int) -> None:
    """F4: each file of the newest checkpoint cut to 0, 50 and 99 %; `count` of those runs are gone on with."""
    run = _stopped(runs, "truncated")
    newest = durable.list_checkpoints(run)[-1]
    cuts = [(file.name, share) for file in sorted(newest.iterdir()) for share in SHARES]
    seen = 0
    for name, share in cuts:
        whole = (newest / name).read_bytes()
        with outcome.injection(f"{name} cut to {share:.0%}"):
            os.truncate(newest / name, int(share * len(whole)))
            detected = _falls_back(run)
            seen += detected
            check(detected, "loaded silently")
        (newest / name).write_bytes(whole)
    durable.verify(newest)
    for number, (name, share) in enumerate(random.Random(0).sample(cuts, count)):

        def cut(checkpoint: Path, name: str = name, share: float = share) -> None:
            os.truncate(checkpoint / name, int(share * (checkpoint / name).stat().st_size))

        with outcome.injection(f"{name} cut to {share:.0%}, gone on with"):
            _goes_on(runs, outcome, f"truncated-{number}", cut)
            seen += 1
    outcome.detection = f"{seen}/{outcome.injected}"


def flipped(runs: Runs, outcome: Outcome, count: int) -> None:
    """F5: one bit flipped, `count` times, at random places of all files in turn; one of those runs is gone on with."""
    run = _stopped(runs, "flipped")
    newest = durable.list_checkpoints(run)[-1]
    files, rng, seen, taken = sorted(newest.iterdir()), random.Random(0), 0, 0.0
    truth = durable.verify(newest)
    for number in range(count):
        file = files[number % len(files)]
        place, bit = rng.randrange(file.stat().st_size), rng.randrange(8)
        with outcome.injection(f"bit {bit} of byte {place} of {file.name}"):
            flip(file, place, bit)
            began = time.monotonic()
            detected = _falls_back(run)
            taken += time.monotonic() - began
            seen += detected
            # Another last digit of a long number may be the same number: then what is loaded is what was saved.
            check(detected or durable.verify(newest) == truth, "loaded silently")
        flip(file, place, bit)
    durable.verify(newest)
    outcome.detection = f"{seen}/{count}"
    with outcome.injection("a flipped bit of the weights, gone on with"):
        _goes_on(runs, outcome, "flipped-on", lambda path: flip(path / "model.safetensors", 5000, 3))
    size = sum(file.stat().st_size for file in files)
    outcome.figures = {"checkpoint_bytes": size, "milliseconds_each": 1e3 * taken / count}


def flip(file: Path, place: int, bit: int) -> None:
    """Flip a bit of a byte of a file."""
    with open(file, "r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1 << bit]))


def _all_cut(checkpoint: Path) -> None:
    for file in checkpoint.iterdir():
        os.truncate(file, 0)


RUIN: dict[str, Callable[[Path], None]] = {
    "state.json emptied": lambda checkpoint: os.truncate(checkpoint / durable.STATE, 0),
    "every file cut to nothing": _all_cut,
    "weights removed": lambda checkpoint: (checkpoint / "model.safetensors").unlink(),
    "state.json removed": lambda checkpoint: (checkpoint / durable.STATE).unlink(),
    "a bit flipped in the optimizer": lambda checkpoint: flip(checkpoint / "optimizer.safetensors", 3000, 0),
}


def ruined(runs: Runs, outcome: Outcome, count: int) -> None:
    """F6: all checkpoints of a run are damaged, in `count` ways: exit code 3, and never a silent fresh start."""
    for number, (how, ruin) in enumerate(list(RUIN.items())[:count]):
        name = f"ruined-{number}"
        run = _stopped(runs, name)
        for checkpoint in durable.list_checkpoints(run):
            ruin(checkpoint)
        before = contents(run)
        with outcome.injection(how):
            ended = runs.finish(name, *KEPT)
            check_code(ended, 3)
            check("no loadable checkpoint" in ended.told and "Traceback" not in ended.told, "not told in a line")
            check(contents(run) == before, "files of the run were changed")
            check(runs.status(name)["state"] == "damaged", f"status.json says {runs.status(name)}")
    outcome.detection = f"{outcome.survived}/{outcome.injected}"
    outcome.lost = None


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but what a start may write before it knows anything."""
    mutable = ("status.json", "run.lock")
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in mutable
    }
