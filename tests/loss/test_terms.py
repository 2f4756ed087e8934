"""Every registered part of a loss, on both heads: against its formula written out, and by the proofs that users run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loss import TERMS, TRANSFORMS, WEIGHTS, Head, Objective, build_objective
from loss.proof import CHECKS, Problem, prove, variant
from loss.rows import IGNORE

V = 13
COUNTS = torch.tensor([7, 0, 3, 100, 1, 12, 5, 9, 2, 60, 4, 8, 30])
SOURCES = ("web", "code")
UNIGRAM = (COUNTS + 1).double() / (COUNTS + 1).sum()
UNIFORM = torch.full((V,), 1 / V, dtype=torch.float64)
MATRIX = (torch.rand(V, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 4 * torch.eye(V)).softmax(
    1
)
TABLE = torch.linspace(0.2, 2.0, V, dtype=torch.float64)
NAMES = {"MATRIX": MATRIX, "TABLE": TABLE}  # stand for files in the configs below


def name(config: dict[str, Any]) -> str:
    return json.dumps(config).replace('"', "").replace("base: ", "")[1:-1]


# One line for each registered name at least, and the ways in which they are put together.
CONFIGS: list[dict[str, Any]] = [
    {"base": "ce"},
    {"base": {"smooth": {"eps": 0.3}}},
    {"base": {"smooth": {"prior": "unigram"}}},
    {"base": {"smooth": {"exclude_target": True}}},
    {"base": {"smooth": {"exclude_target": True, "prior": "unigram", "eps": 0.2}}},
    {"base": "z"},
    {"base": "focal"},
    {"base": {"focal": {"gamma": 0.5}}},
    {"base": {"poly": {"eps": -0.5}}},
    {"base": "gce"},
    {"base": {"gce": {"q": 1.0}}},
    {"base": "sce"},
    {"base": "noise"},
    {"base": {"noise": {"rate": 0.4, "prior": "unigram"}}},
    {"base": "confidence"},
    {"base": {"transition": {"file": "MATRIX"}}},
    {"base": {"unlikelihood": {"ids": [0, 5]}}},
    {"base": "soft"},
    {"base": {"kl": {"temperature": 2.0}}},
    {"base": {"kl": {"top_k": 3}}},
    {"base": {"reverse_kl": {"temperature": 0.7}}},
    {"base": {"reverse_kl": {"top_k": 1}}},
    {"base": {"jsd": {"beta": 0.2, "temperature": 1.5}}},
    {"base": {"smooth": {"eps": 0.1}}, "add": ["z", {"z": {"coef": 0.1}}, {"confidence": {"coef": 0.3}}]},
    {
        "base": {"ce": {"coef": {"linear": [1, 0]}}},
        "add": [{"smooth": {"eps": {"cosine": [0, 0.5], "over": [0, 0.6]}}}],
    },
    {"base": {"smooth": {}}, "add": [{"smooth": {"prior": "unigram"}}]},
    {"base": "ce", "weights": [{"classes": {"file": "TABLE"}}]},
    {"base": {"smooth": {}}, "weights": [{"frequency": {"prior": "unigram"}}]},
    {"base": "ce", "weights": [{"sources": {"by": {"code": {"linear": [0.2, 1]}}}}, {"position": {"tokens": 3}}]},
    {"base": "ce", "weights": ["difficulty"]},
    {"base": "focal", "add": ["z"], "weights": [{"probability": {"power": 0.5}}]},
    {"base": "ce", "logits": [{"softcap": {"cap": 2.0}}]},
    {"base": {"smooth": {}}, "add": ["z"], "logits": [{"temperature": {"t": 1.7}}]},
    {"base": {"smooth": {}}, "logits": [{"adjust": {"tau": 0.5, "prior": "unigram"}}, {"softcap": {"cap": 4.0}}]},
    {"base": {"smooth": {}}, "add": ["z"], "ahead": [0.5, {"linear": [0.25, 0]}]},
    {"base": "focal", "ahead": [0.3], "logits": ["softcap"]},
]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=name)


def build(config: dict[str, Any], folder: Path, **changes: Any) -> Objective:
    """The objective of a config in which file names stand for the tables above."""
    text = json.dumps(config | changes)
    for key, table in NAMES.items():
        (folder / f"{key}.json").write_text(json.dumps(table.tolist()))
        text = text.replace(f'"{key}"', json.dumps(str(folder / f"{key}.json")))
    return build_objective(json.loads(text), vocab_size=V, counts=COUNTS, sources=SOURCES)


def test_every_registered_part_is_here():
    named = {key for config in CONFIGS for lists in config.values() for key in keys(lists)}
    assert {*TERMS, *WEIGHTS, *TRANSFORMS} <= named


def keys(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [key for item in items for key in (item if isinstance(item, dict) else [item])]


@each_config
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.replace(" ", "-"))
def test_the_proofs_hold(config, check, tmp_path):
    CHECKS[check](build(config, tmp_path), 1)


# The formulas again, from the papers and in probabilities rather than logarithms where that is possible.
# p (n, V), t (n,), q: the probability of each target; extra inputs by name.
def smoothed(p, t, x, eps=0.1, prior="uniform", exclude_target=False):
    u = (UNIGRAM if prior == "unigram" else UNIFORM).expand_as(p).clone()
    hot = torch.nn.functional.one_hot(t, V).double()
    if exclude_target:
        u = u * (1 - hot)
        u = u / u.sum(-1, keepdim=True)
    return -(((1 - eps) * hot + eps * u) * p.log()).sum(-1)


def at(p, t):
    return p[torch.arange(len(t)), t]


def unlikely(p, t, x, ids=()):
    total = torch.zeros(len(t), dtype=torch.float64)
    for row in range(len(t)):
        candidates = [*ids, *x["negatives"][row].tolist()] if "negatives" in x else list(ids)
        for c in candidates:
            if c not in (-100, int(t[row])):
                total[row] = total[row] - (1 - p[row, c]).log()
    return total


def divergence(a, b):
    return (a * (a / b).log()).sum(-1)


def tempered(p, x, temperature, top_k):
    student = (p.log() / temperature).softmax(-1)
    teacher = (x["teacher_logits"] / temperature).softmax(-1)
    if top_k:
        ids = teacher.topk(top_k).indices
        kept = [y.gather(1, ids) for y in (teacher, student)]
        teacher, student = (torch.cat([y, 1 - y.sum(1, keepdim=True)], 1) for y in kept)
    return teacher, student


def distilled(which: str):
    def loss(p, t, x, temperature=1.0, top_k=0, beta=0.5):
        q, s = tempered(p, x, temperature, top_k)
        m = beta * q + (1 - beta) * s
        value = {"kl": divergence(q, s), "reverse_kl": divergence(s, q),
                 "jsd": beta * divergence(q, m) + (1 - beta) * divergence(s, m)}[which]  # fmt: skip
        return temperature**2 * value

    return loss


FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "ce": lambda p, t, x: -at(p, t).log(),
    "smooth": smoothed,
    "z": lambda p, t, x: x["lse"] ** 2,
    "focal": lambda p, t, x, gamma=2.0: -((1 - at(p, t)) ** gamma) * at(p, t).log(),
    "poly": lambda p, t, x, eps=1.0: -at(p, t).log() + eps * (1 - at(p, t)),
    "gce": lambda p, t, x, q=0.7: (1 - at(p, t) ** q) / q,
    "sce": lambda p, t, x, alpha=0.1, beta=1.0, A=-4.0: -alpha * at(p, t).log() - beta * A * (1 - at(p, t)),
    "noise": lambda p, t, x, rate=0.1, prior="uniform": (
        -((1 - rate) * at(p, t) + rate * (UNIGRAM if prior == "unigram" else UNIFORM)[t]).log()
    ),
    "confidence": lambda p, t, x: (p * p.log()).sum(-1),
    "transition": lambda p, t, x, file: -at(p @ MATRIX, t).log(),
    "unlikelihood": unlikely,
    "soft": lambda p, t, x: -(x["soft_labels"] * p.log()).sum(-1),
    "kl": distilled("kl"),
    "reverse_kl": distilled("reverse_kl"),
    "jsd": distilled("jsd"),
}
SINGLE = [config for config in CONFIGS if set(config) == {"base"}]


def test_every_term_has_a_formula():
    assert set(FORMULAS) == set(TERMS)


@pytest.mark.parametrize("config", SINGLE, ids=name)
@pytest.mark.parametrize("fused", ["on", "off"])
def test_terms_and_their_gradients_equal_the_formulas(config, fused, tmp_path):
    objective = build(config, tmp_path, fused=fused, chunk=4)
    problem = Problem.random(objective, 5)
    ((term, options),) = config["base"].items() if isinstance(config["base"], dict) else [(config["base"], {})]
    logits = torch.nn.functional.linear(problem.hidden, problem.weight, problem.bias)
    keep = problem.targets != IGNORE
    extra = {key: value[keep] for key, value in problem.extra.items()} | {"lse": logits.exp().sum(-1).log()[keep]}
    p = logits.exp()[keep] / logits.exp()[keep].sum(-1, keepdim=True)
    each = FORMULAS[term](p, problem.targets[keep], extra, **options) * objective.recipe.terms[0][1]["coef"]
    truth = (each * problem.weights[keep]).sum() / 7
    out = problem.call(objective, denom=7)
    torch.testing.assert_close(out.loss, truth, rtol=1e-12, atol=1e-14)
    ours, theirs = (torch.autograd.grad(x, problem.leaves) for x in (out.loss, truth))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(out.sums[f"term/{term}"], each.sum().detach(), rtol=1e-12, atol=1e-14)


def test_weights_are_what_they_say(tmp_path):
    def factors(rule, **extra):
        o = build({"base": "ce", "weights": [rule]}, tmp_path)
        p = Problem.random(o, 2)
        out = o(p.hidden, p.weight, p.targets, None, per_token=True, extra=p.extra | extra)
        keep = p.targets != IGNORE
        return (
            (out.per_token["loss"] / out.per_token["term/ce"])[keep],
            p.targets[keep],
            out.per_token["nll"][keep],
            keep,
        )

    got, targets, _, _ = factors({"classes": {"file": "TABLE"}})
    torch.testing.assert_close(got, TABLE[targets])
    got, targets, _, _ = factors({"frequency": {"power": 0.5, "prior": "unigram"}})
    torch.testing.assert_close(got, UNIGRAM[targets] ** -0.5 / (UNIGRAM**0.5).sum())
    source = torch.tensor([1, 0, 1])
    got, _, _, keep = factors({"sources": {"by": {"code": 0.25}}}, source=source)
    torch.testing.assert_close(got, torch.tensor([1.0, 0.25])[source].double().unsqueeze(1).expand_as(keep)[keep])
    place = torch.arange(8).expand(3, 8)
    got, _, _, keep = factors({"position": {"first": 0.2, "tokens": 4}}, position=place)
    wanted = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0]).double()
    torch.testing.assert_close(got, wanted.expand(3, 8)[keep])
    got, _, nll, _ = factors({"difficulty": {"limit": 3.0, "width": 0.5}})
    torch.testing.assert_close(got, 1 / (1 + torch.exp(-(3.0 - nll) / 0.5)))
    got, _, nll, _ = factors({"probability": {"power": 2.0}})
    torch.testing.assert_close(got, torch.exp(-2 * nll))


def test_frequency_weights_have_mean_one_over_the_corpus(tmp_path):
    objective = build({"base": "ce", "weights": [{"frequency": {"prior": "unigram", "power": 0.8}}]}, tmp_path)
    logits, targets = torch.randn(V, V, dtype=torch.float64), torch.arange(V)
    out = objective.from_logits(logits, targets, per_token=True)
    assert float(((out.per_token["loss"] / out.per_token["nll"]) * UNIGRAM).sum()) == pytest.approx(1.0)


def test_transforms_change_the_loss_alone(tmp_path):
    logits, targets = torch.randn(20, V, dtype=torch.float64) * 3, torch.randint(0, V, (20,))
    for config, changed in (
        ({"softcap": {"cap": 2.0}}, 2 * torch.tanh(logits / 2)),
        ({"temperature": {"t": 1.7}}, logits / 1.7),
        ({"adjust": {"tau": 0.5, "prior": "unigram"}}, logits + 0.5 * UNIGRAM.log()),
    ):
        out = build({"base": "ce", "logits": [config]}, tmp_path).from_logits(logits, targets)
        torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(changed, targets))
        torch.testing.assert_close(out.sums["nll"] / 20, torch.nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize("softcap", [0.5, 30.0])
@each_config
def test_a_head_with_softcap_and_no_bias(config, softcap, tmp_path):
    """The model's own softcap is part of nll too."""
    objective = build(config, tmp_path)
    p = Problem.random(objective, 9)
    heads = {}
    for fused in ("on", "off"):
        out = variant(objective, fused=fused, chunk=5)(
            p.hidden, Head(p.weight, softcap=softcap), p.targets, p.weights, extra=p.extra
        )
        heads[fused] = [out.loss, out.sums["nll"], *torch.autograd.grad(out.loss, [p.hidden, p.weight])]
    torch.testing.assert_close(heads["on"], heads["off"], rtol=1e-11, atol=1e-13)
    x = softcap * torch.tanh(p.hidden @ p.weight.T / softcap)
    nll = torch.nn.functional.cross_entropy(x.flatten(0, 1), p.targets.flatten(), reduction="sum")
    torch.testing.assert_close(heads["on"][1], nll.detach())


