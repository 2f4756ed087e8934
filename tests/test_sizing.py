"""How much memory a step takes, how many rows go through the model at once, and what is said when it is too much."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs import RunConfig, entry, load
from learner import Learner, build_learner, make_model, rows_per_step
from scripts.benches.memory import MIB, ask, child, main
from scripts.plan_memory import go_through, memory_explained, step_memory
from sizing import OutOfMemory, first_that_fits, fitting_rows, is_out_of_memory, random_batch, settle
from trainer.distributed import Place, Ranks
from trainer.ledger import Ledger
from trainer.memory import Gauge

CPU = torch.device("cpu")
ALONE = Ranks(Place(), CPU)
TINY = ("model.layers=2", "model.dim=32", "model.heads=2", "model.context=16", "train.batch_tokens=128")


def config_of(*overrides: str) -> RunConfig:
    return load("configs/tiny.yaml", (*TINY, *overrides))


def real_step_memory(config: RunConfig, vocab_size: int, rows: int, micro_batches: int) -> dict[str, int]:
    """What the same step takes of tensors with contents."""
    with Ledger("weights") as ledger:
        learner = build_learner(config, vocab_size, ALONE, CPU)
        ledger.parts = {}  # building proves the loss, on tensors of its own
        batch = random_batch(rows, config.model.context, vocab_size, CPU)
        go_through(learner, batch, micro_batches, ledger)
    return ledger.parts


@pytest.mark.parametrize("micro_batches, overrides", [
    (1, ()),
    (2, ("loss.fused=off", "train.precision=bf16", "optim.name=adamw")),
    (1, ("train.activation_checkpointing=true", "model.dropout=0.1")),
    (2, ("model.preset=gpt2", "loss={base: {smooth: {eps: 0.1}}, add: [z]}")),
    (1, ("model.preset=llama", "model.kv_heads=1", "model.tie=false", "loss.chunk=32", "train.precision=bf16")),
])  # fmt: skip
def test_the_estimate_is_what_the_tensors_of_a_real_step_take(micro_batches: int, overrides: tuple[str, ...]):
    """But for the logits of targets that are among the best: the estimate takes all to be."""
    config = config_of(*overrides)
    found, real = step_memory(config, 301, 4, micro_batches, CPU), real_step_memory(config, 301, 4, micro_batches)
    chunk = 32 if "loss.chunk=32" in overrides else 4 * 16
    assert sum(real.values()) <= sum(found.values()) <= sum(real.values()) + chunk * (4 * 301 + 32)


def test_sizing_a_step_leaves_no_trace():
    config = load("configs/gpt_124m.yaml", ("run.device=cpu",))
    before = torch.get_rng_state()
    parts = step_memory(config, 50257, 1, 1, CPU)
    assert parts["weights"] > 4 * 124e6 and parts["optimizer"] > 8 * 124e6
    assert torch.equal(before, torch.get_rng_state()) and type(torch.zeros(1)) is Tensor


def test_the_teacher_counts(tmp_path: Path):
    from model import save_model

    save_model(make_model(config_of("model.dim=64").model, 301, 0), tmp_path)
    alone = step_memory(config_of(), 301, 4, 1, CPU)
    distilled = config_of("loss={base: kl, teacher: " + str(tmp_path) + "}")
    parts = step_memory(distilled, 301, 4, 1, CPU)
    assert parts["weights"] - alone["weights"] >= 4 * (301 * 64 + 2 * 12 * 64 * 64 // 2)
    assert parts["loss"] > alone["loss"] + 4 * 16 * 301 * 4


@pytest.mark.parametrize("recipe, vocab_size, rows", [("quickstart", 4096, 8), ("tiny", 257, 32)])
def test_the_recipes_whose_numbers_are_published_take_all_rows_at_once(recipe: str, vocab_size: int, rows: int):
    config = load(f"configs/{recipe}.yaml", ())
    model = make_model(config.model, vocab_size, 0)
    assert rows_per_step(config) == rows == fitting_rows(config, model, vocab_size, rows, CPU)


def test_more_rows_fit_where_activations_are_computed_again_or_the_state_is_shared(monkeypatch):
    config, again = (
        load("configs/quickstart.yaml", ("train.batch_tokens=262144", *more))
        for more in ((), ("train.activation_checkpointing=true",))
    )
    model = make_model(config.model, 4096, 0)
    plain = fitting_rows(config, model, 4096, 1024, CPU)
    assert fitting_rows(again, model, 4096, 1024, CPU) > plain
    assert fitting_rows(config, model, 4096, 1024, CPU, shards=8) >= plain


def no_memory() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


def test_what_counts_as_out_of_memory():
    assert all(map(is_out_of_memory, (no_memory(), MemoryError(), torch.OutOfMemoryError("x"))))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError("not enough memory"))


class Other(Ranks):
    """One of two ranks; the other one fits `fit` rows."""

    def __init__(self, fit: int):
        super().__init__(Place(), CPU)
        self.fit, self.asked = fit, 0

    def smallest(self, value: int) -> int:
        return min(value, int(self.asked <= self.fit))


@pytest.mark.parametrize("here, there, rows", [(64, 64, 32), (7, 64, 4), (64, 7, 4), (3, 1, 1), (12, 12, 8)])
def test_rows_are_halved_until_no_rank_runs_out_of_memory(here: int, there: int, rows: int):
    ranks, tried = Other(there), []

    def attempt(count: int) -> None:
        ranks.asked = count
        tried.append(count)
        if count > here:
            raise no_memory()

    assert first_that_fits(attempt, ranks, 32, 32) == rows
    assert tried == [n for n in (32, 16, 8, 4, 2, 1) if n >= rows]


def test_a_trial_that_fails_otherwise_is_no_matter_of_memory():
    def attempt(count: int) -> None:
        raise RuntimeError("shapes") if count == 4 else MemoryError()

    with pytest.raises(RuntimeError, match="shapes"):
        first_that_fits(attempt, ALONE, 8, 8)
    with pytest.raises(OutOfMemory, match="train.micro_rows=1"):
        first_that_fits(attempt, ALONE, 2, 8)


def test_a_trial_leaves_the_learner_as_it_was(monkeypatch):
    def steps(learner: Learner) -> list[float]:
        losses = []
        for _ in range(3):
            out = learner.forward(random_batch(8, 16, 301, CPU))
            losses.append(float(out.loss.detach()))
            learner.backward(out.loss)
            learner.update(1.0, torch.isfinite(learner.clip()))
        return losses

    plain, tried = (build_learner(config_of(), 301, ALONE, CPU) for _ in range(2))
    forward, seen = tried.forward, []

    def limited(batch, **options):
        seen.append(len(batch.tokens))
        if len(batch.tokens) > 2:
            raise no_memory()
        return forward(batch, **options)

    monkeypatch.setattr(tried, "forward", limited)
    assert settle(tried, 8) == 2 and seen == [8, 4, 2, 2]
    monkeypatch.undo()
    assert not [p for p in tried.model.parameters() if p.grad is not None]
    assert steps(tried) == steps(plain)


@pytest.mark.parametrize("overrides, knobs", [
    (("train.micro_rows=6",), "train.micro_rows=3 (now 6) or train.activation_checkpointing=true"),
    (("train.micro_rows=1", "loss.fused=off"), "train.activation_checkpointing=true or loss.fused=on"),
    (("train.micro_rows=1", "train.activation_checkpointing=true"), "a smaller model"),
])  # fmt: skip
def test_out_of_memory_tells_the_parts_and_the_knobs_in_one_line(overrides: tuple[str, ...], knobs: str, capsys):
    config = config_of(*overrides)

    @entry
    def run() -> None:
        with memory_explained(config, 301, ALONE):
            raise no_memory()

    assert run() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("out of memory: a step takes about 1 MiB (MiB: weights 0, ") and f"less with {knobs};" in line
    )
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(config, 301, ALONE):
        raise RuntimeError("shapes")


needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux only")


@needs_linux
def test_the_gauge_sees_what_was_taken_since_and_also_what_is_gone():
    held = torch.ones(16 << 20)
    gauge = Gauge(CPU)
    torch.ones(24 << 20)  # 96 MiB
    assert 0.9 * (96 << 20) < gauge.peak() < 1.2 * (96 << 20)
    assert held[0] == 1 and Gauge(torch.device("mps")).peak() is None


@needs_linux
def test_what_a_dry_run_tells_is_near_the_measured_peak():
    assert child("tiny", "tensors") / MIB == pytest.approx(ask("tiny", "needed"), rel=0.15)
    assert ask("tiny", "dry run") == pytest.approx(ask("tiny", "trained"), rel=0.15)


@pytest.mark.soak
@needs_linux
def test_three_shapes_are_near_the_measured_peak(tmp_path: Path):
    """A loaded machine leaves the dry run time for fewer steps, so that it may miss some of what freed memory adds."""
    assert main(["--quick", "--out", str(tmp_path / "found.json")]) == 0
    for row in json.loads((tmp_path / "found.json").read_text()):
        assert row["tensors"] == pytest.approx(row["needed"], rel=0.15), row
        assert row["dry run"] == pytest.approx(row["trained"], rel=0.25), row
