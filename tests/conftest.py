"""What tests of whole runs share: a corpus that is prepared once, and ways to start a run as a user does."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits


class Bench:
    """Starts runs of `configs/tiny.yaml` under one directory."""

    def __init__(self, directory: Path):
        self.runs, self.corpora = directory / "runs", directory / "corpora"

    def arguments(self, name: str, *overrides: str, config: str = "configs/tiny.yaml") -> list[str]:
        places = [f"run.name={name}", f"run.dir={self.runs}", f"data.dir={self.corpora}"]
        return ["train.py", config, *places, *overrides]

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def train(self, name: str, *overrides: str, exits: int = 0, config: str = "configs/tiny.yaml") -> str:
        """Run to its end; returns what it printed, stderr last. Fails unless it exits with `exits`."""
        return self.run(*self.arguments(name, *overrides, config=config), exits=exits)

    def run(self, *command: str, exits: int = 0) -> str:
        done = self.start(*command)
        out, err = done.communicate(timeout=300)
        assert done.returncode == exits, f"exit code {done.returncode}\n{out}\n{err}"
        return out + err

    def torchrun(self, processes: int, name: str, *overrides: str) -> str:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return self.run(*launcher, *self.arguments(name, *overrides))

    def rows(self, name: str) -> list[dict]:
        return read_lines(self.runs / name / "metrics.jsonl")

    def status(self, name: str) -> dict:
        return json.loads((self.runs / name / "status.json").read_text())


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def exact(rows: Sequence[dict]) -> list[dict]:
    """Rows without the keys that depend on the clock."""
    from trainer.meters import WALL_CLOCK

    return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in rows]


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def _usual_floats():
    """A run flushes denormals to zero for its whole process; hypothesis wants them back."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