def test_moving_coefficients():
    objective = build_objective(
        {
            "base": {"smooth": {"eps": {"linear": [0.4, 0.0], "over": [0.25, 0.75]}}},
            "add": [{"z": {"coef": {"cosine": [0, 1]}}}],
        },
        vocab_size=5,
    )
    logits, targets = torch.randn(6, 5, dtype=torch.float64), torch.randint(0, 5, (6,))
    for progress, eps, coef in (
        (0.0, 0.4, 0.0),
        (0.2, 0.4, (1 - math.cos(0.2 * math.pi)) / 2),
        (0.5, 0.2, 0.5),
        (1.0, 0.0, 1.0),
    ):
        still = {"base": {"smooth": {"eps": eps}}, "add": [{"z": {"coef": coef}}]}
        wanted = build_objective(still, vocab_size=5).from_logits(logits, targets)
        got = objective.from_logits(logits, targets, progress=progress)
        assert float(got.loss) == pytest.approx(float(wanted.loss), rel=1e-13)


def test_targets_ahead_stay_inside_a_document():
    """Documents a b c | d e: the third target of `a` is none of d."""
    logits = torch.randn(1, 5, 7, dtype=torch.float64)
    targets = torch.tensor([[1, 2, IGNORE, 4, 5]])
    position = torch.tensor([[0, 1, 2, 0, 1]])
    lp = logits.log_softmax(-1)[0]
    out = build_objective({"base": "ce", "ahead": [0.5, 0.25]}, vocab_size=7).from_logits(
        logits, targets, denom=1, extra={"position": position}
    )
    wanted = -(lp[0, 1] + 0.5 * lp[0, 2] + lp[1, 2] + lp[3, 4] + 0.5 * lp[3, 5] + lp[4, 5])
    torch.testing.assert_close(out.loss, wanted)
    torch.testing.assert_close(out.sums["nll"], -(lp[0, 1] + lp[1, 2] + lp[3, 4] + lp[4, 5]))
    assert out.sums["tokens"] == 4
    with pytest.raises(ValueError, match="position"):
        build_objective({"base": "ce", "ahead": [0.5]}, vocab_size=7).from_logits(logits, targets)


