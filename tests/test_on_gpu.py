"""What a CPU cannot show, on a GPU: `make gpu`.

Each test has its reference on the CPU, in eager mode or in fp32.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from assemble import set_up_process
from configs import RunConfig, load
from data import Batch
from learner import Learner, build_learner
from loss import Head, build_objective
from model import generate
from scripts.benches.train_ours import Step, batch
from scripts.faults.runs import SHORT
from sizing import OutOfMemory
from tests.conftest import ROOT, Bench, exact
from trainer.distributed import Place, Ranks

pytestmark = pytest.mark.gpu

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
B, T, V = 8, 256, 512
SHAPE = ("model.layers=2", "model.dim=128", "model.heads=4", "model.kv_heads=2", f"model.context={T}", 
         "train.steps=1000", f"train.batch_tokens={B * T}", "schedule.warmup=0", "train.spike_sigma=null",
         "train.precision=auto", "train.compile=auto",
         "optim.rates.embed=0.02", "optim.rates.matrix=0.01", "optim.rates.vector=0.002")  # fmt: skip
EXACT = ("train.precision=fp32", "run.deterministic=true", "train.compile=false")
GPT2 = ("model.preset=gpt2", "model.kv_heads=null")
SMOOTH = "loss={base: {smooth: {eps: 0.1}}}"
STEPS = 12


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """What a run sets for its whole process is set back."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.compiler.reset()


def configured(*overrides: str) -> RunConfig:
    return load("configs/tiny.yaml", [*SHAPE, *overrides])


def learner_on(device: torch.device, *overrides: str, vocab_size: int = V) -> Learner:
    config = configured(f"run.device={device.type}", *overrides)
    set_up_process(config, Place(), device)
    return build_learner(config, vocab_size, Ranks(Place(), device), device)


def rows(seed: int = 0, length: int | None = 100, count: int = B, vocab_size: int = V) -> Batch:
    """Rows whose next token can be learned: each is the one before it plus one, in documents of `length` tokens."""
    start = torch.randint(0, vocab_size, (count, 1), generator=torch.Generator().manual_seed(seed))
    tokens = (start + torch.arange(T + 1)) % vocab_size
    return batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), length)


def losses(learner: Learner, steps: int = STEPS, length: int | None = 100) -> list[float]:
    step = Step(learner)
    return [float(step([rows(seed, length)._each(Tensor.pin_memory)], B * T)) for seed in range(steps)]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float().cpu() - theirs.float().cpu()).norm() / theirs.float().cpu().norm())


@pytest.mark.parametrize("overrides", [(), (*GPT2, "optim.name=adamw"), ("model.dropout=0.1",)])
def test_fp32_learns_as_on_a_cpu(overrides: tuple[str, ...]):
    on_gpu = losses(learner_on(GPU, *EXACT, *overrides))
    if "model.dropout=0.1" in overrides:  # whose random numbers are others there
        assert on_gpu[-1] < on_gpu[0] - 0.5
    else:
        assert on_gpu == pytest.approx(losses(learner_on(CPU, *EXACT, *overrides)), rel=2e-3)
        assert on_gpu[-1] < on_gpu[0] - 0.5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_every_precision_learns_alike(precision: str, compiled: str):
    wanted = losses(learner_on(CPU, *EXACT))
    learner = learner_on(GPU, f"train.precision={precision}", f"train.compile={compiled}")
    assert learner.compiled is (compiled == "true") and learner.model.tiles is learner.compiled
    assert losses(learner) == pytest.approx(wanted, abs=0.1)


def test_auto_is_bf16_compiled_with_flex_attention():
    learner = learner_on(GPU)
    auto = {"device": "cuda", "precision": "bf16", "compile": True, "attention": "flex", "micro_rows": B}
    assert learner.auto == auto


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", ["true", "false"], ids=["tiles", "dense mask"])
def test_documents_are_kept_apart_as_on_a_cpu(precision: str, compiled: str):
    """Loss and every gradient, by tiles and by a dense mask, of documents of which a tile holds several."""

    def result(device: torch.device, *overrides: str) -> dict[str, Tensor]:
        learner = learner_on(device, *overrides)
        assert learner.model.tiles is (compiled == "true" and device == GPU)
        generator = torch.Generator().manual_seed(0)  # outputs of blocks begin at zero, and then nothing is attended to
        for weight in learner.model.parameters():
            weight.data += (0.05 * torch.randn(weight.shape, generator=generator)).to(device)
        out = learner.forward(rows(length=37).to(device))
        out.loss.backward()
        grads = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
        return {"loss": out.loss.detach(), **grads}

    found, wanted = result(GPU, f"train.precision={precision}", f"train.compile={compiled}"), result(CPU, *EXACT)
    errors = {name: relative(found[name], wanted[name]) for name in wanted}
    assert len(errors) > 20
    assert max(errors.values()) < (0.01 if precision == "fp32" else 0.06), errors


def test_the_compiler_is_asked_once():
    """No step after the first ones compiles anew, whatever its documents and with an evaluation in between."""
    learner = learner_on(GPU, "train.compile=true")
    step = Step(learner)
    for length in (100, None):
        step([rows(0, length)], B * T)
        learner.score(rows(0, length).to(GPU))
    torch._dynamo.config.error_on_recompile = True
    try:
        for seed, length in enumerate((50, None, 7, 255)):
            step([rows(seed, length)], B * T)
            learner.score(rows(seed, length).to(GPU))
    finally:
        torch._dynamo.config.error_on_recompile = False


