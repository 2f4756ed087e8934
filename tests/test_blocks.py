"""How a run sets up its blocks: what it asks of the machine, what it does without, and how often it compiles."""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

import hardware
import model
from configs import RunConfig, load
from data import Batch
from hardware import set_up_blocks
from learner import build_learner
from model import Transformer, eval_mode
from scripts import doctor
from sizing import random_batch
from trainer.distributed import Place, Ranks
from trainer.precision import Name

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ALONE = Ranks(Place(), CPU)
T, V = 32, 50
SMALL = ("model.dim=32", "model.heads=2", "model.kv_heads=1", f"model.context={T}", f"train.batch_tokens={4 * T}",
         "train.micro_rows=4", "train.precision=fp32", "train.compile=auto")  # fmt: skip


def configured(*overrides: str) -> RunConfig:
    return load("configs/tiny.yaml", [*SMALL, *overrides])


def set_up(*overrides: str, device: torch.device = GPU, precision: Name = "bf16", **decided: object) -> tuple:
    """(compiled, tiles, whether each block is compiled) of a model."""
    config = configured(*overrides)
    made = Transformer(config.model, V)
    compiled = set_up_blocks(config, made, ALONE, device, precision, decided)
    return compiled, made.tiles, [block._compiled_call_impl is not None for block in made.blocks]


def says(reason: str | None) -> functools.partial:
    return functools.partial(lambda reason, *given: reason, reason)


def test_a_gpu_compiles_and_keeps_documents_apart_by_tiles(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(hardware, "compiler_fails", says(None))
    monkeypatch.setattr(hardware, "tiles_fail", says(None))
    assert set_up() == (True, True, [True, True])
    assert set_up("data.pack.document_mask=false") == (True, False, [True, True])
    assert set_up("train.compile=false") == (False, False, [False, False])
    assert set_up(device=CPU) == (False, False, [False, False])
    assert set_up("train.compile=true", device=CPU) == (True, False, [True, True])
    assert capsys.readouterr().err == ""


def test_what_does_not_work_is_left_out_with_one_warning(monkeypatch: pytest.MonkeyPatch, capsys):
    """Here the compiler really fails: there is no GPU."""
    assert set_up() == (False, False, [False, False])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: torch.compile does not work on cuda, blocks run eagerly: ")
    monkeypatch.setattr(hardware, "compiler_fails", says(None))
    assert set_up() == (True, False, [True, True])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: FlexAttention does not work on cuda, a dense mask keeps documents apart: ")


def test_doctor_tells_what_of_it_works(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    (compiler, float8) = doctor.gpu_checks(GPU, torch.bfloat16)  # attention is not tried without a compiler
    assert compiler[:2] == (False, "compile") and compiler[2].startswith("blocks will run eagerly: ")
    assert float8[:2] == (True, "train.fp8") and float8[2].endswith("and A100 has 8.0")
    monkeypatch.setattr(model, "compiler_fails", says(None))
    monkeypatch.setattr(model, "tiles_fail", says(None))
    compiler, attention, _ = doctor.gpu_checks(GPU, torch.bfloat16)
    assert compiler[0] and attention == (True, "attention", "FlexAttention agrees with a dense mask")


@pytest.mark.parametrize("attention", ["flex", "dense"])
def test_what_a_run_has_decided_holds(monkeypatch: pytest.MonkeyPatch, attention: str):
    monkeypatch.setattr(hardware, "tiles_fail", None)  # a trial that takes seconds, and is not made again
    monkeypatch.setattr(hardware, "compiler_fails", says(None))
    assert set_up(compile=True, attention=attention) == (True, attention == "flex", [True, True])
    assert set_up(compile=False) == (False, False, [False, False])
    monkeypatch.setattr(hardware, "compiler_fails", says("no compiler on this machine"))
    assert set_up(compile=True, attention=attention) == (False, False, [False, False])


def test_only_what_auto_decided_is_kept_as_decided():
    """A run that was once told not to compile asks the machine again when it is told `auto`."""
    config = configured("train.compile=false")
    made = build_learner(config, V, ALONE, CPU)
    for compile, kept in ((False, set()), ("auto", {"compile"}), (True, {"attention"})):
        there = replace(made, device=GPU, compiled=compile is True)
        there.config = replace(config, train=replace(config.train, compile=compile))
        assert there.auto.keys() - {"device", "precision", "micro_rows"} == kept


def test_the_reason_of_any_rank_is_told_on_all(monkeypatch: pytest.MonkeyPatch, capsys):
    class OneOfTwo(Ranks):
        def each(self, value):
            return [value, "no Triton there"]

    monkeypatch.setattr(hardware, "compiler_fails", says(None))
    config = configured()
    ranks = OneOfTwo(Place(), CPU)
    assert not set_up_blocks(config, Transformer(config.model, V), ranks, GPU, "bf16", {})
    assert capsys.readouterr().err.endswith("blocks run eagerly: no Triton there\n")
    monkeypatch.setattr(hardware, "float8_fails", says(None))
    config = configured("train.fp8=true", "train.precision=bf16")
    with pytest.raises(ValueError, match="no Triton there"):
        set_up_blocks(config, Transformer(config.model, V), ranks, GPU, "bf16", {})


@pytest.mark.parametrize(
    ("overrides", "precision", "reason", "told"),
    [
        ((), "bf16", "it needs an NVIDIA GPU, and this is cpu", "it needs an NVIDIA GPU, and this is cpu"),
        ((), "fp32", None, "it needs train.precision bf16, not fp32"),
        (("model.context=24", "train.batch_tokens=96"), "bf16", None, "it needs a model.context that 16 divides"),
        (("model.dim=20", "model.hidden=40"), "bf16", None, "no matrix in the blocks has widths that 16 divides"),
    ],
)
def test_float8_that_cannot_be_had_is_refused(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], precision: Name, reason: str | None, told: str
):
    monkeypatch.setattr(hardware, "float8_fails", says(reason))
    with pytest.raises(ValueError) as error:
        set_up("train.fp8=true", *overrides, device=CPU, precision=precision)
    assert str(error.value) == f"train.fp8: {told}"


def test_a_run_in_float8_learns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware, "float8_fails", says(None))
    made = build_learner(configured("train.fp8=true", "train.precision=bf16"), V, ALONE, CPU)
    batch, losses = random_batch(4, T, V, CPU), []
    for _ in range(12):
        out = made.forward(batch, denom=4 * T)
        made.backward(out.loss)
        made.update(0.5, torch.isfinite(made.clip()))
        losses.append(float(out.loss.detach()))
    assert losses[-1] < losses[0] - 0.3


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Counter]]:
    """Of the compiler. Blocks are captured and differentiated as for a GPU, and run by operators they are made of."""
    from torch._dynamo.utils import counters  # the compiler takes its time to import

    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    yield counters
    torch.compiler.reset()