def test_terms_without_a_target_count_once_with_targets_ahead():
    logits, targets = torch.randn(1, 4, 6, dtype=torch.float64), torch.tensor([[1, 2, 3, 4]])
    extra = {"position": torch.arange(4).unsqueeze(0)}
    sums = [
        build_objective({"base": "ce", "add": ["z"], "ahead": ahead}, vocab_size=6)
        .from_logits(logits, targets, extra=extra if ahead else None)
        .sums
        for ahead in ([], [1.0, 1.0])
    ]
    assert sums[0]["term/z"] == sums[1]["term/z"] and sums[0]["nll"] == sums[1]["nll"]
    assert sums[0]["term/ce"] < sums[1]["term/ce"]


def test_a_teacher_is_given_by_hidden_states_and_head_too(tmp_path):
    objective = build({"base": {"kl": {"temperature": 2.0}}}, tmp_path)
    p = Problem.random(objective, 4)
    other, head = torch.randn(3, 8, 6, dtype=torch.float64), torch.randn(V, 6, dtype=torch.float64)
    for fused in ("on", "off"):
        o = variant(objective, fused=fused, chunk=5)
        whole = o(p.hidden, p.weight, p.targets, extra={"teacher_logits": other @ head.T})
        parts = o(p.hidden, p.weight, p.targets, extra={"teacher_hidden": other, "teacher_head": head})
        torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-13, atol=0)
        same = o(p.hidden, p.weight, p.targets, extra={"teacher_hidden": p.hidden, "teacher_head": p.weight})
        assert same.loss.item() == pytest.approx(0, abs=1e-12)


