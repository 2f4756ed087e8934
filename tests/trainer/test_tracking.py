"""Rows that survive, sinks that hold the same, and failures of wandb that training does not notice."""

import importlib
import json
import math
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import durable
from trainer import progress, tracking
from trainer.config import TrackConfig
from trainer.progress import number_text
from trainer.rows import Mark, Rows, finite, read_rows
from trainer.tracking import Tracker, read_metrics, reason

TREE = {"model": {"dim": 8, "betas": (0.8, 0.95)}, "run": {"name": "r"}}


def tracker(run: Path, config: TrackConfig | None = None, **changes: Any) -> Tracker:
    options: dict[str, Any] = {"config_tree": TREE, "name": "r", "total_steps": 40, **changes}
    return Tracker(run, config or TrackConfig(), **options)


def fill(track: Tracker, steps: list[int]) -> None:
    for step in steps:
        track.log(step, 8 * step, {"train/loss": 1 / step, "val/nll": math.nan if step % 20 else 2.5})


def test_rows_are_strict_json_and_in_order(tmp_path: Path) -> None:
    track = tracker(tmp_path)
    track.log(10, 80, {"a": 0.1, "b": math.inf, "c": np.float32(0.5), "d": torch.tensor(3), "e": math.nan})  # type: ignore[dict-item]
    line = (tmp_path / "metrics.jsonl").read_text()  # before close: a row is flushed when log returns
    assert line == '{"step": 10, "tokens": 80, "a": 0.1, "b": null, "c": 0.5, "d": 3, "e": null}\n'
    for step in (10, 9):
        with pytest.raises(ValueError, match="already logged"):
            track.log(step, 80, {})
    track.log(20, 160, {})
    track.sync()
    track.close(0)
    track.close(0)
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]


def test_resume_drops_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    track = tracker(tmp_path)
    fill(track, [10, 20, 30, 40])
    track.samples(20, [{"prompt": "", "text": "ä\u2028\ud800"}])
    track.samples(40, [{"prompt": "", "text": "b"}, {"prompt": "x", "text": "c"}])
    track.close(0)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b'{"step": 50, "tok')
    assert len(read_metrics(tmp_path)) == 4

    again = tracker(tmp_path, start_step=20)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    fill(again, [30, 40])
    again.close(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    assert read_rows(tmp_path / "samples.jsonl") == [{"step": 20, "prompt": "", "text": "ä\u2028\ud800"}]

    tracker(tmp_path).close(0)  # no checkpoint: from the beginning
    assert read_metrics(tmp_path) == []


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), keep=st.integers(-1, 12))
def test_any_cut_is_healed(cut: int, keep: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    rows = [{"step": step, "tokens": step * 3, "x": f"é{step}"} for step in range(10)]
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    data = b"".join(lines)[:cut]
    (run / "metrics.jsonl").write_bytes(data)
    complete = [row for i, row in enumerate(rows) if len(b"".join(lines[: i + 1])) - 1 <= len(data)]
    assert read_metrics(run) == complete
    for _ in range(2):
        Rows(run / "metrics.jsonl", keep).close()
    assert (run / "metrics.jsonl").read_bytes() == b"".join(lines[: min(len(complete), keep + 1)])


@pytest.mark.parametrize("bad", ["{", '{"step": 1.5}', '{"step": 3, "x": NaN}', "[]", "", '{"step": true}'])
def test_damage_in_the_middle_is_named(bad: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + bad + '\n{"step": 5}\n')
    with pytest.raises(durable.Damaged, match=r"metrics\.jsonl:2"):
        tracker(tmp_path, start_step=3)
    assert (tmp_path / "metrics.jsonl").read_text().endswith('{"step": 5}\n')


def test_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        tracker(tmp_path / "file" / "run")


def test_other_ranks_do_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track = tracker(tmp_path, TrackConfig(wandb="offline", tensorboard=True), enabled=False, wandb_id="kept")
    fill(track, [10, 10])
    track.samples(10, [{"text": "x"}])
    track.message("x")
    track.progress(3)
    track.sync()
    track.close(0)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "") and track.wandb_id == "kept"


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track = tracker(tmp_path)
    row = {"train/loss": 3.14159, "train/ppl": 23.14, "train/tokens_per_s": 12345.0}
    track.log(10, 80, row)
    track.log(20, 160, row | {"val/nll": 2.5, "val/bpb": 1.25})
    track.log(40, 320, row)
    track.progress(40)
    track.message("saved")
    track.close(0)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("step 10/40  loss 3.142  ppl 23.14  tok/s 12.3k  0:0")
    assert lines[1:] == ["step 20  held out:  nll 2.5  bpb 1.25", lines[2], "saved"]  # step 20 comes too soon
    assert lines[2].startswith("step 40/40") and lines[2].endswith("0:00 left")


