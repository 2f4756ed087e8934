"""What tests of whole runs share: a corpus that is prepared once, and ways to start a run as a user does."""

import os
import re
import sys

import pytest

from scripts.faults.runs import ROOT, TINY, Runs, exact, read_lines

__all__ = ["ROOT", "Bench", "exact", "read_lines"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits


class Bench(Runs):
    """Starts runs of `configs/tiny.yaml` under one directory, and fails the test when they end otherwise than meant."""

    def train(self, name: str, *overrides: str, exits: int = 0, config: str = TINY) -> str:
        """Run to its end; returns what it printed, stderr last. Fails unless it exits with `exits`."""
        return self.run(*self.arguments(name, *overrides, config=config), exits=exits)

    def run(self, *command: str, exits: int = 0) -> str:
        done = self.start(*command)
        out, err = done.communicate(timeout=300)
        assert done.returncode == exits, f"exit code {done.returncode}\n{out}\n{err}"
        return out + err

    def torchrun(self, processes: int, name: str, *overrides: str) -> str:
        return self.run(*self.launcher(processes), *self.arguments(name, *overrides))


def pytest_configure(config: pytest.Config) -> None:
    """Only tests of a GPU see one: all others are about what a run does on a CPU, whose numbers repeat anywhere."""
    if not re.match(r"gpu\b", config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if not torch.cuda.is_available():
        pytest.exit(f"there is no GPU that torch {torch.__version__} can use", returncode=2)


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(autouse=True)
def _usual_floats():
    """A run flushes denormals to zero for its whole process; hypothesis wants them back."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