@pytest.mark.parametrize(
    "overrides",
    [(), ("train.compile=false",), ("train.precision=fp16",), (SMOOTH,),
     (*GPT2, "optim.name=adamw", "model.dropout=0.1", "loss.fused=off")],
    ids=str,
)  # fmt: skip
def test_no_step_waits_for_the_device(overrides: tuple[str, ...]):
    """torch itself refuses whatever would: `tests/test_no_waiting.py` sees operators, this sees kernels too."""
    learner = learner_on(GPU, *overrides)
    step, feed = Step(learner), [rows(seed)._each(Tensor.pin_memory) for seed in range(STEPS)]
    for data in feed[:3]:
        step([data], B * T)
    torch.cuda.set_sync_debug_mode("error")
    for data in feed[3:8]:  # the tenth step writes a row of metrics
        step([data], B * T)


def test_a_step_that_is_not_finite_moves_nothing():
    learner = learner_on(GPU)
    step = Step(learner)
    step([rows(0)], B * T)
    before = {name: value.clone() for name, value in (learner.weights() | learner.optimizers.state()).items()}
    learner.backward(learner.forward(rows(1).to(GPU)).loss * float("nan"))
    learner.update(1.0, torch.isfinite(learner.clip()))
    for name, value in (learner.weights() | learner.optimizers.state()).items():
        assert torch.equal(value, before[name]), name


def test_rows_are_halved_until_they_fit():
    learner = learner_on(GPU, "loss.fused=off", "train.batch_tokens=65536", vocab_size=8192)
    assert learner.micro_rows == 65536 // T
    del learner
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(3e9 / total)
    learner = learner_on(GPU, "loss.fused=off", "train.batch_tokens=65536", vocab_size=8192)
    assert 1 <= learner.micro_rows < 65536 // T
    Step(learner)([rows(seed, count=learner.micro_rows, vocab_size=8192) for seed in range(2)], B * T)
    del learner
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e7 / total)
    with pytest.raises((OutOfMemory, torch.OutOfMemoryError)):
        learner_on(GPU, "loss.fused=off", "train.batch_tokens=65536", vocab_size=8192)


def test_the_fused_head_takes_less_memory_for_the_same_loss():
    taken, found = [], []
    for fused in ("on", "off"):
        learner = learner_on(GPU, "train.compile=false", f"loss.fused={fused}", SMOOTH, vocab_size=32768)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = learner.forward(rows(vocab_size=32768).to(GPU))
        out.loss.backward()
        taken.append(torch.cuda.max_memory_allocated() - before)
        found.append([out.loss, learner.model.embed.weight.grad])
        del learner, out
    assert taken[0] < taken[1] / 1.5
    for ours, theirs in zip(*found, strict=True):
        assert relative(ours, theirs) < 0.01


def test_liger_agrees():
    pytest.importorskip("liger_kernel")
    hidden = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(1000, 64, generator=torch.Generator().manual_seed(1)) / 8
    targets = torch.arange(300).masked_fill(torch.arange(300) % 7 == 0, -100)[None]
    found = []
    for device in (GPU, CPU):
        objective = build_objective(
            configured("loss=ce").loss, vocab_size=1000, counts=lambda: torch.ones(1000), sources=()
        )
        h, w = (x.to(device).requires_grad_() for x in (hidden, weight))
        out = objective(h[None], Head(w), targets.to(device), None, extra={})
        out.loss.backward()
        found.append([out.loss, h.grad, w.grad])
    for ours, theirs in zip(*found, strict=True):
        assert relative(ours, theirs) < 2e-3


def test_float8_learns_as_bf16():
    low = losses(learner_on(GPU, "train.fp8=true"))
    assert low == pytest.approx(losses(learner_on(GPU)), abs=0.15) and low[-1] < low[0] - 0.5


def test_recomputed_blocks_learn_the_same():
    kept, made = (losses(learner_on(GPU, f"train.activation_checkpointing={on}")) for on in ("false", "true"))
    assert made == pytest.approx(kept, abs=0.02)


@pytest.mark.parametrize("preset", ["qwen3", "gpt2"])
def test_text_is_that_of_a_cpu(preset: str):
    """Greedy, in fp32, from a model that has learned something."""
    learner = learner_on(GPU, *EXACT, f"model.preset={preset}", "model.kv_heads=null")
    losses(learner)
    prompts = [[5], [100, 101, 102]]
    wanted = [generate(learner.model.to(CPU), prompts, max_new_tokens=40, temperature=0.0)]
    assert [generate(learner.model.to(GPU), prompts, max_new_tokens=40, temperature=0.0)] == wanted


def test_a_run_repeats_and_goes_on_bit_for_bit(bench: Bench):
    exact_run = (*SHORT, "run.device=cuda", "run.deterministic=true")
    for name in ("one", "other"):
        bench.train(name, *exact_run)
    bench.check_same("one", "other")
    assert bench.kill_at("cut", 10, signal.SIGTERM, *exact_run) != 0
    bench.train("cut", *exact_run)
    bench.check_same("one", "cut")


def test_a_usual_run_goes_on(bench: Bench):
    """Compiled, in bf16, without determinism: the metrics are near those of a run that nothing happened to."""
    usual = (*SHORT, "run.device=cuda", "train.precision=auto", "train.compile=auto")
    bench.train("whole", *usual)
    assert bench.kill_at("hit", 10, signal.SIGTERM, *usual) != 0
    bench.train("hit", *usual)
    whole, hit = (exact(bench.rows(name)) for name in ("whole", "hit"))
    assert [row["step"] for row in whole] == [row["step"] for row in hit]
    assert hit[-1]["val/nll"] == pytest.approx(whole[-1]["val/nll"], abs=0.02)


def test_the_doctor_finds_it_well():
    done = subprocess.run([sys.executable, "-m", "scripts.doctor"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FlexAttention agrees with a dense mask" in done.stdout
