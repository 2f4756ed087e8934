"""Steps that would do harm, injected into whole runs: poisoned and shuffled batches, and a stop in an evaluation."""

import errno
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Container

import pytest
import torch

import durable
import train
from assemble import Parts
from learner import Learner
from scripts.faults.guarded import check_finite
from scripts.faults.harm import poison, shuffle, spoil_weight, spoiled
from tests.conftest import Bench, exact, read_lines
from trainer.checkpoint import Saver
from trainer.guard import LIMIT, WINDOW

SHORT = ("train.steps=24", "eval.every=8", "save.every=8", "track.every=4", "eval.max_tokens=2048",
         "eval.sample_tokens=0", "save.keep=9")  # fmt: skip


def start(bench: Bench, name: str, *overrides: str) -> int:
    return train.main(bench.arguments(name, *SHORT, *overrides)[1:])


def ask_to_stop() -> None:
    """SIGTERM to this process, which another thread takes; returns when the run knows of it."""
    stop = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
    os.kill(os.getpid(), signal.SIGTERM)
    while not stop:
        time.sleep(0.01)


def events(bench: Bench, name: str, kind: str) -> list[dict]:
    return [e for e in read_lines(bench.runs / name / "events.jsonl") if e["event"] == kind]


def spoil(monkeypatch: pytest.MonkeyPatch, calls: Container[int], how: Callable) -> list[dict[str, torch.Tensor]]:
    """Change what some forward passes of training see or give; returns the weights before each of them."""
    forward, before = spoiled(calls, how)
    monkeypatch.setattr(Learner, "forward", forward)
    return before


def test_a_poisoned_micro_batch_changes_nothing_and_is_told(bench: Bench, monkeypatch, capsys):
    """One micro-batch of two: the whole step is left out, bit for bit, and its rows are written down."""
    before = spoil(monkeypatch, {13}, poison)  # the second micro-batch of step 7
    weights: list[dict[str, torch.Tensor]] = []
    real = Learner.update

    def update(self, factor, good, momentum):
        real(self, factor, good, momentum)
        weights.append({name: p.detach().clone() for name, p in self.model.named_parameters()})

    monkeypatch.setattr(Learner, "update", update)
    assert start(bench, "poisoned", "train.micro_rows=16", "train.precision=fp32") == 0
    assert all(torch.equal(before[0][name], weights[6][name]) for name in before[0])
    assert not all(torch.equal(weights[6][name], weights[7][name]) for name in before[0])
    (skip,) = events(bench, "poisoned", "skip")
    assert (skip["step"], skip["reason"]) == (7, "not finite") and len(set(skip["rows"])) == 32
    assert "step 7 skipped" in capsys.readouterr().err
    rows = bench.rows("poisoned")
    assert [row["train/skipped"] for row in rows if "train/skipped" in row] == [0, 1, 1, 1, 1, 1]
    assert all(math.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)
    check_finite(bench, "poisoned")


def test_a_loss_spike_is_skipped(bench: Bench, monkeypatch):
    """Shuffled labels after the window is full: without them the run would be the same but for that step."""
    at = WINDOW + 7
    before = spoil(monkeypatch, {at}, shuffle)
    steps = ("train.steps=140", "train.batch_tokens=1024", "train.micro_rows=16", "eval.every=70", "save.every=70")
    assert start(bench, "spike", *steps) == 0
    (skip,) = events(bench, "spike", "skip")
    assert (skip["step"], skip["reason"]) == (at + 1, "spike") and len(before) == 1
    monkeypatch.undo()
    assert start(bench, "no-spike", *steps) == 0
    with_spike, clean = (bench.rows(name)[-1] for name in ("spike", "no-spike"))
    assert with_spike["train/skipped"] == 1 and clean["train/skipped"] == 0
    assert with_spike["val/nll"] == pytest.approx(clean["val/nll"], abs=0.02)


