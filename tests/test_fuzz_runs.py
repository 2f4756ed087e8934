"""Configs and run directories gone wrong at random: exit 2 or 3 with the reason, or what nothing was lost for.

In one process, through the `main` of the real command; the long counts are soak tests, some through a real process.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

import train
from configs import ConfigError, load, read_tree
from tests import mutations
from tests.conftest import ROOT, read_lines

# What keeps any config that loads small, and inside the test's own folders.
SMALL = (
    "run.name=fuzz", "run.device=cpu", "run.threads=1", "data.workers=1", "model.layers=1", "model.heads=2",
    "model.kv_heads=null", "model.dim=16", "model.context=32", "train.batch_tokens=128", "train.micro_rows=auto",
    "train.steps=2", "train.compile=false", "eval.max_tokens=64", "eval.sample_tokens=1", "track.wandb=off",
)  # fmt: skip
TEXT = "".join(f"def f{n}(x):\n    return x + {n}\n\n" for n in range(40))


class Small:
    """Trains next to nothing, in this process."""

    def __init__(self, directory: Path):
        self.directory, self.runs = directory, directory / "runs"
        text = directory / "text"
        text.mkdir()
        for number in range(8):
            (text / f"{number}.txt").write_text(TEXT.replace("f", f"g{number}_"))
        (directory / "small.yaml").write_text(
            "run: {name: fuzz, seed: 1}\n"
            f"data: {{sources: {{a: {{kind: text, files: [{text}/*.txt]}}}}, tokenizer: byte, split: {{val: 0.3}}}}\n"
            "model: {preset: qwen3, layers: 1, dim: 16, heads: 2, context: 32}\n"
            "loss: {base: ce, add: [z]}\noptim: {name: muon, rates: {matrix: 0.02}}\n"
            "schedule: {name: wsd, warmup: 1, decay: 0.5}\n"
            "train: {steps: 2, batch_tokens: 128, precision: fp32, compile: false}\n"
            "eval: {every: 1, max_tokens: 64, sample_tokens: 1, prompts: [a, b]}\n"
            "save: {every: 1, keep: 2}\ntrack: {every: 1, wandb: off}\n"
        )

    def main(self, config: Path, *overrides: str, flag: str | None = None) -> int:
        """The exit code; whatever is no error of the user's is raised, as it would be shown with a traceback."""
        places = [f"run.dir={self.runs}", f"data.dir={self.directory}/corpora"]
        return train.main([str(config), *places, *overrides, *([flag] if flag else [])])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(autouse=True)
def _usual_settings():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def contents(path: Path) -> dict[str, Any]:
    """What is below a directory: the bytes of files, where links go, and whatever else is there."""
    found: dict[str, Any] = {}
    for each in sorted(path.rglob("*")):
        name = str(each.relative_to(path))
        if each.is_symlink():
            found[name] = each.readlink()
        elif each.is_file():
            found[name] = each.read_bytes()
        else:
            found[name] = each.stat().st_mode
    return found


def with_reason(code: int, told: str) -> bool:
    return code in (2, 3) and bool(told.strip()) and "Traceback" not in told


def fuzz_configs(small: Small, capfd: pytest.CaptureFixture[str], first: int, count: int) -> dict[int, int]:
    """Load `count` mutated configs and start those that load, made small; how many ended with each code."""
    tree = read_tree(small.directory / "small.yaml")
    path, codes = small.directory / "mutated.yaml", dict.fromkeys((0, 2, 3, 4), 0)
    for seed in range(first, first + count):
        text = mutations.config_text(Random(seed), tree)
        path.write_bytes(text)
        loads = True
        try:
            load(path)
        except ConfigError as error:
            loads = False
            assert str(error).splitlines()[:-1], seed
        assert not small.runs.exists() and small.main(path, flag="--print-config") == (0 if loads else 2), seed
        try:
            code = small.main(path, *SMALL)
        except BaseException as error:
            error.add_note(f"seed {seed}:\n{text.decode(errors='replace')[:3000]}")
            raise
        told = capfd.readouterr().err
        codes[code] += 1
        assert code in (0, 4) or with_reason(code, told), (seed, code, told)
        assert small.runs.exists() == (code in (0, 4)), f"seed {seed}: exit {code} and {list(small.runs.rglob('*'))}"
        shutil.rmtree(small.runs, ignore_errors=True)
    return codes