def batches(step: int, rows: int) -> list[Batch]:
    """One with two documents in a row, of other lengths in each step, and one without."""
    batch = random_batch(rows, T, V, CPU)
    cut = torch.cat((torch.arange(3 + step), torch.arange(T - 3 - step))).expand(rows, T)
    object.__setattr__(batch, "positions", cut)
    return [batch, batch.take(0, rows, True)]


def test_a_run_compiles_two_graphs_for_each_size_and_purpose(counters: dict[str, Counter]):
    """All blocks share them, no batch of later steps needs another, and generation needs none."""
    made = build_learner(configured("train.compile=true", "model.layers=2"), V, ALONE, CPU)
    plain = build_learner(configured("model.layers=2"), V, ALONE, CPU)
    for step in range(4):
        for learner in (made, plain):
            for batch in batches(step, 4):
                learner.backward(learner.forward(batch, denom=4 * T).loss)
            learner.update(0.5, torch.isfinite(learner.clip()))
    assert counters["stats"]["unique_graphs"] == 2
    for step in range(2):
        for batch in batches(step, 8):
            with eval_mode(made.model), eval_mode(plain.model):
                ours, theirs = (learner.score(batch).sums["nll"] for learner in (made, plain))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 2 + 2
    texts = [learner.generate([[1, 2], [3]], stop_id=V, max_new_tokens=5, temperature=0) for learner in (made, plain)]
    assert texts[0] == texts[1]
    assert counters["stats"]["unique_graphs"] == 2 + 2 and not counters["graph_break"]


@pytest.mark.soak
@pytest.mark.parametrize(
    "overrides", [(), ("train.activation_checkpointing=true", "model.preset=gpt2", "model.kv_heads=null")]
)
def test_compiled_for_this_machine_it_learns_the_same(overrides: tuple[str, ...]):
    torch.compiler.reset()
    pair = [build_learner(configured(f"train.compile={c}", *overrides), V, ALONE, CPU) for c in ("true", "false")]
    for step in range(4):
        losses = []
        for learner in pair:
            for batch in batches(step, 4):
                out = learner.forward(batch, denom=4 * T)
                learner.backward(out.loss)
            learner.update(0.2, torch.isfinite(learner.clip()))
            losses.append(out.loss.detach())
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
