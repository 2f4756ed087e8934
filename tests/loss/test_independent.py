"""The objective against implementations that share nothing with it: torch's own losses, transformers, torchmetrics,
numbers worked out by hand, and every loss written out again in numpy from its paper.

N targets, V vocabulary. Both heads are measured with the identity as weight, so that hidden states are the logits and
the gradient by them is that by the logits. The numpy formulas take complex logits: their derivative by x_j is the
imaginary part of f(x + ih e_j) over h, exact to rounding, as nothing is subtracted (Squire and Trapp 1998).
"""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loss import TERMS, TRANSFORMS, Head, build_objective, metrics

N, V = 11, 7
STEP = 1e-30
HEADS = {"off": {"fused": "off"}, "on": {"fused": "on", "chunk": 4}}
each_head = pytest.mark.parametrize("head", list(HEADS))


def batch(scale=2.0, masked=True, n=N, v=V, seed=0):
    """Logits (N, V) fp64 and targets (N,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, dtype=torch.float64, generator=generator) * scale
    targets = torch.randint(0, v, (n,), generator=generator)
    if masked:
        targets[2::4] = -100
    return logits, targets


def ours(config, logits, targets, head="off", weights=None, counts=None, **options):
    """The output on one head, and the gradient of its loss by the logits."""
    config = {"base": config} if isinstance(config, str) else config
    objective = build_objective({**config, **HEADS[head]}, vocab_size=logits.shape[-1], counts=counts)
    x = logits.clone().requires_grad_()
    eye = torch.eye(logits.shape[-1], dtype=logits.dtype)
    out = objective(x, Head(eye), targets, weights, per_token=True, **options)
    return out, torch.autograd.grad(out.loss, x)[0]


def theirs(loss, logits, *arguments, **options):
    """What a function of the logits gives, and the gradient of its sum."""
    x = logits.clone().requires_grad_()
    value = loss(x, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def close(got, expected, rtol=1e-12, atol=1e-13):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), rtol=rtol, atol=atol)


def agree(mine, other, reduced=False):
    """The same values, of each target or as one number, and the same gradient."""
    (out, gradient), (value, expected) = mine, other
    close(out.loss if reduced else out.per_token["loss"], value)
    close(gradient, expected)


@pytest.fixture
def table(tmp_path):
    """Writes numbers where a config can name them."""

    def write(values, suffix=".npy"):
        path = tmp_path / f"table{len(list(tmp_path.iterdir()))}{suffix}"
        if suffix == ".json":
            path.write_text(json.dumps(np.asarray(values).tolist()))
        else:
            np.save(path, np.asarray(values, dtype=np.float64))
        return str(path)

    return write


# Numbers worked out by hand.


def of_rows(config, probabilities, targets, head="off", **options):
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    return ours(config, logits, torch.tensor(targets), head, **options)[0]


def of_zero_logits(config, v, head):
    objective = build_objective({**config, **HEADS[head]}, vocab_size=v)
    hidden, weight = (torch.zeros(n, 1, dtype=torch.float64) for n in (2, v))
    return objective(hidden, weight, torch.tensor([17, 0]))


@each_head
@pytest.mark.parametrize("p, nats", [(0.99, 0.0100503), (0.5, 0.6931472), (0.01, 4.6051702)])
def test_cross_entropy_of_one_probability(head, p, nats):
    assert of_rows("ce", [[p, 1 - p]], [0], head).loss.item() == pytest.approx(nats, abs=5e-8)


@each_head
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("exclude", [False, True])
def test_zero_logits_cost_ln_v_for_every_eps(head, eps, exclude):
    config = {"base": {"smooth": {"eps": eps, "exclude_target": exclude}}}
    out = of_zero_logits(config, 10_000, head)
    assert out.loss.item() == pytest.approx(9.2103404, abs=5e-8)


@each_head
def test_smoothing_of_three_ids(head, table):
    prior = [0.5, 0.3, 0.2]
    for options, nats in [
        ({"eps": 0.0}, 0.3566749),
        ({}, 0.4632974),
        ({"exclude_target": True}, 0.5166086),
        ({"prior": table(prior)}, 0.4331760),
        ({"prior": table(prior, ".json")}, 0.4331760),
        ({"prior": table([5, 3, 2], ".json")}, 0.4331760),  # scaled to sum 1
    ]:
        out = of_rows({"base": {"smooth": {"eps": 0.1, **options}}}, [[0.7, 0.2, 0.1]], [0], head)
        assert out.loss.item() == pytest.approx(nats, abs=5e-8), options
        assert out.sums["nll"].item() == pytest.approx(0.3566749, abs=5e-8)


@each_head
@pytest.mark.parametrize(
    "base, golden",
    [
        ({"focal": {"gamma": 2.0}}, [1.00503e-6, 0.1732868, 4.5135273]),
        ({"gce": {"q": 0.7}}, [0.0100151, 0.5491826, 1.3716990]),
        ({"sce": {"alpha": 0.0, "beta": 1.0, "A": -4.0}}, [0.04, 2.0, 3.96]),
    ],
    ids=str,
)
def test_losses_of_the_probabilities_99_50_and_1_percent(head, base, golden):
    out = of_rows({"base": base}, [[p, 1 - p] for p in (0.99, 0.5, 0.01)], [0, 0, 0], head)
    assert out.per_token["loss"].tolist() == pytest.approx(golden, abs=6e-8, rel=1e-6)


@each_head
def test_z_of_a_uniform_prediction(head):
    config = {"base": "ce", "add": [{"z": {"coef": 1e-4}}]}
    out = of_zero_logits(config, 10_000, head)
    assert metrics(out.sums)["term/z"] == pytest.approx(0.0084830370, abs=5e-11)


@each_head
def test_calibration_error_of_four_predictions(head):
    """Two right ones of confidence .9 are off by .1, and so is one right and one wrong of .6."""
    out = of_rows("ce", [[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.6, 0.4]], [0, 1, 0, 1], head, detail=True)
    assert metrics(out.sums)["ece"] == pytest.approx(0.1, abs=1e-12)


# torch.


@each_head
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_every_reduction_and_ignored_id_of_torch(head, eps, reduction, ignore_index):
    logits, targets = batch()
    kept = targets.masked_fill(targets == ignore_index, -100)
    targets = kept.masked_fill(kept == -100, ignore_index)
    expected = theirs(
        F.cross_entropy, logits, targets, reduction=reduction, label_smoothing=eps, ignore_index=ignore_index
    )
    config = {"base": {"smooth": {"eps": eps}}}
    mine = ours(config, logits, kept, head, denom=None if reduction == "mean" else 1)
    agree(mine, expected, reduced=reduction != "none")
    close(mine[0].sums["nll"], F.cross_entropy(logits, kept, reduction="sum"))
    assert mine[0].sums["tokens"] == (kept != -100).sum()


@each_head
def test_more_dimensions_put_the_vocabulary_last_where_torch_has_it_second(head):
    logits, targets = batch(n=12)
    out, gradient = ours("ce", logits.view(2, 3, 2, V), targets.view(2, 3, 2), head)
    value, expected = theirs(F.cross_entropy, logits.view(2, 3, 2, V).movedim(-1, 1), targets.view(2, 3, 2))
    close(out.loss, value)
    close(gradient, expected.movedim(1, -1))


CLASSES = np.array([0.2, 1.0, 3.0, 0.0, 0.5, 2.0, 1.5])


@each_head
def test_class_weights_of_torch_have_another_denominator(head, table):
    """Ours multiply a target's loss, and the mean stays one over targets; torch's mean is over the weights' sum."""
    logits, targets = batch()
    w = torch.from_numpy(CLASSES)
    config = {"base": "ce", "weights": [{"classes": {"file": table(CLASSES)}}]}
    valid = targets[targets != -100]
    for reduction in ("none", "sum"):
        expected = theirs(F.cross_entropy, logits, targets, weight=w, reduction=reduction)
        agree(ours(config, logits, targets, head, denom=1), expected, reduced=reduction == "sum")
    mean, gradient = theirs(F.cross_entropy, logits, targets, weight=w)
    agree(ours(config, logits, targets, head, denom=w[valid].sum()), (mean, gradient), reduced=True)
    share = w[valid].sum() / len(valid)
    agree(ours(config, logits, targets, head), (mean * share, gradient * share), reduced=True)


