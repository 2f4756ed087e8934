"""Muon beyond its reference in test_optim: shapes, decay that is cautious, momentum that rises, and what it costs."""

import pytest
import torch
from torch import nn

from trainer.config import OptimConfig
from trainer.muon import Muon, iteration_flops, orthogonalize, shape_factor
from trainer.schedule import momentum_at


@pytest.mark.parametrize("rows, columns", [(6, 6), (12, 4), (4, 12), (1, 5), (5, 1)])
def test_directions_stay_and_sizes_become_about_one(rows, columns):
    torch.manual_seed(0)
    matrices = torch.randn(3, rows, columns) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    U, S, Vh = torch.linalg.svd(matrices, full_matrices=False)
    found = U.mT @ orthogonalize(matrices, 12) @ Vh.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-4
    assert not orthogonalize(torch.zeros(1, rows, columns)).any()


def test_a_tall_matrix_goes_as_its_transpose_does():
    torch.manual_seed(0)
    tall = torch.randn(2, 9, 4)
    torch.testing.assert_close(orthogonalize(tall), orthogonalize(tall.mT).mT)


def test_matrices_of_one_shape_go_as_each_alone():
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(8, 4)) for _ in range(3)] + [nn.Parameter(torch.randn(4, 4))]
    apart = [nn.Parameter(p.detach().clone()) for p in together]
    muons = [Muon([{"params": together, "lr": 0.1, "weight_decay": 0.0}], 0.9, torch.float32)]
    muons += [Muon([{"params": [p], "lr": 0.1, "weight_decay": 0.0}], 0.9, torch.float32) for p in apart]
    for a, b in zip(together, apart, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    kept = [p.grad.clone() for p in together if p.grad is not None]
    for muon in muons:
        muon.step()
    for a, b, grad in zip(together, apart, kept, strict=True):
        torch.testing.assert_close(a, b)
        assert a.grad is not None and torch.equal(a.grad, grad)  # gradients are the caller's


def test_cautious_decay_is_decay_where_the_update_agrees():
    """Against the formula of arXiv:2510.12402, written out."""
    torch.manual_seed(0)
    weights = {decay: nn.Parameter(torch.ones(6, 4).mul_(0.5)) for decay in ("none", "plain", "cautious")}
    start, grad = weights["none"].detach().clone(), torch.randn(6, 4)
    for name, weight in weights.items():
        group = {"params": [weight], "lr": 0.1, "weight_decay": 0.0 if name == "none" else 0.3}
        weight.grad = grad.clone()
        Muon([group], 0.9, torch.float32, cautious=name == "cautious").step()
    update = (start - weights["none"]) / 0.1
    agrees = update * start > 0
    assert agrees.any() and not agrees.all()
    torch.testing.assert_close(weights["plain"], start - 0.1 * (update + 0.3 * start))
    torch.testing.assert_close(weights["cautious"], start - 0.1 * (update + 0.3 * start * agrees))


def test_momentum_rises_in_a_line_and_stays():
    config = OptimConfig(momentum=0.95, momentum_warmup=10)
    found = [momentum_at(step, 40, config, 1) for step in range(40)]
    assert found[0] == 0.85 and found[5] == pytest.approx(0.9) and set(found[10:]) == {0.95}
    assert found == sorted(found)
    assert momentum_at(0, 40, OptimConfig(momentum=0.95, momentum_warmup=0), 1) == 0.95
    assert {momentum_at(s, 40, OptimConfig(momentum=0.6, momentum_warmup=20), 1) for s in range(40)} == {0.6}
    assert momentum_at(2, 40, OptimConfig(momentum=0.95, momentum_warmup="8 tokens"), 2) == pytest.approx(0.9)


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for shape in ((8, 8), (24, 8), (8, 24)):
        with FlopCounterMode(display=False) as counter:
            orthogonalize(torch.randn(1, *shape))
        assert counter.get_total_flops() == iteration_flops(*shape)


def test_only_tall_matrices_are_scaled():
    assert shape_factor(16, 4) == 2.0 and shape_factor(4, 16) == shape_factor(4, 4) == 1.0
