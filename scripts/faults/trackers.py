"""Failures of Weights & Biases (F16), which training must not notice."""

import itertools
import os
import signal
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .runs import SHORT, Ended, Runs, check, check_code, exact
from .scenario import Outcome

# A key of the right form and an address that no route leads to (RFC 5737)
NOWHERE = {"WANDB_BASE_URL": "http://192.0.2.1", "WANDB_API_KEY": "0" * 40}
NO_KEY = {"WANDB_BASE_URL": "http://127.0.0.1:9", "NETRC": "/nonexistent", "WANDB_API_KEY": ""}
QUIET = {"WANDB_ERROR_REPORTING": "false"}
TIMED = ("train.steps=400", "eval.every=400", "save.every=400", "track.every=1", "eval.max_tokens=2048",
         "eval.sample_tokens=0")  # fmt: skip
SETTLED = 3.0


def wandb_fails(runs: Runs, outcome: Outcome, count: int) -> None:
    """F16: wandb not installed, without a key, killed on the way, and unreachable; `count` of these."""
    truth = exact(runs.rows(runs.clean(*SHORT)))
    ways: dict[str, Callable[[str], Ended]] = {
        "not installed": lambda name: _online(runs, name, {"PYTHONPATH": _absent(runs)}, SHORT),
        "no key": lambda name: _online(runs, name, NO_KEY, SHORT),
        "its process killed": lambda name: _killed(runs, name),
        "unreachable": lambda name: _online(runs, name, NOWHERE, SHORT),
    }
    for how, act in list(ways.items())[:count]:
        name = "tracked-" + how.replace(" ", "-")
        with outcome.injection(how):
            ended = act(name)
            check_code(ended, 0)
            warnings = [line for line in ended.told.splitlines() if line.startswith("wandb: ")]
            check(1 <= len(warnings) <= 2, f"warned {len(warnings)} times: {warnings}")  # of the failure; how to sync
            check(exact(runs.rows(name)) == truth, "the metrics differ")
    outcome.lost = 0
    outcome.detection = f"{outcome.survived}/{outcome.injected}"


def _online(runs: Runs, name: str, env: Mapping[str, str], overrides: Sequence[str]) -> Ended:
    return runs.finish(name, *overrides, "track.wandb=online", env={**QUIET, **env})


def _absent(runs: Runs) -> str:
    """A folder in which wandb is a package that is not there."""
    folder = runs.runs.parent / "absent"
    folder.mkdir(exist_ok=True)
    (folder / "wandb.py").write_text("raise ModuleNotFoundError(\"No module named 'wandb'\", name='wandb')\n")
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def _killed(runs: Runs, name: str) -> Ended:
    def kill(process: subprocess.Popen[str]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ours = [pid for pid in children if b"trainer.tracking" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        check(len(ours) == 1, "no process of wandb's to kill")
        os.kill(int(ours[0]), signal.SIGKILL)

    return runs.hit(name, 3, kill, *SHORT, "track.wandb=offline", env=QUIET)


def step_times(runs: Runs, repeats: int) -> dict[str, float]:
    """Milliseconds of a step without wandb and with one that cannot be reached, in `repeats` pairs of runs.

    A run's time is the median of its steps after the first `SETTLED` seconds, in which wandb is imported beside it.
    The ratio is the median of the pairs', which take turns in who is first, so that neither a machine that gets slower
    nor one run that was disturbed decides.
    """
    ways: dict[str, list[float]] = {"off": [], "unreachable": []}
    for number in range(repeats):
        for way in sorted(ways, reverse=number % 2 == 1):
            name = f"timed-{way}-{number}"
            check_code(runs.finish(name, *TIMED) if way == "off" else _online(runs, name, NOWHERE, TIMED), 0)
            elapsed = [row["time/elapsed"] for row in runs.rows(name)[:-1]]
            settled = [time for time in elapsed if time > elapsed[0] + SETTLED]
            ways[way].append(statistics.median(1e3 * (b - a) for a, b in itertools.pairwise(settled)))
    ratios = [theirs / ours for ours, theirs in zip(ways["off"], ways["unreachable"], strict=True)]
    medians = {way: statistics.median(taken) for way, taken in ways.items()}
    return {**medians, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