def test_all_of_the_vocabulary_is_no_top_k(tmp_path):
    whole, top, three = (build({"base": {"kl": {"top_k": k}}}, tmp_path) for k in (0, V, 3))
    p = Problem.random(whole, 4)
    losses = [p.call(o).loss.item() for o in (whole, top, three)]
    assert losses[0] == losses[1] > losses[2] > 0  # what is lumped together cannot diverge more


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_where_the_target_is_certain_or_nearly(fused, gamma):
    """(1 - p)^gamma by expm1: exact for p near 1, and no NaN at p = 1."""
    o = build_objective({"base": {"focal": {"gamma": gamma}}, "fused": fused}, vocab_size=2)
    gap = torch.tensor([14.0, 200.0])
    x = torch.stack([gap, torch.zeros(2)], 1).requires_grad_()
    out = o(x, torch.eye(2), torch.zeros(2, dtype=torch.int64), per_token=True, denom=1)
    (gradient,) = torch.autograd.grad(out.loss, x)
    q = math.exp(-14) / (1 + math.exp(-14))  # 1 - p
    assert out.per_token["loss"][0].item() == pytest.approx(q**gamma * -math.log1p(-q), rel=0.05)
    assert out.per_token["loss"][1] == 0 and gradient.isfinite().all()


@pytest.mark.parametrize("fused", ["on", "off"])
def test_unlikelihood_pushes_where_the_unwanted_id_is_certain(fused):
    o = build_objective({"base": {"unlikelihood": {"ids": [0]}}, "fused": fused}, vocab_size=3)
    for margin in (1.0, 17.0, 40.0):
        x = torch.tensor([[margin, 0.0, -1e4]], requires_grad=True)
        out = o(x, torch.eye(3), torch.tensor([1]))
        truth = math.log1p(math.exp(margin))  # -log(1 - p) of a logit ahead of one other
        assert out.loss.item() == pytest.approx(truth, rel=1e-6)
        assert torch.autograd.grad(out.loss, x)[0][0, 0].item() == pytest.approx(1 / (1 + math.exp(-margin)), rel=1e-5)


