"""What is wrong outside of the config: places that cannot be written, clocks that jump, a file that was cut."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import durable
from tests.conftest import exact, read_lines
from tests.test_fuzz_runs import SMALL, Small, contents
from trainer import rundir

NOBODY = 65534
OWN = ("status.json", "run.lock")
"""What every start may write in a run that it does not go on with."""


@pytest.fixture(scope="module")
def small() -> Iterator[Small]:
    """In a folder that any user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="inputs"))
    folder.chmod(0o755)
    made = Small(folder)
    assert made.main(folder / "small.yaml", *SMALL) == 0
    shutil.move(made.runs, folder / "whole")
    yield made
    shutil.rmtree(folder)


@pytest.fixture
def run(small: Small) -> Iterator[Path]:
    """A copy of a finished run, where `small` finds it."""
    shutil.copytree(small.directory / "whole", small.runs)
    yield small.runs / "fuzz"
    shutil.rmtree(small.runs)


def as_nobody(small: Small, owned: Path, spoil: Callable[[], None]) -> tuple[int, str]:
    """Go on with the run in a process of another user, who owns `owned` until `spoil` is done; (exit code, stderr)."""
    for each in (owned, *owned.rglob("*")):
        os.chown(each, NOBODY, NOBODY, follow_symlinks=False)
    spoil()
    with tempfile.TemporaryFile() as told:
        child = os.fork()
        if child == 0:
            try:
                sys.stderr = open(told.fileno(), "w", closefd=False)  # noqa: SIM115
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                code = small.main(small.directory / "small.yaml", *SMALL, "train.steps=3")
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 99
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told.seek(0)
        return code, told.read().decode()


PLACES = ["", "checkpoints", "config.yaml", "metrics.jsonl", "samples.jsonl", "eval"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process as another user")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_what_cannot_be_written_is_told_before_the_first_step(small: Small, run: Path, place: str, mode: int) -> None:
    target, before = run / place, contents(run)
    if mode == 0o555 and place == "config.yaml":
        return  # it is replaced, not written to
    code, told = as_nobody(small, small.runs, lambda: target.chmod(mode))
    target.chmod(0o755)
    assert code == 2 and "Permission denied" in told and str(run) in told and len(told.splitlines()) <= 2, told
    after = contents(run)
    assert {k: v for k, v in after.items() if k not in OWN} == {k: v for k, v in before.items() if k not in OWN}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process as another user")
def test_no_directory_is_made_where_none_may_be(small: Small) -> None:
    outer = small.directory / "runs"
    outer.mkdir()
    code, told = as_nobody(small, outer, lambda: outer.chmod(0o555))
    left = list(outer.iterdir())
    shutil.rmtree(outer)
    assert code == 2 and "cannot write the run" in told and "Permission denied" in told and not left, told


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_read_only_file_system_is_told(small: Small, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if os.system(f"mount --bind {small.runs} {small.runs} 2>/dev/null && mount -o remount,bind,ro {small.runs}"):
        pytest.skip("mounting is not permitted here")
    try:
        before = contents(run)
        for name in ("fuzz", "another"):
            assert small.main(small.directory / "small.yaml", *SMALL, "train.steps=3", f"run.name={name}") == 2
            assert "Read-only file system" in capfd.readouterr().err
        assert contents(run) == before and not (small.runs / "another").exists()
    finally:
        os.system(f"umount {small.runs}")


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


def test_a_clock_that_jumps_changes_nothing(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours forth and back between any two looks at it: order goes by steps and durations by a clock that cannot."""
    config = small.directory / "small.yaml"
    jumps = iter(range(1, 10**9))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** (n := next(jumps)) * n * 3600)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    for steps in (1, 2):
        assert small.main(config, *SMALL, f"train.steps={steps}", "schedule.name=constant") == 0
    monkeypatch.undo()
    jumped = read_lines(small.runs / "fuzz" / "metrics.jsonl")
    assert small.main(config, *SMALL, "run.name=steady", "train.steps=1", "schedule.name=constant") == 0
    assert small.main(config, *SMALL, "run.name=steady", "schedule.name=constant") == 0
    assert exact(jumped) == exact(read_lines(small.runs / "steady" / "metrics.jsonl"))
    assert all(0 <= row[key] < 600 for row in jumped for key in row if "wait" in key or "seconds" in key)
    assert all(0 < row["train/tokens_per_s"] < 1e9 for row in jumped if "train/tokens_per_s" in row)
    state = durable.verify(durable.find_checkpoint(small.runs / "fuzz"))
    assert state["step"] == 2 and 0 < state["seconds"] < 600
    shutil.rmtree(small.runs)


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