def fuzz_runs(small: Small, first: int, count: int, start: Callable[[], tuple[int, str]]) -> dict[int, int]:
    """Hurt a run `count` times and go on with it; how many ended with each code."""
    config, whole = small.directory / "small.yaml", small.directory / "whole"
    if not whole.exists():
        assert small.main(config, *SMALL) == 0
        shutil.move(small.runs, whole)
    codes = dict.fromkeys((0, 2, 3), 0)
    for seed in range(first, first + count):
        shutil.rmtree(small.runs, ignore_errors=True)
        shutil.copytree(whole, small.runs)
        run = small.runs / "fuzz"
        done = mutations.hurt_run(Random(seed), run)
        before = contents(run)
        try:
            code, told = start()
        except BaseException as error:
            error.add_note(f"seed {seed}: {done}")
            raise
        codes[code] += 1
        assert code == 0 or with_reason(code, told), (seed, done, code, told)
        after = contents(run)
        if code:
            for own in ("status.json", "run.lock"):
                before.pop(own, None), after.pop(own, None)
            assert after == before, (seed, done, code, told)
        else:
            steps = [row["step"] for row in read_lines(run / "metrics.jsonl")]
            assert steps == sorted(set(steps)) and steps[-1] == 3, (seed, done, steps)
    shutil.rmtree(small.runs, ignore_errors=True)
    return codes


def go_on_here(small: Small, capfd: pytest.CaptureFixture[str]) -> Callable[[], tuple[int, str]]:
    def start() -> tuple[int, str]:
        code = small.main(small.directory / "small.yaml", *SMALL, "train.steps=3")
        return code, capfd.readouterr().err

    return start


def go_on_there(small: Small) -> Callable[[], tuple[int, str]]:
    """The same by the real command."""
    places = [f"run.dir={small.runs}", f"data.dir={small.directory}/corpora"]
    command = [sys.executable, "train.py", f"{small.directory}/small.yaml", *SMALL, *places, "train.steps=3"]

    def start() -> tuple[int, str]:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=300)
        return done.returncode, done.stderr

    return start


def test_mutated_configs(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    codes = fuzz_configs(small, capfd, 0, 40)
    assert codes[2] > 20


def test_mutated_runs(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    codes = fuzz_runs(small, 0, 10, go_on_here(small, capfd))
    assert codes[0]


@pytest.mark.soak
def test_five_hundred_mutated_configs(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    print(fuzz_configs(small, capfd, 1000, 500))


@pytest.mark.soak
def test_two_hundred_mutated_runs(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    print(fuzz_runs(small, 1000, 200, go_on_here(small, capfd)))


@pytest.mark.soak
def test_mutated_runs_through_the_real_command(small: Small) -> None:
    fuzz_runs(small, 2000, 24, go_on_there(small))


@pytest.mark.soak
def test_mutated_configs_through_the_real_command(small: Small) -> None:
    path, places = small.directory / "mutated.yaml", [f"run.dir={small.runs}", f"data.dir={small.directory}/corpora"]
    for seed in range(3000, 3024):
        path.write_bytes(mutations.config_text(Random(seed), read_tree(small.directory / "small.yaml")))
        command = [sys.executable, "train.py", str(path), *SMALL, *places]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=300)
        assert done.returncode in (0, 4) or with_reason(done.returncode, done.stderr), (seed, done.stderr)
        assert small.runs.exists() == (done.returncode in (0, 4)), seed
        shutil.rmtree(small.runs, ignore_errors=True)