@pytest.mark.parametrize(
    "base", [{"jsd": {}}, {"kl": {"top_k": 3}}, {"reverse_kl": {"top_k": 3}}, {"jsd": {"top_k": 3}}]
)
@pytest.mark.parametrize("fused", ["on", "off"])
def test_distillation_where_teacher_and_student_ban_an_id(fused, base):
    x = torch.randn(5, 4, dtype=torch.float64)
    bias = torch.tensor([0.0, 0.0, 0.0, -math.inf], dtype=torch.float64)
    x.requires_grad_()
    o = build_objective({"base": base, "fused": fused}, vocab_size=4)
    teacher = torch.randn(5, 4, dtype=torch.float64) + bias
    out = o(x, Head(torch.eye(4).double(), bias), torch.tensor([0, 1, 2, 0, 1]), extra={"teacher_logits": teacher})
    allowed = build_objective({"base": {k: {} for k in base}}, vocab_size=3)
    wanted = allowed.from_logits(x[:, :3], torch.tensor([0, 1, 2, 0, 1]), extra={"teacher_logits": teacher[:, :3]})
    torch.testing.assert_close(out.loss, wanted.loss)
    torch.testing.assert_close(torch.autograd.grad(out.loss, x), torch.autograd.grad(wanted.loss, x))


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("base", ["focal", {"noise": {"rate": 0.2}}, "gce"], ids=str)
def test_where_no_later_target_is_a_banned_id_makes_no_nan(fused, base):
    """Places without a later target point to id 0, which here cannot occur."""
    o = build_objective({"base": base, "ahead": [0.3], "fused": fused}, vocab_size=5)
    bias = torch.tensor([-math.inf, 0, 0, 0, 0], dtype=torch.float64)
    hidden, weight = torch.randn(1, 3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    out = o(hidden, Head(weight, bias), torch.tensor([[1, 2, 3]]), extra={"position": torch.arange(3).unsqueeze(0)})
    assert out.loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(out.loss, leaves))