def test_the_time_that_is_left_is_told_by_steps_after_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may compile for a minute: here 60 s, and then 2 s a step."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    shown = progress.Progress("run", 4, 30)
    now += 60
    shown.move(5)
    shown.show({"step": 5, "train/loss": 1.0})
    for step in range(6, 11):
        now += 2
        shown.move(step)
    shown.show({"step": 10, "train/loss": 1.0})
    assert [line.split("  ")[-1] for line in capsys.readouterr().err.splitlines()] == ["? left", "0:40 left"]


def test_a_bar_tells_the_pace_of_steps_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.Progress("run", 0, 1000)
    assert shown._bar is not None
    now = shown._bar.last_print_t
    monkeypatch.setattr(shown._bar, "_time", lambda: now)
    monkeypatch.setattr(progress.time, "time", lambda: now)
    now += 60
    shown.move(1)
    for step in range(2, 12):
        now += 2
        shown.move(step)
    told = shown._bar.format_dict
    assert (told["n"], told["total"], told["initial"]) == (11, 1000, 1)
    assert told["rate"] == pytest.approx(0.5, rel=0.05)  # steps a second
    shown.close()


def test_a_bar_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    track = tracker(tmp_path, start_step=10)
    bar = track._progress._bar
    assert bar is not None and bar.n == 10
    now = bar.last_print_t
    monkeypatch.setattr(bar, "_time", lambda: now)
    capsys.readouterr()
    for step in range(11, 30):
        track.progress(step)
    assert bar.n == 29 and capsys.readouterr().err == ""  # host arithmetic, until it is due
    now += 1
    track.progress(30)
    assert "30/40" in capsys.readouterr().err
    track.log(40, 320, {"train/loss": 2.5, "train/ppl": 12.0})
    track.message("saved step 40")
    track.close(0)
    err = capsys.readouterr().err
    assert "40/40" in err and "loss=2.5" in err and "saved step 40\n" in err


