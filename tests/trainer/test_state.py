"""The small stateful parts of a run: guard, window, checkpoints, signals, memory."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer import memory, rundir
from trainer.precision import Precision, resolve
from trainer.signals import Stopped, StopRequest
from trainer.window import Window

CPU = torch.device("cpu")
alone = lambda t: t  # noqa: E731


def test_window_sums_applied_steps_and_goes_on_from_a_checkpoint():
    true, values = torch.tensor(True), [0.1, 0.2, 0.3, 0.7]

    def steps(window, some):
        for v in some:
            window.add({"nll": torch.tensor(v, dtype=torch.float64)})
            window.add({"nll": torch.tensor(1.0, dtype=torch.float64)})
            window.close_step(true, torch.tensor(2.0))

    whole = Window(CPU)
    steps(whole, values)
    first = Window(CPU)
    steps(first, values[:2])
    resumed = Window(CPU, json.loads(json.dumps(first.state(alone))))
    steps(resumed, values[2:])
    assert whole.state(alone) == resumed.state(alone)
    assert whole.read(alone) == pytest.approx({"nll": 5.3, "grad_norm": 8.0, "steps": 4.0})
    assert whole.read(alone) == {}


def test_window_leaves_a_skipped_step_out():
    window = Window(CPU)
    for value, finite in ((1.0, True), (math.nan, False), (2.0, True)):
        window.add({"nll": torch.tensor(value)})
        window.close_step(torch.tensor(finite), torch.tensor(value))
    assert window.read(alone) == {"nll": 3.0, "grad_norm": 3.0, "steps": 2.0}


def test_a_signal_asks_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop, stop.polling():
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the launcher passes the same request on: no second one
        until = time.monotonic() + 30
        while not stop and time.monotonic() < until:  # another thread takes them
            time.sleep(0.01)
        assert stop
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_started_while_signals_wait_outlives_them():
    """A compiler, which Ctrl-C reaches as well as the run."""
    command = [sys.executable, "-c", "import time; print('there', flush=True); time.sleep(60)"]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ZeroDivisionError), StopRequest() as stop, stop.polling():
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"there\n"
            for number in stop.signals:
                child.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5)
            child.kill()
        raise ZeroDivisionError
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_where_nobody_polls_a_signal_ends_what_is_going_on():
    with StopRequest() as stop:
        with pytest.raises(Stopped, match="stopped by SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop


def test_a_later_second_signal_ends_at_once_after_last_words(tmp_path, monkeypatch):
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("trainer.signals._SAME_REQUEST", 0.0)
        with StopRequest(last_words=lambda: (tmp_path / "words").write_text("bye")) as stop, stop.polling():
            os.kill(os.getpid(), signal.SIGTERM)
            end = time.monotonic() + 30
            while time.monotonic() < end:  # two signals that are read together are one request
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert (tmp_path / "words").read_text() == "bye"


def test_a_run_directory_is_held_by_one_process(tmp_path):
    with (
        rundir.hold(tmp_path / "run", restart=False),
        pytest.raises(ValueError, match="in use by process"),
        rundir.hold(tmp_path / "run", restart=True),
    ):
        pass


def test_restart_moves_the_old_directory_aside(tmp_path):
    for content in ("first", "second"):
        with rundir.hold(tmp_path / "run", restart=True):
            (tmp_path / "run" / "file").write_text(content)
    with rundir.hold(tmp_path / "run", restart=True):
        assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.lock"]
    assert (tmp_path / "run.old1" / "file").read_text() == "first"
    assert (tmp_path / "run.old2" / "file").read_text() == "second"


def test_a_path_under_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match="cannot write the run to .*: Not a directory"),
        rundir.hold(tmp_path / "file" / "run", restart=False),
    ):
        pass


def test_environment_records_versions_but_no_variables(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-key-123")
    found = rundir.environment("cpu", 2, {"corpus": {"stdlib": "3.11"}})
    assert found["packages"]["torch"] and found["corpus"] == {"stdlib": "3.11"}
    assert "secret-key-123" not in json.dumps(found)


@given(st.integers(1, 500), st.integers(0, 10**6), st.integers(1, 10**5))
def test_micro_batches_fit_and_waste_little(rows, budget, per_row):
    micro = memory.largest_micro_rows(rows, lambda count: count * per_row <= budget)
    assert 1 <= micro <= rows
    assert micro == 1 or micro * per_row <= budget
    fit = max(1, min(rows, budget // per_row))
    padded = -rows % micro
    assert padded == 0 or padded < -(-rows // micro)
    assert 2 * micro >= fit


def test_micro_batches_worked_out_by_hand():
    sizes = [memory.largest_micro_rows(rows, fit.__ge__) for rows, fit in ((32, 7), (32, 40), (31, 10), (6, 5))]
    assert sizes == [4, 32, 8, 3]


def test_memory_of_a_shape_worked_out_by_hand():
    parts = memory.estimate(1000, 600, tokens=20, layers=3, dim=4)
    assert parts["weights"] == parts["gradients"] == 4000
    assert parts["optimizer"] == 400 * 8 + 600 * 4
    assert memory.logits(20, 50) == 20 * 50 * memory._PER_ID and parts["activations"] == 20 * 12 * memory._PER_WIDTH


def test_precision_scales_only_fp16_and_only_its_gradients():
    assert resolve("fp32", CPU) == "fp32" and resolve("auto", torch.device("mps")) == "fp32"
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        precision = Precision(name, CPU)
        linear = torch.nn.Linear(2, 2)
        with precision.autocast():
            assert linear(torch.ones(1, 2)).dtype == dtype
        assert precision.scaler.is_enabled() == (name == "fp16")
    saved = precision.state()
    saved["scale"] = 128.0
    other = Precision("fp16", CPU)
    other.load_state(json.loads(json.dumps(saved)))
    assert other.scaler.get_scale() == 128.0
