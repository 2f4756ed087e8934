"""Products in float8 against the same products of what float8 keeps of their inputs, in fp32."""

import pytest
import torch
from torch import Tensor, nn

from model import ModelConfig, Transformer, float8, float8_fails, trial, use_float8
from model.float8 import GRADIENTS, VALUES, Float8Linear

BF16 = 2.0**-8  # how far rounding to bf16 can be off


def kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of `x` in float8: written out, with the rounding of the cast alone borrowed."""
    scale = float(torch.finfo(dtype).max) / float(x.abs().max())
    return (x.float() * scale).to(dtype).float() / scale


def close(ours: Tensor, theirs: Tensor, tolerance: float = BF16) -> None:
    assert (ours.float() - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.fixture
def layer() -> Float8Linear:
    torch.manual_seed(0)
    holder = nn.Sequential(nn.Linear(32, 48))
    assert use_float8([holder]) == 1
    (found,) = holder
    assert isinstance(found, Float8Linear)
    return found


def test_output_and_gradients(layer: Float8Linear):
    x = torch.randn(2, 16, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and y.shape == (2, 16, 48)
    grad = torch.randn_like(y) * 1e-4  # e5m2 would lose most of it without a scale
    y.backward(grad)
    x8, w8, g8 = kept(x.detach().bfloat16(), VALUES), kept(layer.weight.detach(), VALUES), kept(grad, GRADIENTS)
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    close(y.detach(), x8 @ w8.t() + layer.bias.detach(), 2 * BF16)
    close(x.grad, g8 @ w8, 2 * BF16)
    close(layer.weight.grad, g8.flatten(0, 1).t() @ x8.flatten(0, 1))
    close(layer.bias.grad, grad.float().sum((0, 1)))
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    exact = x.detach() @ layer.weight.detach().t() + layer.bias.detach()
    assert (y.float() - exact).norm() < 0.05 * exact.norm()


def test_whatever_is_not_finite_stays_so_and_zeros_are_zeros(layer: Float8Linear):
    for spoiled in (float("nan"), float("inf")):
        x = torch.randn(16, 32)
        x[3, 5] = spoiled
        with torch.autocast("cpu", torch.bfloat16):
            assert not layer(x)[3].isfinite().any()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(torch.zeros(16, 32)), layer.bias.bfloat16().expand(16, 48))


def test_without_autocast_it_is_an_ordinary_layer(layer: Float8Linear):
    x = torch.randn(3, 32)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_a_model_keeps_its_weights_and_names():
    model = Transformer(ModelConfig(preset="gpt2", layers=2, dim=32, heads=2, hidden=72, context=32), 37)
    before = dict(model.named_parameters())
    assert use_float8(model.blocks) == 2 * 4  # q, k, v, out; 16 does not divide 72
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is p for name, p in before.items())
    tokens = torch.randint(0, 37, (2, 32))
    torch.nn.init.normal_(model.blocks[0].attention.out.weight, std=0.2)
    plain = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        loss = (low := model(tokens)).float().pow(2).sum()
    loss.backward()
    assert (low - plain).norm() < 0.1 * plain.norm()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_compiled_it_is_the_same(layer: Float8Linear):
    x = torch.randn(2, 16, 32)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
    found = []
    for module in (layer, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        found.append([y, *torch.autograd.grad(y.float().pow(2).sum(), list(layer.parameters()))])
    for ours, theirs in zip(*found, strict=True):  # a last bit of bf16 may turn a gradient's float8, of 2 bits, over
        assert (ours - theirs).norm() <= 0.02 * ours.norm()


@pytest.mark.parametrize(("capability", "fails"), [((8, 0), True), ((8, 9), False), ((9, 0), False), ((12, 0), False)])
def test_what_can_multiply_in_float8(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], fails: bool):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    monkeypatch.setattr(trial, "_compare_float8", lambda device: None)
    reason = float8_fails(torch.device("cuda"))
    assert reason == ("it needs compute capability 8.9 (Ada, Hopper, Blackwell), and A100 has 8.0" if fails else None)
    assert float8_fails(torch.device("cpu")) == "it needs an NVIDIA GPU, and this is cpu"


def test_a_trial_of_its_products(monkeypatch: pytest.MonkeyPatch):
    trial._compare_float8(torch.device("cpu"))
    real = float8._product
    monkeypatch.setattr(float8, "_product", lambda a, b, dtype, fast: real(a, b, dtype, fast=fast) * 1.2)
    with pytest.raises(ArithmeticError, match="its output differs from fp32 by 0.2 of its size"):
        trial._compare_float8(torch.device("cpu"))
