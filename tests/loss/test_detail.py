"""What `detail` counts, against numbers worked out by hand, and how its sums add up."""

import math

import pytest
import torch

from loss import build_objective, metrics, reliability
from loss.detail import PLACES, decile_of, place_name

BOTH = pytest.mark.parametrize("fused", ["on", "off"])


def rows(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def detail(logits, targets, fused, counts=None, **options):
    """The detail of logits, by a head that leaves hidden states as they are."""
    v = logits.shape[-1]
    o = build_objective({"base": "ce", "fused": fused, "chunk": 2}, vocab_size=v, counts=counts)
    return o(logits, torch.eye(v, dtype=logits.dtype), torch.as_tensor(targets), detail=True, **options)


@BOTH
def test_calibration_by_hand(fused):
    """Confidence .9 .9 .6 .6, of which the last is wrong: |.9 - 1| and |.6 - .5|, each of half the targets: 0.1."""
    out = detail(rows([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.6, 0.4]]), [0, 1, 0, 1], fused)
    assert metrics(out.sums)["ece"] == pytest.approx(0.1)
    found = [(pytest.approx(sure), right, count) for sure, right, count in reliability(out.sums)]
    assert found == [(0.6, 0.5, 2), (0.9, 1.0, 2)]


@BOTH
def test_a_calibrated_prediction_has_a_small_error(fused):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 6, generator=generator, dtype=torch.float64) * 2
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    v = build_objective({"base": "ce", "fused": fused}, vocab_size=6)
    assert metrics(v(logits, torch.eye(6).double(), targets, detail=True).sums)["ece"] < 0.02


@BOTH
def test_entropy_top_five_and_rank(fused):
    p = [[0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02]] * 3 + [[1 / 7] * 7]
    out = detail(rows(p), [0, 4, 5, 5], fused, per_token=True)
    means = metrics(out.sums)
    assert out.per_token["rank"].tolist() == [0, 4, 5, 5]  # of equals, the first ones are ahead
    assert means["top5"] == 0.5 and means["accuracy"] == 0.25
    assert means["entropy"] == pytest.approx((-3 * sum(x * math.log(x) for x in p[0]) + math.log(7)) / 4)
    assert out.per_token["confidence"].tolist() == pytest.approx([0.4, 0.4, 0.4, 1 / 7])


@BOTH
def test_entropy_with_an_impossible_id(fused):
    out = build_objective({"base": "ce", "fused": fused}, vocab_size=3).from_logits(
        torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([1]), detail=True
    )
    assert float(out.sums["entropy"]) == pytest.approx(math.log(2))


def test_each_tenth_of_the_corpus_has_about_as_many_tokens():
    assert decile_of(torch.ones(20, dtype=torch.int64)).tolist() == [i // 2 for i in range(20)]
    counts = torch.tensor([50, 1, 30, 4, 15])  # rarest first: 1 4 15 30 50; middles .5 3 12.5 35 75 of 100
    assert decile_of(counts).tolist() == [7, 0, 3, 0, 1]


@BOTH
def test_nll_by_frequency_and_place(fused):
    targets = torch.tensor([[0, 1, 2, 1, -100, 0]])
    position = torch.tensor([[0, 1, 2, 3, 4, 5]])
    logits = torch.randn(1, 6, 3, dtype=torch.float64)
    out = detail(
        logits, targets, fused, counts=torch.tensor([10, 1, 100]), extra={"position": position}, per_token=True
    )
    nll, means = out.per_token["nll"][0], metrics(out.sums)
    assert means["nll/position_0"] == pytest.approx(float(nll[0]))
    assert means["nll/position_2-3"] == pytest.approx(float((nll[2] + nll[3]) / 2))
    assert means["nll/position_4-7"] == pytest.approx(float(nll[5]))  # the masked one is in no bin
    decile = decile_of(torch.tensor([10, 1, 100]))
    for i in decile.unique().tolist():
        mine = torch.tensor([t >= 0 and int(decile[t]) == i for t in targets[0].tolist()])
        assert means[f"nll/decile_{i}"] == pytest.approx(float(nll[mine].mean()))


def test_names_of_places():
    assert [place_name(i) for i in range(5)] == ["0", "1", "2-3", "4-7", "8-15"]
    edges = torch.tensor([0, 1, 2, 3, 4, 7, 8, 2**30])
    out = build_objective("ce", vocab_size=2).from_logits(
        torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), detail=True, extra={"position": edges}
    )
    assert out.sums["position/tokens"].tolist() == [1, 1, 2, 2, 1] + [0] * (PLACES - 6) + [1]


@BOTH
def test_the_worst_targets_are_found_where_they_are(fused):
    targets = torch.tensor([[0, -100, 1], [2, 1, 0]])
    logits = torch.randn(2, 3, 3, dtype=torch.float64)
    out = detail(logits, targets, fused, per_token=True)
    nll = out.per_token["nll"].flatten()
    assert out.worst["nll"].tolist() == sorted(nll.tolist(), reverse=True)
    assert torch.equal(nll[out.worst["index"]], out.worst["nll"])


@BOTH
def test_sums_add_up_over_batches(fused):
    torch.manual_seed(1)
    logits, targets = torch.randn(30, 5, dtype=torch.float64), torch.randint(0, 5, (30,))
    counts = torch.tensor([1, 2, 3, 4, 5])
    whole = detail(logits, targets, fused, counts).sums
    parts = [detail(logits[i::3], targets[i::3], fused, counts).sums for i in range(3)]
    assert metrics({k: sum(p[k] for p in parts) for k in whole}) == pytest.approx(metrics(whole))


def test_shares_of_the_terms():
    o = build_objective({"base": "ce", "add": [{"z": {"coef": 0.1}}]}, vocab_size=4)
    means = metrics(o.from_logits(torch.randn(9, 4), torch.randint(0, 4, (9,)), detail=True).sums)
    assert means["share/ce"] + means["share/z"] == pytest.approx(1)
    assert means["share/z"] == pytest.approx(means["term/z"] / (means["term/z"] + means["term/ce"]))
