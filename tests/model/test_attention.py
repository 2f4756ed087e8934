"""Documents kept apart by tiles, against torch's own way to make such a mask and against the dense mask."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask

from model import ModelConfig, Transformer, tiles_fail, trial
from model.attention import attend, document_mask, document_tiles

CPU = torch.device("cpu")
PARTS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
         "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")  # fmt: skip


def positions_of(lengths: list[int], T: int) -> Tensor:
    """(T,) of documents of such lengths, the last as long as it fits."""
    return torch.cat([torch.arange(n) for n in (*lengths, T)])[:T]


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses FlexAttention's gradients on a CPU for want of a fast kernel; its definition has them."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *inputs: None)
    monkeypatch.setattr(flex_attention, "_warn_once", lambda *given, **named: None)  # that it is slow


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 600), st.lists(st.lists(st.integers(1, 300), max_size=6), min_size=1, max_size=3))
def test_tiles_are_those_of_a_whole_mask(T: int, rows: list[list[int]]):
    positions = torch.stack([positions_of(lengths, T) for lengths in rows])
    ours = document_tiles(positions)
    theirs = create_block_mask(ours.mask_mod, len(rows), None, T, T, device="cpu")
    assert ours.shape == theirs.shape and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
    assert all(torch.equal(getattr(ours, part), getattr(theirs, part)) for part in PARTS)
    b, q, k = (torch.arange(n).view(shape) for n, shape in ((len(rows), (-1, 1, 1)), (T, (-1, 1)), (T, (-1,))))
    assert torch.equal(ours.mask_mod(b, 0, q, k), document_mask(positions)[:, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize("heads, groups", [(2, 2), (4, 1)])
def test_tiles_give_what_the_dense_mask_gives(flex_on_cpu: None, heads: int, groups: int):
    T = 200
    positions = torch.stack([positions_of([70, 3], T), positions_of([130], T)])
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, T, 16, requires_grad=True) for n in (heads, groups, groups))
    found = []
    for mask in (document_tiles(positions), document_mask(positions)):
        y = attend(q, k, v, mask, 0.0)
        found.append([y, *torch.autograd.grad(y.pow(3).sum(), (q, k, v))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_model_with_tiles_is_the_same_model(flex_on_cpu: None):
    T = 150
    torch.manual_seed(0)
    model = Transformer(ModelConfig(layers=2, dim=32, heads=2, kv_heads=1, context=T), 37)
    torch.nn.init.normal_(model.blocks[0].attention.out.weight, std=0.2)  # type: ignore[union-attr, arg-type]
    tokens, positions = torch.randint(0, 37, (2, T)), positions_of([20, 50], T).expand(2, T)
    plain = model(tokens, positions, logits=False)
    model.tiles = True
    torch.testing.assert_close(model(tokens, positions, logits=False), plain, rtol=1e-4, atol=1e-5)


def test_a_trial_says_why_tiles_cannot_be_had(flex_on_cpu: None, monkeypatch: pytest.MonkeyPatch):
    shape = ModelConfig(layers=1, dim=32, heads=2, kv_heads=1, context=200)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert tiles_fail(shape, CPU, torch.float32) is None
    assert tiles_fail(replace(shape, dropout=0.1), CPU, torch.float32) == "it has no dropout"
    reason = tiles_fail(replace(shape, heads=4), CPU, torch.float32)
    assert reason == "heads are 8 wide, and it takes 16 or more"
    monkeypatch.setattr(trial, "document_tiles", lambda positions: document_tiles(positions.roll(1, 1)))
    reason = tiles_fail(shape, CPU, torch.float32)
    assert reason is not None and "its output differs from the dense mask's by" in reason
    monkeypatch.undo()
    reason = tiles_fail(shape, CPU, torch.float32)
    assert reason is not None and reason.startswith("NotImplementedError: FlexAttention does not support backward")


@pytest.mark.soak
def test_tiles_compiled_for_this_machine():
    """By the kernel that torch generates for a CPU, which has no gradients."""
    T = 300
    positions = torch.stack([positions_of([70, 3], T), positions_of([130], T)])
    q, k, v = (torch.randn(2, n, T, 32) for n in (4, 2, 2))
    compiled = torch.compile(attend, dynamic=False)
    ours, theirs = (f(q, k, v, m(positions), 0.0) for f, m in ((compiled, document_tiles), (attend, document_mask)))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
