"""The objective against numbers worked out by hand, torch's own loss, and the properties that make a loss exact.

B rows, T tokens, V vocabulary, D width, N targets.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from loss import Head, LossConfig, build_objective, metrics

CONFIGS = [
    {"base": "ce"},
    {"base": {"smooth": {"eps": 0.1}}},
    {"base": {"smooth": {"eps": 0.0}}},
    {"base": "ce", "add": [{"z": {"coef": 1e-2}}]},
    {"base": {"smooth": {"eps": 0.3}}, "add": ["z", {"z": {"coef": 0.1}}]},
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=str)
# Written out again from the definitions, in terms of all log-probabilities (N, V) and logits (N, V).
FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "ce": lambda lp, logp, x: -lp,
    "smooth": lambda lp, logp, x, eps=0.1: -(((1 - eps) * lp) + (eps / x.shape[-1]) * logp.sum(-1)),
    "z": lambda lp, logp, x, coef=1e-4: coef * x.exp().sum(-1).log() ** 2,
}


def rows(probabilities: list[list[float]]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def value(objective, logits, targets, **options) -> float:
    return float(objective.from_logits(logits, torch.as_tensor(targets), **options).loss)


def written_out(config, logits, targets):
    """Sum over valid targets by the formulas above and plain autograd."""
    keep = targets != -100
    x = logits[keep]
    logp = x - x.exp().sum(-1, keepdim=True).log()
    lp = logp[torch.arange(len(x)), targets[keep]]
    named = [config["base"], *config.get("add", [])]
    pairs = [next(iter(n.items())) if isinstance(n, dict) else (n, {}) for n in named]
    return sum(FORMULAS[name](lp, logp, x, **options).sum() for name, options in pairs)


@pytest.mark.parametrize("p, nats", [(0.99, 0.0100503359), (0.5, 0.6931471806), (0.01, 4.6051701860)])
def test_cross_entropy_goldens(p, nats):
    assert value(build_objective("ce", vocab_size=2), rows([[p, 1 - p]]), [0]) == pytest.approx(nats, abs=1e-10)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5, 0.9])
def test_uniform_prediction_costs_ln_v_whatever_the_smoothing(eps):
    objective = build_objective({"base": {"smooth": {"eps": eps}}}, vocab_size=10_000)
    assert value(objective, torch.zeros(1, 10_000, dtype=torch.float64), [7]) == pytest.approx(9.2103403720, abs=1e-9)


def test_smoothing_and_z_goldens():
    p = rows([[0.7, 0.2, 0.1]])
    smooth = build_objective({"base": {"smooth": {"eps": 0.1}}}, vocab_size=3).from_logits(p, torch.tensor([0]))
    assert float(smooth.loss) == pytest.approx(0.4632974, abs=1e-7)
    assert float(smooth.sums["nll"]) == pytest.approx(0.3566749, abs=1e-7)
    z = build_objective({"base": "ce", "add": [{"z": {"coef": 1e-4}}]}, vocab_size=10_000)
    out = z.from_logits(torch.zeros(1, 10_000, dtype=torch.float64), torch.tensor([0]))
    assert float(out.sums["term/z"]) == pytest.approx(0.0084830370, abs=1e-9)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_equals_torch_cross_entropy(eps):
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 11, dtype=torch.float64, requires_grad=True), torch.randint(0, 11, (50,))
    targets[::7] = -100
    theirs = F.cross_entropy(logits, targets, label_smoothing=eps)
    (gradient,) = torch.autograd.grad(theirs, logits)
    ours = build_objective({"base": {"smooth": {"eps": eps}}}, vocab_size=11).from_logits(logits, targets).loss
    (our_gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-12, atol=1e-15)


@each_config
def test_equals_the_written_out_formula_with_its_gradient(config):
    torch.manual_seed(1)
    logits, targets = torch.randn(40, 9, dtype=torch.float64, requires_grad=True), torch.randint(0, 9, (40,))
    targets[3:9] = -100
    ours = build_objective(config, vocab_size=9).from_logits(logits, targets, denom=1).loss
    theirs = written_out(config, logits, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (ours, theirs)), rtol=1e-12, atol=1e-14)


@each_config
def test_gradcheck_through_the_head(config):
    torch.manual_seed(2)
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.tensor([[1, -100, 6], [0, 2, -100]]), torch.rand(2, 3, dtype=torch.float64)
    objective = build_objective(config, vocab_size=7)
    assert torch.autograd.gradcheck(
        lambda h, w, b: objective(h, Head(w, b, softcap=3.0), targets, weights, denom=5).loss, (hidden, weight, bias)
    )


@each_config
def test_masked_rows_change_nothing_even_as_nan(config):
    torch.manual_seed(3)
    objective = build_objective(config, vocab_size=5)
    hidden, weight, targets = torch.randn(6, 4), torch.randn(5, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, 0])
    poisoned = torch.cat([hidden, torch.full((2, 4), math.nan)]).requires_grad_()
    padded = torch.cat([targets, torch.tensor([-100, -100])])
    clean = objective(hidden, weight, targets)
    dirty = objective(poisoned, weight, padded)
    assert dirty.sums["tokens"] == 6
    for name, total in clean.sums.items():
        torch.testing.assert_close(dirty.sums[name], total, msg=name)
    gradients = torch.autograd.grad(dirty.loss, [poisoned, weight])
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][6:].any()
    torch.testing.assert_close(gradients[1], torch.autograd.grad(clean.loss, weight)[0])


@each_config
def test_all_masked_is_zero_with_zero_gradients(config):
    hidden, weight = torch.randn(2, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    out = build_objective(config, vocab_size=5)(hidden, weight, torch.full((2,), -100))
    out.loss.backward()
    assert out.loss == 0 and out.sums["tokens"] == 0 and out.sums["nll"] == 0
    assert not hidden.grad.any() and not weight.grad.any()


@each_config
def test_four_uneven_micro_batches_equal_one_batch(config):
    torch.manual_seed(4)
    objective = build_objective(config, vocab_size=6)
    hidden, weight = torch.randn(4, 9, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    targets = torch.randint(0, 6, (4, 9))
    targets[0, 1:], targets[2], targets[3, 5:] = -100, -100, -100  # 1, 9, 0 and 5 valid targets
    weight.requires_grad_()
    whole = objective(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(whole.loss, weight)
    parts = [objective(h, weight, t, denom=15) for h, t in zip(hidden, targets, strict=True)]
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss, rtol=1e-13, atol=0)
    summed = torch.autograd.grad(sum(p.loss for p in parts), weight)[0]
    torch.testing.assert_close(summed, gradient, rtol=1e-12, atol=1e-14)
    totals = {name: sum(p.sums[name] for p in parts) for name in whole.sums}
    assert metrics(totals) == pytest.approx(metrics(whole.sums), rel=1e-13)


def test_weights_change_the_loss_and_nothing_else():
    torch.manual_seed(5)
    objective = build_objective({"base": {"smooth": {"eps": 0.1}}, "add": ["z"]}, vocab_size=5)
    logits, targets = torch.randn(6, 5), torch.tensor([0, 1, 2, -100, 4, 0])
    weights = torch.tensor([2.0, 0.0, 1.0, math.nan, 0.5, 1.0])  # the weight of what is not a target is never read
    plain, weighted = objective.from_logits(logits, targets), objective.from_logits(logits, targets, weights)
    for name in ("nll", "tokens", "correct", "term/smooth", "term/z"):
        assert weighted.sums[name] == plain.sums[name]
    each = objective.from_logits(logits, targets, per_token=True).per_token["loss"]
    expected = (each * weights.nan_to_num()).sum() / 5
    torch.testing.assert_close(weighted.loss, expected)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
def test_plain_nll_does_not_depend_on_the_objective(eps):
    torch.manual_seed(6)
    logits, targets = torch.randn(30, 8), torch.randint(0, 8, (30,))
    reported = build_objective({"base": {"smooth": {"eps": eps}}, "add": ["z"]}, vocab_size=8)
    plain = build_objective("ce", vocab_size=8)
    a, b = (metrics(o.from_logits(logits, targets).sums) for o in (reported, plain))
    assert {k: a[k] for k in ("nll", "ppl", "accuracy")} == {k: b[k] for k in ("nll", "ppl", "accuracy")}


@each_config
def test_extreme_logits_stay_exact(config):
    objective = build_objective({"base": "ce"}, vocab_size=3)
    logits = torch.tensor([[200.0, 0.0, 0.0], [1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]])
    out = objective.from_logits(logits, torch.tensor([1, 2, 2]), per_token=True)
    assert out.per_token["nll"].tolist() == [200.0, 20_000.0, 0.0]
    both = build_objective(config, vocab_size=3).from_logits(logits.requires_grad_(), torch.tensor([1, 2, 2])).loss
    both.backward()
    assert both.isfinite() and logits.grad.isfinite().all()


def test_loss_and_sums_are_fp32_or_better_from_bf16_logits():
    torch.manual_seed(7)
    exact = torch.randn(4096, 100, dtype=torch.float64).bfloat16()
    targets = torch.randint(0, 100, (4096,))
    objective = build_objective("ce", vocab_size=100)
    out = objective.from_logits(exact, targets)
    assert out.loss.dtype == torch.float32 and out.sums["nll"].dtype == torch.float64
    truth = objective.from_logits(exact.double(), targets)
    assert float(out.sums["nll"]) == pytest.approx(float(truth.sums["nll"]), rel=1e-6)
    assert truth.loss.dtype == torch.float64


def test_per_token_numbers_sum_to_the_sums():
    torch.manual_seed(8)
    logits, targets = torch.randn(2, 7, 5), torch.randint(0, 5, (2, 7))
    targets[0, :3] = -100
    out = build_objective("ce", vocab_size=5).from_logits(logits, targets, per_token=True, detail=True)
    for name in ("nll", "loss", "correct"):
        assert out.per_token[name].shape == targets.shape
        assert float(out.per_token[name].double().sum()) == pytest.approx(float(out.sums[name]))
    entropy = torch.distributions.Categorical(logits=logits[targets != -100]).entropy().sum()
    assert float(out.sums["entropy"]) == pytest.approx(float(entropy), rel=1e-5)


def test_accuracy_counts_the_first_of_equal_logits():
    out = build_objective("ce", vocab_size=3).from_logits(torch.tensor([[1.0, 1, 0]] * 2), torch.tensor([0, 1]))
    assert metrics(out.sums)["accuracy"] == 0.5


def test_metrics_are_ratios_of_sums():
    """Batches of nll (2, 1) and (90, 9), tokens: the mean is 9.2 and not 6; perplexity exp(9.2) and not a mean."""
    sums = {"nll": 2.0 + 90.0, "tokens": 1 + 9, "correct": 4, "nll_text": 92 * math.log(2), "bytes": 46}
    got = metrics(sums)
    assert got["nll"] == 9.2 and got["accuracy"] == 0.4
    assert got["ppl"] == pytest.approx(9897.129) and got["bpb"] == pytest.approx(2.0)
    assert metrics({"nll": 1000.0, "tokens": 1})["ppl"] == math.inf
    assert math.isnan(metrics({"nll": 0.0, "tokens": 0, "correct": 0})["nll"])
    assert math.isnan(metrics({"nll": 1.0, "tokens": 1, "nll_text": 0.0, "bytes": 0})["bpb"])


@pytest.mark.parametrize(
    "config, told",
    [
        ("crossentropy", "unknown loss term 'crossentropy' — did you mean 'ce'?"),
        ("perplexity", "unknown loss term 'perplexity' (there are: ce, smooth, z, focal"),
        ({"base": "ce", "add": ["position"]}, "'position' is for loss.weights"),
        ({"base": "ce", "add": {"z": {"coef": 1.0}}}, "loss.add: takes a list"),
        ({"base": "ce", "weights": "position"}, "loss.weights: takes a list"),
        ({"base": {"smoth": {}}}, "did you mean 'smooth'?"),
        ({"base": {"smooth": {"epsilon": 0.1}}}, "loss.base.smooth.epsilon: smooth has no option 'epsilon'"),
        ({"base": {"smooth": {"eps": 1}}}, "1 is not below 1"),
        ({"base": {"smooth": {"eps": -0.1}}}, "-0.1 is below 0"),
        ({"base": {"smooth": {"eps": True}}}, "True is not a number"),
        ({"base": {"smooth": {"eps": math.nan}}}, "nan is not a number"),
        ({"base": {"ce": {}, "smooth": {}}}, "takes exactly one loss term, not 2: ce, smooth"),
        ({"base": "ce", "add": [{"z": {"coef": -1}}, {"zz": {}}]}, "loss.add.0.z.coef: -1 is below 0; loss.add.1.zz"),
        ({"base": "ce", "weights": ["positon"]}, "did you mean 'position'?"),
        ({"base": "ce", "logits": [{"softcap": {"cap": 0}}]}, "loss.logits.0.softcap.cap: 0 is not above 0"),
        ({"base": {"smooth": {"exclude_target": 1}}}, "1 is not true or false"),
        ({"base": {"kl": {"top_k": 2.5}}}, "2.5 is not a whole number"),
        ({"base": {"kl": {"top_k": {"linear": [1, 2]}}}}, "{'linear': [1, 2]} is not a whole number"),
        ({"base": {"gce": {"q": {"linear": [0.5, 0]}}}}, "loss.base.gce.q.linear.1: 0 is not above 0"),
        ({"base": {"gce": {"q": {"linear": [0.5]}}}}, "takes two numbers, [from, to]"),
        ({"base": {"gce": {"q": {"linear": [0.5, 1], "over": [0.6, 0.2]}}}}, "0.6 is not before 0.2"),
        ({"base": {"gce": {"q": {"liner": [0.5, 1]}}}}, "did you mean 'linear'?"),
        ({"base": {"transition": {}}}, "transition needs file"),
        ({"base": {"unlikelihood": {"ids": [1, -2]}}}, "loss.base.unlikelihood.ids.1: -2 is below 0"),
        ({"base": {"unlikelihood": {"ids": [1, 3]}}}, "loss.base.unlikelihood.ids: 3 is no id of a vocabulary of 3"),
        ({"base": "ce", "weights": ["frequency"]}, "unigram needs the corpus counts"),
        ({"base": "ce", "weights": [{"sources": {"by": {"web": "much"}}}]}, "by.web: 'much' is not a number"),
        ({"base": "ce", "weights": [{"sources": {"by": {"web": 2}}}]}, "no source 'web'; there are: none"),
        ({"base": "ce", "ahead": [0.5, -1]}, "loss.ahead.1: -1 is below 0"),
        ({"base": {"smooth": {"prior": "unigram"}}}, "needs the corpus counts"),
        ({"base": {"smooth": {"prior": "/nowhere/prior.npy"}}}, "/nowhere/prior.npy cannot be read"),
        ({"base": {"/nowhere/mine.py:f": {}}}, "/nowhere/mine.py cannot be read"),
        ({"bas": "ce"}, "loss: unknown key 'bas' — did you mean 'base'?"),
        ({"base": "ce", "fused": True}, "loss.fused: True is none of auto, on, off"),
        ({"base": "ce", "chunk": 0}, "loss.chunk: 0 is below 1"),
    ],
)
def test_mistakes_in_the_config_are_named(config, told):
    with pytest.raises(ValueError, match="loss") as error:
        build_objective(config, vocab_size=3)
    assert told in str(error.value)


def test_long_and_short_form_are_one():
    torch.manual_seed(9)
    logits, targets = torch.randn(5, 4), torch.randint(0, 4, (5,))
    forms = ["ce", {"base": "ce"}, {"base": {"ce": None}}, LossConfig(), LossConfig(base={"ce": {}})]
    assert len({value(build_objective(form, vocab_size=4), logits, targets) for form in forms}) == 1


@pytest.mark.parametrize(
    "logits, targets, told",
    [
        (torch.zeros(2, 4), torch.tensor([0, 5]), "target 5 at [1]"),
        (torch.zeros(2, 4), torch.tensor([-1, 0]), "target -1 at [0]"),
        (torch.zeros(2, 3), torch.tensor([0, 0]), "logits over 3 ids for a vocabulary of 4"),
        (torch.zeros(2, 4), torch.tensor([0, 0], dtype=torch.int32), "torch.int32, not int64"),
        (torch.zeros(2, 4), torch.tensor([0]), "for targets of shape (1,)"),
    ],
)
def test_wrong_input_is_refused(logits, targets, told):
    with pytest.raises(ValueError) as error:
        build_objective("ce", vocab_size=4).from_logits(logits, targets)
    assert told in str(error.value)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(2, 30), st.floats(0, 0.99), st.floats(0, 0.5), st.integers(0, 2**31), st.booleans()
)
def test_any_batch_equals_the_written_out_formula(n, v, eps, coef, seed, mask):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, dtype=torch.float64, generator=generator) * 5
    targets = torch.randint(0, v, (n,), generator=generator)
    if mask:
        targets[torch.rand(n, generator=generator) < 0.5] = -100
    config = {"base": {"smooth": {"eps": eps}}, "add": [{"z": {"coef": coef}}]}
    ours = build_objective(config, vocab_size=v).from_logits(logits, targets, denom=1).loss
    torch.testing.assert_close(
        ours, torch.as_tensor(written_out(config, logits, targets)).double(), rtol=1e-11, atol=1e-13
    )