@each_head
@pytest.mark.parametrize("eps", [0.1, 0.6])
def test_class_weights_of_torch_also_weigh_what_smoothing_spreads(head, eps, table):
    """With weights w and smoothing, torch's loss of a target t is

        (1 - eps) w_t (-log p_t) + eps / V sum_j w_j (-log p_j),

    where ours is w_t times all of it. What torch has is a mixture of our parts: the second summand is mean(w) times
    smoothing toward the prior w / sum(w), whatever the target.
    """
    logits, targets = batch()
    w, file = torch.from_numpy(CLASSES), table(CLASSES)
    expected, slope = theirs(F.cross_entropy, logits, targets, weight=w, label_smoothing=eps, reduction="sum")
    weighted = ours({"base": "ce", "weights": [{"classes": {"file": file}}]}, logits, targets, head, denom=1)
    toward = ours({"base": {"smooth": {"eps": eps, "prior": file}}}, logits, targets, head, denom=1)
    plain = ours("ce", logits, targets, head, denom=1)
    mean = w.mean()
    parts = [(1 - eps, weighted), (mean, toward), (-mean * (1 - eps), plain)]
    close(sum(scale * out.loss for scale, (out, _) in parts), expected)
    close(sum(scale * gradient for scale, (_, gradient) in parts), slope)
    # And ours: the class weight of the target multiplies torch's unweighted loss.
    each, _ = theirs(F.cross_entropy, logits, targets, label_smoothing=eps, reduction="none")
    config = {"base": {"smooth": {"eps": eps}}, "weights": [{"classes": {"file": file}}]}
    out, _ = ours(config, logits, targets, head, denom=1)
    close(out.per_token["loss"], each * torch.where(targets < 0, 0.0, w[targets.clamp_min(0)]))
    assert abs(out.loss.item() - expected.item()) > 0.1