def test_after_ten_in_a_row_it_goes_back_leaves_the_rows_out_and_halves_the_rate(bench: Bench, monkeypatch, capsys):
    spoil(monkeypatch, range(11, 11 + LIMIT), poison)
    real, factors = Learner.update, list[float]()

    def update(self, factor, good, momentum):
        factors.append(factor)
        real(self, factor, good, momentum)

    monkeypatch.setattr(Learner, "update", update)
    assert start(bench, "back", "schedule={name: constant, warmup: 0}", "track.every=1") == 0
    assert factors == [1.0] * 21 + [0.5] * 16
    (back,) = events(bench, "back", "rollback")
    assert (back["step"], back["to"], back["rate"]) == (21, 8, 0.5)  # not 16, where skipping had begun
    assert "goes back from step 21 to 8" in capsys.readouterr().err
    assert not list((bench.runs / "back" / "checkpoints").glob("*.damaged")), "one was saved while steps were skipped"
    state = durable.verify(durable.find_checkpoint(bench.runs / "back"))
    assert (state["rate"], state["rollbacks"], state["step"]) == (0.5, 1, 24)
    assert state["skipped_rows"] == [[8 * 32, 21 * 32]] and state["row"] == (24 + 13) * 32
    rows = bench.rows("back")
    assert [row["step"] for row in rows] == list(range(1, 25)), "no step is there twice"
    assert {row["train/lr"] for row in rows[:8]} == {0.02} and {row["train/lr"] for row in rows[8:]} == {0.01}
    assert rows[-1]["train/skipped"] == LIMIT
    check_finite(bench, "back")
    assert start(bench, "back", "schedule={name: constant, warmup: 0}", "track.every=1") == 0  # finished: says so


def test_a_run_that_went_back_near_its_end_is_as_long_as_it_was(bench: Bench, monkeypatch):
    """Its length is told in tokens; the rows that it left out are not counted as trained on."""
    spoil(monkeypatch, range(13, 13 + LIMIT), poison)
    assert start(bench, "near-end", "train.steps=null", f"train.tokens={24 * 2048}") == 0
    (back,) = events(bench, "near-end", "rollback")
    assert (back["step"], back["to"]) == (23, 8)
    assert durable.step_of(durable.find_checkpoint(bench.runs / "near-end")) == bench.rows("near-end")[-1]["step"] == 24


def test_killed_after_going_back_it_goes_back_again_and_is_the_same_run(bench: Bench, monkeypatch):
    """What it needs for that is a function of rows: here those that would be poisoned are bad wherever they come."""
    bad: set[int] = set()
    seen: list[int] = []
    real = Learner.forward

    def forward(self, batch, **options):
        digest = int(batch.tokens.sum())
        seen.append(digest)
        return poison(lambda b: real(self, b, **options), batch) if digest in bad else real(self, batch, **options)

    monkeypatch.setattr(Learner, "forward", forward)
    assert start(bench, "recorded", "train.steps=22") == 0
    bad.update(seen[9 : 9 + LIMIT])
    assert start(bench, "unkilled") == 0
    killed_at = 12
    tick = Parts.rate

    def rate(self, step):
        if step == killed_at and state["rolled"]:
            raise KeyboardInterrupt
        return tick(self, step)

    state = {"rolled": False}
    roll_back = train.roll_back

    def rolled(*args):
        state["rolled"] = True
        return roll_back(*args)

    monkeypatch.setattr(train, "roll_back", rolled)
    monkeypatch.setattr(Parts, "rate", rate)
    assert start(bench, "killed-back") == 130
    assert durable.step_of(durable.find_checkpoint(bench.runs / "killed-back")) == 8
    state["rolled"], killed_at = False, -1
    assert start(bench, "killed-back") == 0
    assert exact(bench.rows("killed-back")) == exact(bench.rows("unkilled"))
    assert len(events(bench, "unkilled", "rollback")) == 1 and len(events(bench, "killed-back", "rollback")) == 2


def test_the_fourth_time_it_has_diverged(bench: Bench, monkeypatch, capsys):
    spoil(monkeypatch, range(9, 1000), poison)
    assert start(bench, "lost") == 4
    assert bench.status("lost")["state"] == "diverged" and bench.status("lost")["exit"] == 4
    assert [event["rate"] for event in events(bench, "lost", "rollback")] == [0.5, 0.25, 0.125]
    assert "diverged" in capsys.readouterr().out
    check_finite(bench, "lost")