def test_a_teacher_gets_no_gradient():
    logits, teacher = torch.randn(4, 5), torch.randn(4, 5, requires_grad=True)
    for fused in ("on", "off"):
        o = build_objective({"base": "kl", "fused": fused}, vocab_size=5)
        x = logits.clone().requires_grad_()
        o(x, torch.eye(5), torch.arange(4), extra={"teacher_logits": teacher}).loss.backward()
        assert teacher.grad is None and x.grad.any()


@pytest.mark.parametrize("fused", ["on", "off"])
def test_one_file_may_be_a_prior_and_a_table(fused, tmp_path):
    path = str(tmp_path / "numbers.npy")
    np.save(path, TABLE.numpy())
    loss = {"base": {"smooth": {"prior": path}}, "weights": [{"classes": {"file": path}}], "fused": fused}
    o = build_objective(loss, vocab_size=V)
    p = Problem.random(o, 6)
    keep = p.targets != IGNORE
    log_p = torch.nn.functional.linear(p.hidden, p.weight).log_softmax(-1)[keep]
    t, u = p.targets[keep], TABLE / TABLE.sum()
    truth = ((-0.9 * log_p[torch.arange(len(t)), t] - 0.1 * (log_p * u).sum(-1)) * TABLE[t]).sum()
    torch.testing.assert_close(o(p.hidden, p.weight, p.targets, denom=1).loss, truth)


