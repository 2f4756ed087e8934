"""Scores by hand, and the same whatever the batches and ranks. B rows, T targets, S sources, D documents."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eval.validate import evaluate, score_groups


@dataclass
class Batch:
    targets: Tensor
    bytes: Tensor
    source: Tensor
    nll: Tensor
    correct: Tensor
    document: Tensor | None = None


def score(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.nll, batch.correct


def metrics(sums: dict[str, float]) -> dict[str, float]:
    nll = sums["nll"] / sums["tokens"]
    result = {"nll": nll, "ppl": math.exp(nll), "accuracy": sums["correct"] / sums["tokens"], "other": 1.0}
    if sums["bytes"]:
        result["bpb"] = sums["nll_text"] / sums["bytes"] / math.log(2)
    return result


def alone(table: Tensor) -> Tensor:
    return table


def test_by_hand() -> None:
    ln2 = math.log(2)
    batch = Batch(
        targets=torch.tensor([[5, 6, 0], [7, -100, -100], [-100, -100, -100]]),
        bytes=torch.tensor([[3, 1, 0], [2, 9, 9], [9, 9, 9]], dtype=torch.int32),
        source=torch.tensor([0, 2, -1]),
        nll=torch.tensor([[ln2, 3 * ln2, 2 * ln2], [4 * ln2, math.nan, 50], [math.inf] * 3]),
        correct=torch.tensor([[True, False, True], [False, True, True], [True] * 3]),
    )
    got = evaluate(score, [batch], ["a", "unseen", "c"], alone, metrics)
    want = {
        "val/nll": 2.5 * ln2,
        "val/ppl": 2**2.5,
        "val/accuracy": 0.5,
        "val/bpb": 8 / 6,  # the special target's two bits are left out
        "val/a/nll": 2 * ln2,
        "val/a/ppl": 4.0,
        "val/a/accuracy": 2 / 3,
        "val/a/bpb": 1.0,
        "val/c/nll": 4 * ln2,
        "val/c/ppl": 16.0,
        "val/c/accuracy": 0.0,
        "val/c/bpb": 2.0,
    }
    assert got == pytest.approx(want, rel=1e-6)


DOCUMENTS = 9


def rows(generator: torch.Generator, count: int, length: int = 7) -> Batch:
    targets = torch.randint(0, 50, (count, length), generator=generator)
    targets[torch.rand(count, length, generator=generator) < 0.2] = -100
    targets[0, 0] = 3
    return Batch(
        targets,
        torch.randint(0, 6, (count, length), generator=generator, dtype=torch.int32),
        torch.randint(0, 3, (count,), generator=generator),
        torch.rand(count, length, generator=generator) * 12,
        torch.rand(count, length, generator=generator) < 0.4,
        torch.where(targets == -100, -1, torch.randint(0, DOCUMENTS, (count, length), generator=generator)),
    )


GROUPS = {
    "language": (torch.tensor([0, 1, -1, 1, 0, 2, 2, -1, 0], dtype=torch.int32), ("de", "en", "fr")),
    "half": (torch.tensor([0] * 4 + [1] * 5), ("first", "second")),
}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 12))
def test_each_group_is_the_sum_over_its_documents(seed: int, count: int) -> None:
    batch = rows(torch.Generator().manual_seed(seed), count)
    sources, labels = score_groups(score, split(batch, [1] * count), ["a", "b", "c"], alone, metrics, GROUPS)
    assert batch.document is not None
    valid = batch.targets != -100
    for label, (codes, values) in GROUPS.items():
        code = torch.where(valid, codes[batch.document].long(), -1)
        for i, value in enumerate(values):
            own = code == i
            if not own.any():
                assert value not in labels[label]
                continue
            found, text = labels[label][value], own & (batch.bytes > 0)
            assert found["tokens"] == own.sum()
            assert found["nll"] == pytest.approx(batch.nll[own].double().mean().item(), rel=1e-12)
            assert found["accuracy"] == pytest.approx(batch.correct[own].double().mean().item(), rel=1e-12)
            if text.any():
                bits = batch.nll[text].double().sum() / batch.bytes[own].sum() / math.log(2)
                assert found["bpb"] == pytest.approx(bits.item(), rel=1e-12)
    assert sum(row["tokens"] for row in labels["half"].values()) == sources[""]["tokens"] == valid.sum()
    plain = score_groups(score, split(batch, [1] * count), ["a", "b", "c"], alone, metrics)
    assert plain == (sources, {})  # to the last bit


def test_values_become_names_of_metrics() -> None:
    batch = rows(torch.Generator().manual_seed(3), 8)
    values = ("a/b", "a_b", "a\nb", "x" * 99, "é 中")
    groups = {"site": (torch.arange(DOCUMENTS) % 5, values)}
    names = {key.removeprefix("val/").rpartition("/")[0] for key in
             evaluate(score, [batch], ["a", "b", "c"], alone, metrics, groups)}  # fmt: skip
    want = {"site=a_b", "site=a_b~2", "site=a_b~3", f"site={'x' * 60}", "site=é 中"}
    assert names - {"", "a", "b", "c"} == want


def ignored(batch: Batch) -> Batch:
    """A batch of filler rows."""
    targets = torch.full_like(batch.targets, -100)
    return Batch(targets, batch.bytes, batch.source, batch.nll, batch.correct, torch.full_like(targets, -1))


def split(batch: Batch, sizes: list[int]) -> Iterator[Batch]:
    at = 0
    for size in sizes:
        yield Batch(*(getattr(batch, f.name)[at : at + size] for f in fields(Batch)))
        at += size


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 24), world=st.integers(1, 4))
def test_any_batches_and_ranks_agree(seed: int, count: int, world: int) -> None:
    batch = rows(torch.Generator().manual_seed(seed), count)
    want = evaluate(score, [batch], ["a", "b", "c"], alone, metrics, GROUPS)
    pick = random.Random(seed)
    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(pick.randint(1, 5))
    parts = list(split(batch, sizes))
    tables: list[Tensor] = []

    def collect(table: Tensor) -> Tensor:
        tables.append(table)
        return table.new_ones(table.shape)

    for rank in range(world):
        share = parts[rank::world] or [ignored(batch)]
        evaluate(score, share, ["a", "b", "c"], collect, metrics, GROUPS)
    assert len(tables) == world  # one reduction on each rank
    assert all(table.dtype == torch.float64 for table in tables)
    got = evaluate(score, parts, ["a", "b", "c"], lambda _: torch.stack(tables).sum(0), metrics, GROUPS)
    assert got == pytest.approx(want, rel=1e-12)


def test_no_gradient_and_bf16_scores() -> None:
    batch = rows(torch.Generator().manual_seed(1), 4)

    def with_weights(batch: Batch) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        return batch.nll.bfloat16(), batch.correct

    got = evaluate(with_weights, [batch], ["a", "b", "c"], alone, metrics)
    valid = batch.targets != -100
    assert got["val/nll"] == pytest.approx(batch.nll.bfloat16()[valid].double().mean().item(), rel=1e-12)


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no validation batches"):
        evaluate(score, [], ["a"], alone, metrics)
    batch = rows(torch.Generator().manual_seed(1), 2)
    batch.targets[:] = -100
    with pytest.raises(ValueError, match="no target"):
        evaluate(score, [batch], ["a", "b", "c"], alone, metrics)
