"""Real runs, started as a user starts them, that are watched and hit while they go."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import durable

ROOT = Path(__file__).resolve().parents[2]
TINY = "configs/tiny.yaml"
SAVE_EVERY = 6
SHORT = ("train.steps=24", "eval.every=8", f"save.every={SAVE_EVERY}", "track.every=3", "eval.max_tokens=2048",
         "eval.sample_tokens=8")  # fmt: skip
LIMIT = 300.0
"""Seconds after which a run is taken to hang."""


@dataclass
class Ended:
    """A process that has ended."""

    code: int
    told: str
    """What it printed, stderr last."""
    began: float
    """time.monotonic() at its start."""
    seconds: float
    seen: list[tuple[float, int]] = field(default_factory=list)
    """(time.monotonic(), step) each time that its metrics had grown, and at its end; none of a run that wrote none."""


class Runs:
    """Starts runs of a small recipe under one directory; all share one prepared corpus."""

    def __init__(self, directory: Path):
        self.runs, self.corpora = directory / "runs", directory / "corpora"

    def arguments(self, name: str, *overrides: str, config: str = TINY) -> list[str]:
        places = [f"run.name={name}", f"run.dir={self.runs}", f"data.dir={self.corpora}"]
        return ["train.py", config, *places, *overrides]

    def launcher(self, processes: int) -> list[str]:
        """What comes before the arguments of a run of so many processes."""
        if processes == 1:
            return []
        return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]

    def start(self, *command: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **(env or {})}
        return subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment, **options,
        )  # fmt: skip

    def finish(self, name: str, *overrides: str, env: Mapping[str, str] | None = None, processes: int = 1) -> Ended:
        """Run to its own end."""
        began = time.monotonic()
        process = self.start(*self.launcher(processes), *self.arguments(name, *overrides), env=env)
        return end_of(process, began)

    def clean(self, *overrides: str) -> str:
        """The name of a run of these overrides that nothing happened to; made once."""
        name = "clean-" + hashlib.sha256(repr(overrides).encode()).hexdigest()[:8]
        if not (self.runs / name).exists():
            check_code(self.finish(name, *overrides), 0)
        return name

    def hit(
        self,
        name: str,
        step: int,
        act: Callable[[subprocess.Popen[str]], None],
        *overrides: str,
        seconds: float = LIMIT / 2,
        env: Mapping[str, str] | None = None,
        processes: int = 1,
    ) -> Ended:
        """Start the run and `act` on it once its metrics reach `step`, or `seconds` have passed; then see it end."""
        file = self.runs / name / "metrics.jsonl"
        before = file.stat().st_mtime_ns if file.exists() else 0
        seen: list[tuple[float, int]] = []
        began = time.monotonic()
        process = self.start(*self.launcher(processes), *self.arguments(name, *overrides), env=env)
        while process.poll() is None and time.monotonic() < began + seconds and self._reached(seen) < step:
            if file.exists() and file.stat().st_mtime_ns > before:  # rows of this start
                now = self.last_row(name)
                if now > self._reached(seen):
                    seen.append((time.monotonic(), now))
            time.sleep(0.002)
        if process.poll() is None:
            act(process)
        ended = end_of(process, began)
        if file.exists() and file.stat().st_mtime_ns > before:
            seen.append((began + ended.seconds, self.last_row(name)))
        ended.seen = seen
        return ended

    @staticmethod
    def _reached(seen: Sequence[tuple[float, int]]) -> int:
        return seen[-1][1] if seen else 0

    def kill_at(self, name: str, step: int, number: signal.Signals, *overrides: str, seconds: float = 120.0) -> int:
        """Send the run a signal once its metrics reach `step` or `seconds` have passed; returns its exit code."""
        return self.hit(name, step, lambda process: process.send_signal(number), *overrides, seconds=seconds).code

    def last_row(self, name: str) -> int:
        """The step of the last complete row of a run's metrics, 0 without one."""
        file = self.runs / name / "metrics.jsonl"
        text = file.read_bytes() if file.exists() else b""
        complete = text[: text.rfind(b"\n") + 1].splitlines()
        return json.loads(complete[-1])["step"] if complete else 0

    def rows(self, name: str) -> list[dict[str, Any]]:
        return read_lines(self.runs / name / "metrics.jsonl")

    def status(self, name: str) -> dict[str, Any]:
        return json.loads((self.runs / name / "status.json").read_text())

    def saved(self, name: str) -> int:
        """The step that a run would go on from, 0 without a checkpoint."""
        newest, _ = durable.newest_checkpoint(self.runs / name)
        return durable.step_of(newest) if newest else 0

    def check_same(self, one: str, other: str, *, samples: bool = True) -> None:
        """Raises AssertionError unless two runs left the same metrics, weights, optimizer and texts, bit for bit."""
        check(exact(self.rows(one)) == exact(self.rows(other)), f"the metrics of {one} and {other} differ")
        newest = [durable.find_checkpoint(self.runs / name) for name in (one, other)]
        check(newest[0].name == newest[1].name, f"{one} ends at {newest[0].name}, {other} at {newest[1].name}")
        files = [durable.verify(path)["files"] for path in newest]
        check(files[0] == files[1], f"the last checkpoints of {one} and {other} differ")
        if samples:
            texts = [(self.runs / name / "samples.jsonl").read_bytes() for name in (one, other)]
            check(texts[0] == texts[1] != b"", f"the samples of {one} and {other} differ")


def end_of(process: subprocess.Popen[str], began: float | None = None) -> Ended:
    """See a process end; `began` is when it was started, if not now."""
    began = time.monotonic() if began is None else began
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err += f"\nended after {LIMIT:.0f} s in which it did not end by itself"
    return Ended(process.returncode, out + err, began, time.monotonic() - began)


def check(holds: bool, otherwise: str) -> None:
    """An assertion that also holds under `python -O`."""
    if not holds:
        raise AssertionError(otherwise)


def check_code(ended: Ended, code: int) -> None:
    """Raises AssertionError, with the end of what was printed, unless a process ended with `code`."""
    check(ended.code == code, f"exit code {ended.code}, not {code}: ...{ended.told[-2000:]}")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def exact(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the keys that depend on the clock."""
    from trainer.meters import WALL_CLOCK

    return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in rows]
