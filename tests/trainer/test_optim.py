"""Optimizers: roles, decay, skipped steps that change nothing, and state that survives a round trip."""

import pytest
import torch
from torch import nn

from trainer.config import OptimConfig, Rates
from trainer.muon import Muon
from trainer.optim import Optimizers


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.linear, self.norm = (
            nn.Embedding(6, 4),
            nn.Linear(4, 4, bias=False),
            nn.LayerNorm(4, bias=False),
        )
        self.head = nn.Linear(4, 6, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.linear(self.embed(x))))


ROLES = {"embed.weight": "embed", "linear.weight": "matrix", "norm.weight": "vector", "head.weight": "head"}
RATES = Rates(matrix=0.02, embed=0.1, head=0.004, vector=0.01)
both = pytest.mark.parametrize("name", ["adamw", "muon"])


def build(model, **config):
    config = {"rates": RATES, "betas": (0.8, 0.95)} | config
    return Optimizers(dict(model.named_parameters()), ROLES, OptimConfig(**config))


def backward(model, seed, poison=False):
    x = torch.randint(0, 6, (8,), generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    if poison:
        model.linear.weight.grad[0, 0] = torch.nan


def train(model, optimizers, seeds):
    for seed in seeds:
        backward(model, seed)
        optimizers.clip()
        optimizers.step(0.5, torch.tensor(True))
        optimizers.zero_grad()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_adamw_matches_torch_with_its_own_groups():
    ours, theirs = Small(), Small()
    rates = Rates(matrix=0.01, embed=0.02, head=0.03, vector=0.04)
    train(ours, build(ours, name="adamw", rates=rates, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8), range(5))
    groups = [
        {"params": [theirs.linear.weight], "lr": 0.005, "weight_decay": 0.1},
        {"params": [theirs.embed.weight], "lr": 0.01},
        {"params": [theirs.head.weight], "lr": 0.015},
        {"params": [theirs.norm.weight], "lr": 0.02},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, fused=False, foreach=False)
    for seed in range(5):
        backward(theirs, seed)
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
        reference.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=name)


def test_muon_takes_the_matrices_and_only_them_decay():
    model = Small()
    optimizers = build(model, name="muon", rates=Rates(matrix=0.1, embed=0.0, head=0.0, vector=0.0), weight_decay=0.5)
    before = weights(model)
    train(model, optimizers, [0])
    after = weights(model)
    assert [n for n in before if not torch.equal(before[n], after[n])] == ["linear.weight"]
    moved = after["linear.weight"] - (1 - 0.05 * 0.5) * before["linear.weight"]
    # An orthogonalized update of rate 0.05: singular values near 0.05 (Newton-Schulz leaves them in 0.7 .. 1.2), but
    # for one direction, which the norm that follows takes out of the gradient.
    assert torch.linalg.svdvals(moved / 0.05)[:3].sub(1).abs().max() < 0.35


@pytest.mark.parametrize("shape", [(4, 4), (12, 4), (4, 12)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float32, 1e-6)])
def test_muon_is_torchs_muon(shape, dtype, tolerance):
    """Three matrices stepped together against torch's, one by one; in fp32 against the formula written out."""
    torch.manual_seed(1)
    ours = [nn.Parameter(torch.randn(shape)) for _ in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon([{"params": ours, "lr": 0.1, "weight_decay": 0.2}], momentum=0.9, dtype=dtype)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.2, momentum=0.9)
    momenta = [torch.zeros(shape) for _ in theirs]
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(shape)
            b.grad = a.grad.clone()
        muon.step()
        if dtype == torch.bfloat16:
            reference.step()
        else:
            for b, m in zip(theirs, momenta, strict=True):
                m.mul_(0.9).add_(b.grad, alpha=0.1)
                x = 0.1 * b.grad + 0.9 * m
                x = x / x.norm()
                for _ in range(5):
                    x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
                b.data.mul_(1 - 0.1 * 0.2).sub_(0.1 * max(1, shape[0] / shape[1]) ** 0.5 * x)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@both
def test_a_step_that_is_not_finite_changes_neither_weights_nor_state(name):
    model = Small()
    optimizers = build(model, name=name, weight_decay=0.1)
    train(model, optimizers, range(3))
    before, state = weights(model), {k: v.clone() for k, v in optimizers.state().items()}
    backward(model, 9, poison=True)
    norm = optimizers.clip()
    optimizers.step(1.0, torch.isfinite(norm))
    assert not torch.isfinite(norm)
    assert_equal(before, weights(model))
    assert_equal(state, optimizers.state())


@both
@pytest.mark.parametrize("poison", [False, True])
def test_deciding_on_the_device_gives_what_deciding_on_the_host_gives(name, poison):
    """The path for GPUs, run on the CPU, where it decides alike."""
    host, device = Small(), Small()
    results = []
    for model, without_sync in ((host, False), (device, True)):
        optimizers = build(model, name=name, weight_decay=0.1)
        train(model, optimizers, range(3))
        backward(model, 9, poison)
        finite = torch.isfinite(optimizers.clip())
        if without_sync:
            optimizers.set_rates(0.5)
            optimizers._step_without_sync(finite)
        else:
            optimizers.step(0.5, finite)
        results.append((weights(model), {k: v.clone() for k, v in optimizers.state().items()}))
    assert_equal(results[0][0], results[1][0])
    assert_equal(results[0][1], results[1][1])


@both
def test_state_goes_on_bit_for_bit(name):
    model = Small()
    optimizers = build(model, name=name)
    train(model, optimizers, range(3))
    other = Small()
    other.load_state_dict(model.state_dict())
    resumed = build(other, name=name)
    resumed.allocate()
    for key, tensor in resumed.state().items():
        tensor.copy_(optimizers.state()[key])
    train(model, optimizers, range(3, 6))
    train(other, resumed, range(3, 6))
    assert_equal(weights(model), weights(other))
    assert_equal(optimizers.state(), resumed.state())


@both
def test_allocated_state_is_what_the_first_step_begins_with(name):
    ours, theirs = Small(), Small()
    allocated, empty = build(ours, name=name), build(theirs, name=name)
    allocated.allocate()
    assert not any(tensor.any() for tensor in allocated.state().values())
    train(ours, allocated, range(2))
    train(theirs, empty, range(2))
    assert_equal(weights(ours), weights(theirs))
    assert_equal(allocated.state(), empty.state())
    assert all(tensor.dtype == empty.state()[key].dtype for key, tensor in allocated.state().items())


def test_a_parameter_without_a_role_is_refused():
    with pytest.raises(ValueError, match="head.weight"):
        Optimizers(dict(Small().named_parameters()), {k: v for k, v in ROLES.items() if v != "head"}, OptimConfig())


@pytest.mark.parametrize("limit, largest", [(0.01, 0.01), (None, torch.inf), (1e6, torch.inf)])
def test_clip_returns_the_norm_before_and_limits_the_norm_after(limit, largest):
    model = Small()
    optimizers = build(model, grad_clip=limit)
    backward(model, 0)
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    norm = optimizers.clip()
    torch.testing.assert_close(norm, flat.norm())
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    if largest < torch.inf:
        assert after.norm() == pytest.approx(largest, rel=1e-3)
    else:
        assert torch.equal(after, flat)