def distributions(n=N, v=V, seed=3, power=1.5):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, v, dtype=torch.float64, generator=generator) * power).softmax(-1)


@each_head
@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_probabilities_as_targets(head, eps, weighted, reduction):
    """torch smooths them toward uniform and weighs each class's share; its mean is over targets here, not weights."""
    logits, targets = batch(masked=False)
    q, w = distributions(), torch.from_numpy(CLASSES)
    q[0] = F.one_hot(torch.tensor(2), V)
    expected = theirs(
        F.cross_entropy, logits, q, weight=w if weighted else None, label_smoothing=eps, reduction=reduction
    )
    labels = ((1 - eps) * q + eps / V) * (w if weighted else 1.0)
    denom = None if reduction == "mean" else 1
    mine = ours("soft", logits, targets, head, denom=denom, extra={"soft_labels": labels})
    agree(mine, expected, reduced=reduction != "none")


@each_head
def test_one_hot_soft_labels_are_cross_entropy_also_where_p_is_0(head):
    logits, targets = batch()
    targets[targets == 1] = 0
    banned = torch.zeros(V, dtype=torch.float64)
    banned[1] = -math.inf
    objective = build_objective({"base": "soft", **HEADS[head]}, vocab_size=V)

    def soft(x):
        labels = F.one_hot(targets.clamp_min(0), V).double()
        identity = Head(torch.eye(V, dtype=torch.float64), banned)
        return objective(x, identity, targets, extra={"soft_labels": labels}).loss

    got, expected = theirs(soft, logits), theirs(lambda x: F.cross_entropy(x + banned, targets), logits)
    close(got[0], expected[0])
    close(got[1], expected[1])