@pytest.mark.parametrize(
    "content, told",
    [
        (np.ones((V, V)), "row 0 sums to 13, not 1"),
        (np.eye(V)[:3], "has the shape (3, 13), not (13, 13)"),
        (np.eye(V) * np.nan, "negative or not finite"),
        (np.array([{"a": 1}]), "something else than numbers"),
    ],
)
def test_tables_are_checked(content, told, tmp_path):
    path = tmp_path / "m.npy"
    np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match="loss.base.transition.file") as error:
        build_objective({"base": {"transition": {"file": str(path)}}}, vocab_size=V)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "name, content", [("m.npz", b""), ("m.npy", b""), ("m.npy", b"PK\x03\x04"), ("m.json", b"[1,")]
)
def test_what_is_no_table_is_said_to_be_none(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="loss.base.smooth.prior"):
        build_objective({"base": {"smooth": {"prior": str(tmp_path / name)}}}, vocab_size=V)


def test_plugins_see_one_number_a_target_whatever_they_read(tmp_path):
    source = "def f(lp, target, position):\n    return -lp * (target + 1) * (position + 2)\n"
    (tmp_path / "mine.py").write_text(source + "def w(lp, position):\n    return position - lp\n")
    for ahead in ([], [0.5]):
        config = {"base": {f"{tmp_path}/mine.py:f": {}}, "weights": [{f"{tmp_path}/mine.py:w": {}}], "ahead": ahead}
        o = build_objective(config, vocab_size=V)
        assert all(verdict.ok for verdict in prove(o))
        p = Problem.random(o, 3)
        out = p.call(o, per_token=True)
        nll, place = out.per_token["nll"], p.extra["position"]
        if not ahead:
            wanted = nll * (p.targets + 1) * (place + 2) * (place + nll) * p.weights
            keep = p.targets != IGNORE
            torch.testing.assert_close(out.per_token["loss"][keep], wanted[keep])


@pytest.mark.parametrize(
    "source, told",
    [
        ("def f(lp):\n    return -lp.sum()", "one number a target is meant"),
        ("def f(lp, *, coef=2.0):\n    return -lp", "has it already"),
        ("import torch\ntorch.nosuch", "mine.py:2: AttributeError"),
        ("import sys\nsys.exit(0)\ndef f(lp): return -lp", "mine.py:2: SystemExit"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said(source, told, tmp_path):
    (tmp_path / "mine.py").write_text(source + ("" if "def f" in source else "\ndef f(lp): return -lp") + "\n")
    with pytest.raises(ValueError) as error:
        o = build_objective({"base": {f"{tmp_path}/mine.py:f": {}}}, vocab_size=V)
        o.from_logits(torch.randn(3, V), torch.arange(3))
    assert told in str(error.value)


def test_a_plugin_may_read_the_prior_itself(tmp_path):
    (tmp_path / "mine.py").write_text("def f(log_p, u):\n    return -(log_p.clamp_min(-1e4) * u).sum(-1)\n")
    o = build_objective({"base": {f"{tmp_path}/mine.py:f": {"prior": "unigram"}}}, vocab_size=V, counts=COUNTS)
    assert all(verdict.ok for verdict in prove(o))


BROKEN = {
    "mixes targets": ("def f(lp):\n    return lp.mean() - 2 * lp", "no target depends on another"),
    "has no gradient": ("def f(lp):\n    return -lp.detach()", "both heads agree in fp64"),
    "has another gradient": ("def f(lp):\n    return -lp.detach() * lp", "gradients are the numerical ones"),
    "sums by itself": ("def f(lp):\n    return -lp.sum()", "both heads agree in fp64"),
    "cannot stand large logits": ("def f(lp):\n    return 1 / lp.exp()", "extreme logits stay finite"),
    "fails": ("def f(lp):\n    raise KeyError('x')", "both heads agree in fp64"),
}


@pytest.mark.parametrize("source, caught", BROKEN.values(), ids=BROKEN)
def test_the_proofs_find_a_loss_that_is_wrong(source, caught, tmp_path):
    (tmp_path / "mine.py").write_text(source + "\n")
    objective = build_objective({"base": {f"{tmp_path}/mine.py:f": {}}}, vocab_size=V)
    failed = {verdict.name: verdict.detail for verdict in prove(objective) if not verdict.ok}
    assert caught in failed, failed