def test_weights_that_are_not_finite_are_never_saved(bench: Bench, monkeypatch):
    """A weight goes bad without a sign in loss or gradient, just before a save: the run goes back instead."""
    real, spoiled = Parts.save, list[int]()

    def save(self, keeper, state, nll, **options):
        if state.step == 16 and not spoiled:
            spoiled.append(state.step)
            spoil_weight(self.learner.model)
        return real(self, keeper, state, nll, **options)

    monkeypatch.setattr(Parts, "save", save)
    assert start(bench, "silent") == 0
    (back,) = events(bench, "silent", "rollback")
    assert (back["step"], back["to"]) == (16, 8)
    assert [durable.step_of(p) for p in durable.list_checkpoints(bench.runs / "silent")] == [8, 16, 24]
    check_finite(bench, "silent")


@pytest.mark.parametrize("at", [8, 24], ids=["halfway", "at-the-end"])
def test_a_stop_inside_an_evaluation_loses_nothing(bench: Bench, monkeypatch, at: int):
    """The evaluation is cut off, the step saved, and the next start does the evaluation first."""
    several = "train.micro_rows=4"  # an evaluation takes several batches
    monkeypatch.setattr("learner.SCORED_TOKENS", 1)
    assert start(bench, f"uncut-{at}", several) == 0
    real, update = Learner.score, Learner.update
    steps, scored = list[float](), list[int]()

    def score(self, batch, **options):
        scored.append(len(steps))
        if len(steps) == at:
            ask_to_stop()
        return real(self, batch, **options)

    def counted(self, factor, good, momentum):
        steps.append(factor)
        update(self, factor, good, momentum)

    monkeypatch.setattr(Learner, "score", score)
    monkeypatch.setattr(Learner, "update", counted)
    assert start(bench, f"cut-{at}", several) == 75
    assert scored.count(at) == 1, "the batches after the signal were not scored"
    state = durable.verify(durable.find_checkpoint(bench.runs / f"cut-{at}"))
    assert state["owed"] and state["step"] == at and all(row["step"] < at for row in bench.rows(f"cut-{at}"))
    monkeypatch.undo()
    assert start(bench, f"cut-{at}", several) == 0
    assert exact(bench.rows(f"cut-{at}")) == exact(bench.rows(f"uncut-{at}"))


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_stop_at_a_step_whose_save_fails_is_no_clean_stop(bench: Bench, monkeypatch, capsys, background: str):
    """Asked to stop after the evaluation of a step that is saved anyway: nothing will try again."""
    real, opened = Saver._open, list[str]()

    def full(self, tmp, nbytes):
        opened.append(tmp.name)
        if len(opened) == 2:
            raise OSError(errno.EIO, "Input/output error", str(tmp))
        real(self, tmp, nbytes)

    def samples(self):
        if opened:
            ask_to_stop()
        return []

    monkeypatch.setattr(Saver, "_open", full)
    monkeypatch.setattr(Parts, "samples", samples)
    assert start(bench, f"stop-{background}", f"save.background={background}") == 1
    assert bench.status(f"stop-{background}")["step"] == 8 and opened[1] == "step_00000016.tmp"
    assert "step 16 was not saved" in capsys.readouterr().err


def test_a_run_directory_that_vanishes_ends_the_run_with_one_line(bench: Bench, monkeypatch, capsys):
    """Three saves in a row find no place; there is no place for status.json either, and no traceback."""
    real, steps = Learner.update, list[float]()

    def update(self, factor, good, momentum):
        real(self, factor, good, momentum)
        steps.append(factor)
        if len(steps) == 3:
            shutil.rmtree(bench.runs / "vanished")

    monkeypatch.setattr(Learner, "update", update)
    assert start(bench, "vanished", "save.every=4") == 1
    told = capsys.readouterr().err
    assert "3 saves in a row failed" in told and "vanished" in told and "Traceback" not in told
    assert len(steps) == 12 and not (bench.runs / "vanished").exists()


def test_a_run_whose_checkpoints_are_gone_is_never_begun_anew(bench: Bench, capsys):
    assert start(bench, "bare", "train.steps=16", "schedule.decay=8") == 0
    rows = bench.rows("bare")
    shutil.rmtree(bench.runs / "bare" / "checkpoints")
    capsys.readouterr()
    assert start(bench, "bare", "train.steps=16", "schedule.decay=8") == 3
    assert "its checkpoints, the last of step 16, are gone" in capsys.readouterr().err
    assert bench.rows("bare") == rows and bench.status("bare")["state"] == "damaged"