@each_head
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("direction", ["kl", "reverse_kl"])
def test_distillation_equals_kl_div(head, temperature, direction):
    logits, targets = batch(masked=False)
    teacher, _ = batch(scale=3.0, seed=5)

    def kl_div(x):
        p, q = (x / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
        student_first = (p, q) if direction == "kl" else (q, p)  # kl_div(input, target) = KL(target, input)
        return F.kl_div(*student_first, reduction="batchmean", log_target=True) * temperature**2

    config = {"base": {direction: {"temperature": temperature}}}
    mine = ours(config, logits, targets, head, extra={"teacher_logits": teacher})
    agree(mine, theirs(kl_div, logits), reduced=True)


def test_distillation_of_oneself_is_0_with_zero_gradient():
    logits, targets = batch()
    for name in ("kl", "reverse_kl", "jsd"):
        out, gradient = ours(name, logits, targets, extra={"teacher_logits": logits})
        assert out.loss.abs() < 1e-14 and gradient.abs().max() < 1e-14


@each_head
@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
def test_linear_cross_entropy_of_torch(head):
    logits, targets = batch()
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in (N, V))
    leaves = [t.requires_grad_() for t in (hidden, weight)]
    expected = F.linear_cross_entropy(*leaves, targets)
    out = build_objective({"base": "ce", **HEADS[head]}, vocab_size=V)(*leaves, targets)
    close(out.loss, expected.detach())
    for got, wanted in zip(torch.autograd.grad(out.loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        close(got, wanted)


# transformers.


@each_head
@pytest.mark.parametrize("items", [None, 37, torch.tensor(37)], ids=["mean", "int", "tensor"])
def test_the_causal_language_model_loss_of_transformers(head, items):
    """It shifts labels itself and computes in fp32; `num_items_in_batch` is our denominator."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, labels = (t.view(2, 6, *t.shape[1:]) for t in batch(n=12))
    value, gradient = theirs(ForCausalLMLoss, logits.float(), labels, vocab_size=V, num_items_in_batch=items)
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    out, mine = ours("ce", logits.float(), shifted, head, denom=items)
    close(out.loss, value, rtol=2e-6)
    close(mine, gradient, rtol=2e-6, atol=1e-8)


@each_head
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.5])
def test_the_label_smoother_of_transformers(head, eps):
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels = (t.view(2, 6, *t.shape[1:]) for t in batch(n=12))
    # It sums the smoothed part in fp32 whatever the logits are.
    value, gradient = theirs(lambda x: LabelSmoother(eps)({"logits": x}, labels), logits.float())
    out, mine = ours({"base": {"smooth": {"eps": eps}}}, logits.float(), labels, head)
    close(out.loss, value, rtol=2e-6)
    close(mine, gradient, rtol=2e-6, atol=1e-7)


# torchmetrics.


@each_head
def test_metrics_of_torchmetrics(head):
    absent = "the extra `acceptance` is not installed"
    of_classes = pytest.importorskip("torchmetrics.classification", reason=absent)
    of_text = pytest.importorskip("torchmetrics.text", reason=absent)
    logits, targets = batch(n=400, v=20)
    out, _ = ours({"base": {"smooth": {"eps": 0.1}}}, logits, targets, head, detail=True)
    found = metrics(out.sums)
    perplexity = of_text.Perplexity(ignore_index=-100)
    perplexity.update(logits[None], targets[None])
    assert found["ppl"] == pytest.approx(perplexity.compute().item(), rel=1e-6)
    keep = targets != -100
    for mine, metric in [
        ("ece", of_classes.MulticlassCalibrationError(num_classes=20, n_bins=15, norm="l1")),
        ("accuracy", of_classes.MulticlassAccuracy(num_classes=20, average="micro")),
        ("top5", of_classes.MulticlassAccuracy(num_classes=20, top_k=5, average="micro")),
    ]:
        metric.update(logits[keep].softmax(-1), targets[keep])
        assert found[mine] == pytest.approx(metric.compute().item(), rel=1e-5), mine


# Papers, in numpy. x is complex (M, V), every row with the same target t, the batch's row i.

UNIGRAM = np.array([30, 1, 12, 0, 5, 8, 3])
U = (UNIGRAM + 1) / (UNIGRAM + 1).sum()
UNIFORM = np.full(V, 1 / V)
TEACHER = batch(scale=3.0, masked=False, seed=5)[0].numpy()
NEGATIVES = np.array([[1, 4, -100], [2, 2, 5], [-100, -100, -100]])[np.arange(N) % 3]
# Rows are the true id, columns the one seen (Patrini et al. 2017).
TRANSITION = 0.6 * np.eye(V) + 0.4 * distributions(V, V, seed=7).numpy()


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def log_p(x, t):
    return log_softmax(x)[:, t]


def cross(q, x):
    """-sum_j q_j log p_j."""
    return -(q * log_softmax(x)).sum(-1)


def one_hot(t):
    return np.eye(V)[t]


def smoothed(t, eps, prior, exclude=False):
    rest = prior * (1 - one_hot(t)) / (1 - prior[t]) if exclude else prior
    return (1 - eps) * one_hot(t) + eps * rest


def focal(x, t, gamma):
    """Lin et al. 2017, equation 4."""
    p = np.exp(log_p(x, t))
    return -((1 - p) ** gamma) * np.log(p)


def poly(x, t, eps):
    """Leng et al. 2022, equation 3: the series of -log p is sum_k (1 - p)^k / k; eps is added to the first."""
    p = np.exp(log_p(x, t))
    return -np.log(p) + eps * (1 - p)


def gce(x, t, q):
    """Zhang and Sabuncu 2018, equation 6."""
    return (1 - np.exp(log_p(x, t)) ** q) / q


def sce(x, t, alpha, beta, A):
    """Wang et al. 2019, equations 5 and 6: CE and RCE = -sum_j p_j log q_j, with log 0 = A."""
    p, log_q = np.exp(log_softmax(x)), np.where(one_hot(t) == 1, 0.0, A)
    return alpha * cross(one_hot(t), x) - beta * (p * log_q).sum(-1)


def forward_corrected(x, t, matrix):
    """Patrini et al. 2017, theorem 2: -log (T^t p)_t."""
    return -np.log((np.exp(log_softmax(x)) @ matrix)[:, t])


def rank_one(rate, prior):
    return (1 - rate) * np.eye(V) + rate * np.ones((V, 1)) * prior


def negative_entropy(x):
    """Pereyra et al. 2017: the penalty is -H(p)."""
    return (np.exp(log_softmax(x)) * log_softmax(x)).sum(-1)


def unlikelihood(x, t, candidates):
    """Welleck et al. 2020, equation 2; the target itself is never a negative."""
    p = np.exp(log_softmax(x))
    return -sum((np.log(1 - p[:, c]) for c in candidates if c not in (t, -100)), np.zeros(len(x)))


def divergence(log_a, log_b):
    return (np.exp(log_a) * (log_a - log_b)).sum(-1)


def at_temperature(x, i, temperature, top_k=0):
    """log-probabilities of teacher and student, over the teacher's likeliest ids and one for all others."""
    q, p = (np.exp(log_softmax(logits / temperature)) for logits in (TEACHER[i : i + 1], x))
    if top_k:
        ids = np.argsort(-q[0])[:top_k]
        q, p = (np.concatenate([a[:, ids], 1 - a[:, ids].sum(-1, keepdims=True)], 1) for a in (q, p))
    return np.log(q), np.log(p)


def kl(x, i, temperature, top_k=0, reverse=False):
    """Hinton et al. 2015, section 2: times T^2, so that gradients keep their size."""
    log_q, log_p = at_temperature(x, i, temperature, top_k)
    return temperature**2 * (divergence(log_p, log_q) if reverse else divergence(log_q, log_p))


def jsd(x, i, beta, temperature=1.0, top_k=0):
    """Agarwal et al. 2024, equation 1, of teacher q and student p."""
    log_q, log_p = at_temperature(x, i, temperature, top_k)
    middle = np.log(beta * np.exp(log_q) + (1 - beta) * np.exp(log_p))
    return temperature**2 * (beta * divergence(log_q, middle) + (1 - beta) * divergence(log_p, middle))


def ce(x, t):
    return cross(one_hot(t), x)


LABELS = distributions().numpy()
# config, and its loss of a row (x, t, i)
PAPERS = [
    ({"base": "ce"}, lambda x, t, i: ce(x, t)),
    ({"base": {"ce": {"coef": 0.3}}}, lambda x, t, i: 0.3 * ce(x, t)),
    ({"base": {"smooth": {"eps": 0.2}}}, lambda x, t, i: cross(smoothed(t, 0.2, UNIFORM), x)),
    ({"base": {"smooth": {"eps": 0.2, "prior": "unigram"}}}, lambda x, t, i: cross(smoothed(t, 0.2, U), x)),
    (
        {"base": {"smooth": {"eps": 0.2, "exclude_target": True}}},
        lambda x, t, i: cross(smoothed(t, 0.2, UNIFORM, True), x),
    ),
    (
        {"base": {"smooth": {"eps": 0.7, "exclude_target": True, "prior": "unigram"}}},
        lambda x, t, i: cross(smoothed(t, 0.7, U, True), x),
    ),
    (
        {"base": "ce", "add": [{"z": {"coef": 0.02}}]},
        lambda x, t, i: ce(x, t) + 0.02 * np.log(np.exp(x).sum(-1)) ** 2,
    ),
    *(
        ({"base": {"focal": {"gamma": gamma}}}, lambda x, t, i, gamma=gamma: focal(x, t, gamma))
        for gamma in (0.0, 0.5, 1.0, 2.0, 5.0)
    ),
    *(({"base": {"poly": {"eps": eps}}}, lambda x, t, i, eps=eps: poly(x, t, eps)) for eps in (-1.0, 0.0, 1.0, 6.0)),
    *(({"base": {"gce": {"q": q}}}, lambda x, t, i, q=q: gce(x, t, q)) for q in (0.05, 0.7, 1.0)),
    *(
        (
            {"base": {"sce": {"alpha": alpha, "beta": beta, "A": A}}},
            lambda x, t, i, alpha=alpha, beta=beta, A=A: sce(x, t, alpha, beta, A),
        )
        for alpha, beta, A in [(0.1, 1.0, -4.0), (6.0, 0.1, -6.0), (0.0, 1.0, -4.0), (1.0, 0.0, -4.0)]
    ),
    *(
        ({"base": {"noise": {"rate": rate}}}, lambda x, t, i, rate=rate: forward_corrected(x, t, rank_one(rate, 1 / V)))
        for rate in (0.0, 0.1, 0.6)
    ),
    (
        {"base": {"noise": {"rate": 0.3, "prior": "unigram"}}},
        lambda x, t, i: forward_corrected(x, t, rank_one(0.3, U)),
    ),
    ({"base": {"transition": {"file": "TRANSITION"}}}, lambda x, t, i: forward_corrected(x, t, TRANSITION)),
    (
        {"base": "ce", "add": [{"confidence": {"coef": 0.25}}]},
        lambda x, t, i: ce(x, t) + 0.25 * negative_entropy(x),
    ),
    ({"base": {"unlikelihood": {"ids": [0, 3, 5]}}}, lambda x, t, i: unlikelihood(x, t, [0, 3, 5])),
    (
        {"base": "ce", "add": [{"unlikelihood": {"ids": [1], "coef": 0.5}}]},
        lambda x, t, i: ce(x, t) + 0.5 * unlikelihood(x, t, [1, *NEGATIVES[i]]),
    ),
    ({"base": "soft"}, lambda x, t, i: cross(LABELS[i], x)),
    *(({"base": {"kl": {"temperature": T}}}, lambda x, t, i, T=T: kl(x, i, T)) for T in (0.5, 1.0, 4.0)),
    ({"base": {"kl": {"temperature": 2.0, "top_k": 3}}}, lambda x, t, i: kl(x, i, 2.0, 3)),
    ({"base": {"kl": {"top_k": V}}}, lambda x, t, i: kl(x, i, 1.0)),
    ({"base": {"reverse_kl": {"temperature": 2.0}}}, lambda x, t, i: kl(x, i, 2.0, reverse=True)),
    ({"base": {"reverse_kl": {"top_k": 2}}}, lambda x, t, i: kl(x, i, 1.0, 2, reverse=True)),
    *(({"base": {"jsd": {"beta": beta}}}, lambda x, t, i, beta=beta: jsd(x, i, beta)) for beta in (0.1, 0.5, 0.9)),
    (
        {"base": {"jsd": {"beta": 0.3, "temperature": 2.0, "top_k": 2}}},
        lambda x, t, i: jsd(x, i, 0.3, 2.0, 2),
    ),
    # Menon et al. 2021, equation 10: the softmax of f + tau log pi.
    *(
        (
            {"base": "ce", "logits": [{"adjust": {"tau": tau, "prior": "unigram"}}]},
            lambda x, t, i, tau=tau: ce(x + tau * np.log(U), t),
        )
        for tau in (0.5, 1.0, 2.0)
    ),
    ({"base": "ce", "logits": [{"softcap": {"cap": 3.0}}]}, lambda x, t, i: ce(3 * np.tanh(x / 3), t)),
    ({"base": {"focal": {}}, "logits": [{"temperature": {"t": 2.0}}]}, lambda x, t, i: focal(x / 2, t, 2.0)),
    (
        {
            "base": {"smooth": {"eps": 0.1}},
            "add": [{"z": {"coef": 0.01}}, {"confidence": {}}, {"gce": {"coef": 2.0}}],
            "logits": [{"softcap": {"cap": 5.0}}, {"adjust": {"prior": "unigram"}}],
        },
        lambda x, t, i: mixture(5 * np.tanh(x / 5) + np.log(U), t),
    ),
]


def mixture(x, t):
    z = 0.01 * np.log(np.exp(x).sum(-1)) ** 2
    return cross(smoothed(t, 0.1, UNIFORM), x) + z + 0.1 * negative_entropy(x) + 2 * gce(x, t, 0.7)


EXTRA = {
    "soft": {"soft_labels": torch.from_numpy(LABELS)},
    **{name: {"teacher_logits": torch.from_numpy(TEACHER)} for name in ("kl", "reverse_kl", "jsd")},
}


def written_out(formula, logits, targets):
    """Loss (N,) and its gradient by the logits (N, V), 0 where there is no target."""
    x = logits.numpy()
    values, gradient = np.zeros(len(x)), np.zeros(x.shape)
    for i, t in enumerate(targets.tolist()):
        if t != -100:
            nudged = formula(x[i] + 1j * STEP * np.eye(V), t, i)
            values[i], gradient[i] = nudged.real[0], nudged.imag / STEP
    return values, gradient


def test_every_term_and_transform_is_written_out():
    named = [str(config) for config, _ in PAPERS]
    assert not [name for name in (*TERMS, *TRANSFORMS) if not any(f"'{name}'" in text for text in named)]


@each_head
@pytest.mark.parametrize("config, formula", PAPERS, ids=[str(config) for config, _ in PAPERS])
def test_equals_the_paper_with_its_gradient(head, config, formula, table):
    logits, targets = batch()
    if config["base"] == {"transition": {"file": "TRANSITION"}}:
        config = {"base": {"transition": {"file": table(TRANSITION)}}}
    base = config["base"] if isinstance(config["base"], str) else next(iter(config["base"]))
    extra = EXTRA.get(base, {})
    if any("unlikelihood" in named for named in config.get("add", [])):
        extra = {"negatives": torch.from_numpy(NEGATIVES)}
    importance = torch.linspace(0, 2, N, dtype=torch.float64)
    counts = torch.from_numpy(UNIGRAM)
    out, gradient = ours(config, logits, targets, head, importance, counts, denom=5, extra=extra)
    values, slopes = written_out(formula, logits, targets)
    close(out.per_token["loss"], values * importance.numpy(), rtol=1e-11, atol=1e-12)
    close(out.loss, (values * importance.numpy()).sum() / 5, rtol=1e-11, atol=1e-12)
    close(gradient, slopes * importance.numpy()[:, None] / 5, rtol=1e-10, atol=1e-12)
    # What is reported does not depend on any of it.
    close(out.sums["nll"], F.cross_entropy(logits, targets, reduction="sum"))


@each_head
def test_gradients_by_hand(head):
    """By the logits, with y the target as one-hot, each one written out below."""
    logits, targets = batch(masked=False)
    p = np.exp(log_softmax(logits.numpy()))
    pt, y = p[np.arange(N), targets.numpy()][:, None], one_hot(targets.numpy())
    lse = np.log(np.exp(logits.numpy()).sum(-1, keepdims=True))
    for base, expected in [
        ("ce", p - y),
        ({"gce": {"q": 0.7}}, pt**0.7 * (p - y)),
        ({"sce": {"alpha": 0.0, "beta": 1.0, "A": -4.0}}, 4 * pt * (p - y)),
        ({"z": {"coef": 1.0}}, 2 * lse * p),
        ({"focal": {"gamma": 2.0}}, ((1 - pt) ** 2 - 2 * pt * (1 - pt) * np.log(pt)) * (p - y)),
        ({"confidence": {"coef": 1.0}}, p * (np.log(p) - (p * np.log(p)).sum(-1, keepdims=True))),
    ]:
        close(ours({"base": base}, logits, targets, head, denom=1)[1], expected)


# Weights: the loss is multiplied by a number through which no gradient goes.
RULES = [
    ({"frequency": {"power": 0.5, "prior": "unigram"}}, lambda p, t, i: U[t] ** -0.5 / (U * U**-0.5).sum()),
    ({"difficulty": {"limit": 2.0, "width": 0.5}}, lambda p, t, i: 1 / (1 + np.exp(-(2 + np.log(p)) / 0.5))),
    ({"probability": {}}, lambda p, t, i: p),  # Wu et al. 2025, equation 9
    ({"probability": {"power": 0.5}}, lambda p, t, i: p**0.5),
    ({"position": {"first": 0.25, "tokens": 4}}, lambda p, t, i: 0.25 + 0.75 * min(i % 6 / 4, 1)),
]


@each_head
@pytest.mark.parametrize("rule, formula", RULES, ids=[str(rule) for rule, _ in RULES])
@pytest.mark.parametrize("base", ["ce", "smooth"])
def test_weights_equal_what_they_say(head, rule, formula, base):
    logits, targets = batch()
    eps = {"ce": 0.0, "smooth": 0.1}[base]
    extra = {"position": torch.arange(N) % 6} if "position" in rule else {}
    config = {"base": base, "weights": [rule]}
    out, gradient = ours(config, logits, targets, head, None, torch.from_numpy(UNIGRAM), denom=1, extra=extra)

    def weighted(x, t, i):
        return formula(np.exp(log_p(x.real, t))[0], t, i) * cross(smoothed(t, eps, UNIFORM), x)

    values, slopes = written_out(weighted, logits, targets)
    close(out.per_token["loss"], values)
    close(gradient, slopes)
