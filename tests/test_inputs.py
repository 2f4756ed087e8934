"""What is wrong outside of the config: a corpus that is not there, a start that fails, a file that was cut."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import read_lines
from tests.test_fuzz_runs import SMALL, Small, contents
from trainer import rundir


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    made = Small(tmp_path_factory.mktemp("inputs"))
    assert made.main(made.directory / "small.yaml", *SMALL) == 0
    shutil.move(made.runs, made.directory / "whole")
    return made


@pytest.fixture
def run(small: Small) -> Iterator[Path]:
    """A copy of a finished run, where `small` finds it."""
    shutil.copytree(small.directory / "whole", small.runs)
    yield small.runs / "fuzz"
    shutil.rmtree(small.runs)


def test_bad_input_leaves_no_directory(small: Small, capfd: pytest.CaptureFixture[str]) -> None:
    nothing = "data.sources={a: {kind: text, files: [/nowhere/*.txt]}}"
    elsewhere = small.directory / "a" / "b"
    assert small.main(small.directory / "small.yaml", *SMALL, nothing, f"run.dir={elsewhere}") == 2
    assert "/nowhere/*.txt" in capfd.readouterr().err and not (small.directory / "a").exists()


def test_bad_input_does_not_restart_a_run(small: Small, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(small.runs)
    nothing = "data.sources={a: {kind: text, files: [/nowhere/*.txt]}}"
    assert small.main(small.directory / "small.yaml", *SMALL, nothing, flag="--restart") == 2
    assert contents(small.runs) | {"fuzz/run.lock": None} == before | {"fuzz/run.lock": None}
    assert f"the old run is {run} again" in capfd.readouterr().err


def test_a_stop_or_a_failure_before_the_run_began_is_kept(tmp_path: Path) -> None:
    for state in ("stopped", "failed", "bad_input", "damaged"):
        path = tmp_path / state
        with pytest.raises(ValueError, match="why"), rundir.hold(path, restart=False):
            rundir.write_status(path, state, 0, 1)
            raise ValueError("why")
        assert path.exists() == (state in ("stopped", "failed"))


def test_metrics_cut_at_any_byte_have_no_step_twice(small: Small, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A real start for a few cuts; `tests/trainer/test_tracking.py` cuts at every byte."""
    whole = (run / "metrics.jsonl").read_bytes()
    shutil.copytree(small.runs, small.directory / "kept")
    ends = [n for n, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, 1, ends[0], ends[0] + 1, ends[0] + 40, len(whole) - 1):
        (run / "metrics.jsonl").write_bytes(whole[:cut])
        assert small.main(small.directory / "small.yaml", *SMALL, "train.steps=3") == 0
        steps = [row["step"] for row in read_lines(run / "metrics.jsonl")]
        complete = whole[: cut + 1].count(b"\n")  # of a line nothing but its end may be missing
        assert steps == [*range(1, complete + 1), 3], cut
        shutil.rmtree(small.runs)
        shutil.copytree(small.directory / "kept", small.runs)
    shutil.rmtree(small.directory / "kept")
