"""The parts of a run put together: the first loss, gradients under accumulation, seeds, lengths."""

import dataclasses
import math

import pytest
import torch

from assemble import Parts, State, build, total_steps
from configs import RunConfig, load
from data import Batch, prepare
from learner import Learner, build_learner, fold_seed, make_model
from tests.conftest import Bench
from trainer.distributed import Place, Ranks
from trainer.precision import Precision

CPU = torch.device("cpu")


def config(bench: Bench, *overrides: str) -> RunConfig:
    return load("configs/tiny.yaml", [f"data.dir={bench.corpora}", f"run.dir={bench.runs}", *overrides])


def parts(bench: Bench, *overrides: str, state: State | None = None) -> Parts:
    wanted = config(bench, *overrides)
    data = prepare(wanted.data, wanted.model.context, progress=False)
    return build(wanted, data, Ranks(Place(), CPU), CPU, state or State())


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("preset", ["qwen3", "llama", "gpt2"])
def test_the_first_loss_is_ln_of_the_vocabulary(bench: Bench, preset: str, tie: bool, eps: float):
    made = parts(
        bench, f"model.preset={preset}", f"model.tie={str(tie).lower()}", f"loss={{base: {{smooth: {{eps: {eps}}}}}}}"
    )
    step = made.loader.step(0)
    with torch.no_grad():
        outs = [made.learner.forward(b, denom=step.targets) for b in step.micro]
    loss = float(sum(out.loss for out in outs))
    assert loss == pytest.approx(math.log(257), rel=1e-6 if not tie else 0.02)


def gradients(learner: Learner, micro: list[Batch], targets: int) -> dict[str, torch.Tensor]:
    for batch in micro:
        learner.backward(learner.forward(batch, denom=targets).loss)
    found = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    learner.optimizers.zero_grad()
    return found


def test_one_two_and_four_micro_batches_give_the_same_gradients(bench: Bench):
    """Also where the masks are uneven: whole stretches of the targets are none."""
    made = parts(bench, "train.micro_rows=32", "loss={base: {smooth: {eps: 0.1}}, add: [z]}")
    torch.manual_seed(0)
    for p in made.learner.model.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.02)  # away from the zeros of the start
    (whole,) = made.loader.step(0).micro
    holes = torch.where(torch.rand(whole.targets.shape) < torch.rand(32, 1), -100, whole.targets)
    whole = dataclasses.replace(whole, targets=holes)
    targets = int((holes != -100).sum())
    reference = gradients(made.learner, [whole], targets)
    for count in (2, 4):
        cut = [
            dataclasses.replace(whole, **{f: getattr(whole, f)[i :: count] for f in
                                ("tokens", "targets", "positions", "weights", "bytes", "source")})
            for i in range(count)
        ]  # fmt: skip
        found = gradients(made.learner, cut, targets)
        assert found.keys() == reference.keys() == dict(made.learner.model.named_parameters()).keys()
        for name, gradient in reference.items():
            assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name
            assert (found[name] - gradient).abs().max() <= 1e-6, name


def test_validation_does_not_depend_on_the_batch(bench: Bench):
    scores = [parts(bench, f"train.micro_rows={rows}").evaluate(last=True)[0] for rows in (32, 5)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_checkpoints_are_compared_on_the_same_rows(bench: Bench):
    made = parts(bench, "eval.max_tokens=1024")
    (some, nll), (every, same) = made.evaluate(last=False), made.evaluate(last=True)
    assert some["val/nll"] == nll == same != every["val/nll"]


def test_a_run_goes_on_where_steps_of_another_size_ended(bench: Bench):
    before = parts(bench).loader
    after = parts(bench, "train.batch_tokens=1024", state=State(step=3, row=96)).loader
    assert [*before.step(3).row_ids, *before.step(4).row_ids] == [
        row for step in range(3, 7) for row in after.step(step).row_ids
    ]
    wanted = config(bench, "train.tokens=8192", "train.batch_tokens=1024", "schedule.warmup=0")
    assert total_steps(wanted, 128, State(step=3, row=96)) == 3 + 2


def test_what_was_decided_holds_only_where_it_is_not_configured(bench: Bench):
    decided = State(auto={"device": "cpu", "precision": "fp32", "micro_rows": 4})
    for state, overrides, precision, rows in (
        (decided, ("train.precision=auto",), "fp32", 4),
        (decided, ("train.precision=bf16", "train.micro_rows=8"), "bf16", 8),
        (State(auto=decided.auto | {"device": "cuda"}), ("train.precision=fp32",), "fp32", 32),
    ):
        auto = parts(bench, *overrides, state=state).learner.auto
        assert (auto["precision"], auto["micro_rows"]) == (precision, rows)


def test_a_prompt_that_cannot_be_spelled_is_refused_before_training(bench: Bench):
    with pytest.raises(ValueError, match="snowman|☃"):
        parts(bench, "data.tokenizer=char", "eval.prompts=['☃']")


def test_models_of_one_seed_are_equal_and_leave_the_generator_alone(bench: Bench):
    shape = config(bench).model
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (make_model(shape, 257, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.embed.weight, same.embed.weight) and not torch.equal(one.embed.weight, other.embed.weight)


def test_seeds_of_neighbors_share_nothing():
    seeds = {fold_seed(s, purpose, step) for s in range(4) for purpose in ("a", "b") for step in range(50)}
    assert len(seeds) == 400 and all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize(
    "length, steps",
    [("train.steps=7", 7), ("train.tokens=2049", 2), ("train.tokens=1M tokens", 489), ("train.epochs=1", 4),
     ("train.epochs=0.5", 2)],
)  # fmt: skip
def test_lengths_of_a_run(bench: Bench, length: str, steps: int):
    """2048 tokens a step are 32 rows of 64."""
    wanted = config(bench, length, "schedule.warmup=0", "schedule.name=constant")
    assert total_steps(wanted, 128, State()) == steps


def test_compiled_blocks_keep_their_names(bench: Bench):
    wanted = config(bench, "train.compile=true")
    learner = build_learner(wanted, 257, Ranks(Place(), CPU), CPU)
    assert not [name for name, _ in learner.model.named_parameters() if "_orig_mod" in name]


def test_fp16_scales_gradients_and_an_overflow_changes_only_the_scale(bench: Bench):
    made = parts(bench)
    learner, (batch,) = made.learner, made.loader.step(0).micro
    torch.manual_seed(0)
    for p in learner.model.parameters():
        p.data.add_(torch.randn_like(p), alpha=0.02)
    exact = torch.nn.utils.get_total_norm(list(gradients(learner, [batch], 2048).values()))
    learner.precision = Precision("fp16", CPU)
    for scale, fits in ((2.0**10, True), (2.0**60, False)):
        learner.precision.load_state({**learner.precision.state(), "scale": scale})
        before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
        learner.backward(learner.forward(batch, denom=2048).loss)
        norm = learner.clip()
        learner.update(0.1, torch.isfinite(norm))
        moved = [name for name, p in learner.model.named_parameters() if not torch.equal(p, before[name])]
        assert bool(moved) == fits
        assert learner.precision.scaler.get_scale() == (scale if fits else scale / 2)
        if fits:
            torch.testing.assert_close(norm, exact, rtol=1e-2, atol=0)