def test_tensorboard_reads_the_same_values(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def same() -> bool:
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        rows = read_metrics(tmp_path)
        for key in ("train/loss", "val/nll", "tokens"):
            want = [(row["step"], np.float32(row[key])) for row in rows if row[key] is not None]
            if [(e.step, np.float32(e.value)) for e in events.Scalars(key)] != want:
                return False
        return True

    on, off = TrackConfig(tensorboard=True), TrackConfig()
    first = tracker(tmp_path, off)
    fill(first, [10])
    first.close(0)
    second = tracker(tmp_path, on, start_step=10)  # switched on late: gets the row of step 10
    fill(second, [20, 30])
    second.sync()
    assert same()  # before it is closed: a kill from here on takes nothing, and nothing is handed over again
    assert Mark(tmp_path / "tensorboard" / "handed_over.json", "tensorboard").step == 30
    third = tracker(tmp_path, on, start_step=20)  # step 30 is gone in both
    fill(third, [40])
    third.close(0)
    assert same()
    fourth = tracker(tmp_path, off, start_step=40)
    fill(fourth, [50, 60])
    fourth.close(0)
    assert not same()
    tracker(tmp_path, on, start_step=60).close(0)
    assert same()
    fifth = tracker(tmp_path, on)  # no checkpoint: everything anew
    fill(fifth, [10, 20])
    fifth.close(0)
    second.close(0)
    assert same()


def test_a_failing_tensorboard_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    track = tracker(tmp_path, TrackConfig(tensorboard=True))
    fill(track, [10, 20])
    track.close(0)
    assert capsys.readouterr().err.count("tensorboard: ") == 1
    assert len(read_metrics(tmp_path)) == 2


# ---- wandb ----


def wandb_records(path: Path) -> list[Any]:
    """Records of a .wandb file: LevelDB's log format (blocks of 32 KiB, 7-byte chunk heads) after a 7-byte head."""
    pb: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(pb.Record.FromString(parts))
            parts = b""
    return records


def history(records: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def killed(track: Tracker) -> None:
    """What the wandb process sees when training is killed: the end of the pipe, without an exit code."""
    assert track._wandb is not None
    track._wandb._queue.put(None)
    track._wandb._process.wait(timeout=60)


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own wandb settings, and no way out."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.mark.usefixtures("no_account")
def test_wandb_offline_holds_config_and_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    before = tracker(run)
    fill(before, [10])
    before.close(0)
    config = TrackConfig(wandb="offline", project="p", entity="e", group="g", tags=("t", "u"))
    first = tracker(run, config, start_step=10)  # switched on late: the row of step 10 is handed over
    assert first.wandb_id
    fill(first, [20, 30])
    first.samples(30, [{"prompt": "a", "text": "<b>"}])
    killed(first)
    second = tracker(run, config, start_step=20, wandb_id=first.wandb_id)
    fill(second, [30, 40])  # step 30 was handed over before
    second.close(75)
    without = tracker(run, start_step=40, wandb_id=first.wandb_id)
    fill(without, [50])
    without.close(0)
    assert without.wandb_id == first.wandb_id
    third = tracker(run, config, start_step=50, wandb_id=first.wandb_id)  # and lacks step 50
    fill(third, [60])
    third.close(0)

    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 3 and all(first.wandb_id in file.name for file in files)
    one, two, three = (wandb_records(file) for file in files)
    [start] = [r.run for r in one if r.WhichOneof("record_type") == "run"]
    assert (start.run_id, start.project, start.entity, start.run_group) == (first.wandb_id, "p", "e", "g")
    assert (start.display_name, list(start.tags)) == ("r", ["t", "u"])
    assert {u.key: json.loads(u.value_json) for u in start.config.update if u.key != "_wandb"} == finite(TREE)
    exits = [r.exit.exit_code for part in (one, two, three) for r in part if r.WhichOneof("record_type") == "exit"]
    assert exits == [1, 75, 0]
    logged = [row for part in (one, two, three) for row in history(part) if "samples/nrows" not in row]
    assert logged == read_metrics(run)
    assert [row["step"] for row in history(one) if row.get("samples/nrows") == 1] == [30]

    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", *(str(f.parent) for f in files)]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=run)
    assert listed.returncode == 0 and "Would sync 3 run(s)" in listed.stdout + listed.stderr
    assert "wandb sync" in capsys.readouterr().err


@pytest.mark.usefixtures("no_account")
def test_online_without_a_key_goes_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track = tracker(tmp_path, TrackConfig(wandb="online"))
    fill(track, [10, 20])
    track.close(0)
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert history(wandb_records(file)) == read_metrics(tmp_path)
    assert capsys.readouterr().err.count("no API key") == 1


FAKE = """
import os, sys, time
class Settings:
    def __init__(self, **k): self.api_key, self.identity_token_file, self.base_url = "k", None, ""
class Run:
    dir = "/d/files"
    settings = None
    def define_metric(self, *a, **k): pass
    def log(self, row):
        fail("log")
        if "FAKE_OUT" in os.environ:
            time.sleep(float(os.environ.get("FAKE_SLOW", 0)))
            with open(os.environ["FAKE_OUT"], "a") as file: file.write(f"{row['step']}\\n")
    def finish(self, exit_code): fail("finish")
def fail(where):
    if where != os.environ.get("FAKE_WHERE"): return
    how = os.environ["FAKE_HOW"]
    if how == "raise": raise RuntimeError("key 0123456789abcdef0123456789abcdef01234567 refused")
    if how == "exit": sys.exit(3)
    if how == "die": os._exit(9)
    time.sleep(600)
def setup(settings): return type("S", (), {"settings": settings})
def teardown(): pass
def init(**k): fail("init"); return Run()
fail("import")
"""


@pytest.mark.parametrize("how", ["raise", "exit", "die", "hang"])
@pytest.mark.parametrize("where", ["import", "init", "log", "finish"])
def test_whatever_wandb_does_training_goes_on(
    where: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("FAKE_WHERE", where)
    monkeypatch.setenv("FAKE_HOW", how)
    monkeypatch.setattr(tracking, "WANDB_PATIENCE", {"offline": 1.0})
    track = tracker(tmp_path, TrackConfig(wandb="offline"))
    assert track._wandb is not None
    process = track._wandb._process
    fill(track, list(range(1, 300)))
    track.close(0)
    assert len(read_metrics(tmp_path)) == 299
    assert process.poll() is not None
    err = capsys.readouterr().err
    assert err.count("going on without it") == 1
    assert "0123456789abcdef" not in err


def test_a_full_queue_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text(FAKE)
    for name, value in {"PYTHONPATH": str(tmp_path), "FAKE_WHERE": "init", "FAKE_HOW": "hang"}.items():
        monkeypatch.setenv(name, value)
    sink = tracking._Wandb("offline", {"dir": str(tmp_path), "id": "x"}, [], lambda text: print(text, file=sys.stderr))
    for _ in range(20_000):
        sink.put({"step": 1, "text": "x" * 100})
    sink.close(0)
    assert capsys.readouterr().err.count("no answer for 10000 rows") == 1
    assert sink._process.poll() is not None


@pytest.fixture
def fake_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """A wandb that writes down the steps that it gets; the value reads them."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE)
    out = tmp_path / "fake" / "steps"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    monkeypatch.setenv("FAKE_OUT", str(out))
    return lambda: [int(line) for line in out.read_text().splitlines()]


def test_switched_on_late_in_a_long_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_steps: Callable[[], list[int]]
) -> None:
    count = 12_000  # more than the queue holds
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "tokens": {i}}}\n' for i in range(1, count + 1)))
    track = tracker(tmp_path, TrackConfig(wandb="offline"), start_step=count)
    track.log(count + 1, 1, {})
    track.close(0)
    assert "going on without it" not in capsys.readouterr().err
    assert fake_steps() == list(range(1, count + 2))


def test_a_start_waits_for_the_rows_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_steps: Callable[[], list[int]]
) -> None:
    config = TrackConfig(wandb="offline")
    with monkeypatch.context() as patch:
        patch.setenv("FAKE_SLOW", "0.04")
        first = tracker(tmp_path, config)
        fill(first, list(range(1, 31)))
        assert first._wandb is not None
        first._wandb._queue.put(None)  # killed, with rows on their way for another second
        while not (tmp_path / "fake" / "steps").exists():
            time.sleep(0.01)
    second = tracker(tmp_path, config, start_step=10, wandb_id=first.wandb_id)
    fill(second, list(range(11, 41)))
    second.close(0)
    assert fake_steps() == list(range(1, 41))


def test_a_mark_belongs_to_a_name(tmp_path: Path) -> None:
    path = tmp_path / "wandb" / "mark.json"
    assert Mark(path, "a").step == -1
    Mark(path, "a").move(7)
    assert (Mark(path, "a").step, Mark(path, "b").step) == (7, -1)
    for damaged in ("", "{", "[]", '{"name": "a"}', '{"name": "a", "step": null}'):
        path.write_text(damaged)
        assert Mark(path, "a").step == -1


def test_closing_without_an_exit_code_is_an_error(tmp_path: Path) -> None:
    track = tracker(tmp_path)
    with pytest.raises(TypeError):
        track.close()  # type: ignore[call-arg]
    track.close(0)


def test_reasons_hide_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short-key")
    assert reason(ValueError("bad short-key\nmore")) == "ValueError: bad ***"
    assert reason(KeyError()) == "KeyError"


def test_numbers_are_short() -> None:
    assert [number_text(v) for v in (0.1, 3.14159, 812, 6543, 12345, 1.2e6, 3e9)] == [
        "0.1", "3.142", "812", "6543", "12.3k", "1.2M", "3G",
    ]  # fmt: skip
