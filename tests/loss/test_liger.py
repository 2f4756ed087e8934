"""Liger's kernel: when it is taken, that it is refused where it is wrong, and its numbers, in Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F

from loss import Head, build_objective, liger
from loss.rows import IGNORE, Selection
from scripts.doctor import ROOT

CPU = torch.device("cpu")
PLAIN = (CPU, torch.float32, torch.float32, None, False, None)


def plain(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    assert targets.min() >= 0 or targets.min() == IGNORE
    logits = head.logits(hidden)
    return F.cross_entropy(logits, targets, reduction="sum"), logits.argmax(1)


@pytest.fixture(autouse=True)
def forget():
    liger.found_right.cache_clear()
    yield
    liger.found_right.cache_clear()


def test_a_right_kernel_is_taken_and_a_wrong_one_is_not(monkeypatch):
    monkeypatch.setattr(liger, "cross_entropy", plain)
    assert liger.found_right(*PLAIN)
    for wrong in (
        lambda h, head, t: (plain(h, head, t)[0] * 1.01, plain(h, head, t)[1]),
        lambda h, head, t: (plain(h.detach(), head, t)[0] + 0 * h.sum(), plain(h, head, t)[1]),
        lambda h, head, t: (plain(h, head, t)[0], plain(h, head, t)[1] * 0),
        lambda h, head, t: 1 / 0,
    ):
        monkeypatch.setattr(liger, "cross_entropy", wrong)
        liger.found_right.cache_clear()
        with pytest.warns(UserWarning, match="liger-kernel is not used"):
            assert not liger.found_right(*PLAIN)


def test_without_it_nothing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not liger.found_right(*PLAIN)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_its_sums_are_those_of_the_fused_head(monkeypatch, softcap):
    """With the kernel's place taken by plain torch: what is made of its results."""
    monkeypatch.setattr(liger, "cross_entropy", plain)
    monkeypatch.setattr("loss.objective.serves", lambda *_: True)
    # As on a GPU, where masked rows reach the kernel.
    monkeypatch.setattr(
        Selection, "of", classmethod(lambda cls, t: cls(t.shape, (t != IGNORE).flatten(), None, masked=True))
    )
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 9, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    targets = torch.randint(0, 11, (4, 9))
    targets[0, 2:], targets[3] = IGNORE, IGNORE
    outs = [
        build_objective({"base": "ce", "fused": fused}, vocab_size=11)(
            hidden, Head(weight, softcap=softcap), targets, denom=40
        )
        for fused in ("auto", "on")
    ]
    torch.testing.assert_close(outs[0].loss, outs[1].loss)
    assert outs[0].sums.keys() == outs[1].sums.keys()
    for name, value in outs[1].sums.items():
        torch.testing.assert_close(outs[0].sums[name].double(), value.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(out.loss, [hidden, weight]) for out in outs))


def test_it_serves_plain_cross_entropy_alone(monkeypatch):
    monkeypatch.setattr(liger, "found_right", lambda *_: True)
    rows = type("Rows", (), {"weight": None})()
    hidden = type("Hidden", (), {"device": torch.device("cuda"), "dtype": torch.float32})()
    head = Head(torch.zeros(5, 2))

    def serves(config, head=head, rows=rows, hidden=hidden):
        measure = build_objective(config, vocab_size=5, sources=("a",)).recipe.at(0.0, CPU, torch.float32)
        return liger.serves(measure, head, rows, hidden)

    assert serves("ce") and serves("ce", head=head._replace(softcap=3.0))
    for other in (
        {"base": {"ce": {"coef": 0.5}}}, {"base": {"smooth": {}}}, {"base": "ce", "add": ["z"]},
        {"base": "ce", "weights": ["position"]}, {"base": "ce", "logits": ["softcap"]}, {"base": "ce", "ahead": [0.1]},
    ):  # fmt: skip
        assert not serves(other)
    assert not serves("ce", rows=type("Rows", (), {"weight": torch.ones(3)})())
    assert not serves("ce", hidden=torch.zeros(3, 2))


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs the extra `liger`")
def test_the_kernel_itself_in_triton_s_interpreter():
    """On a CPU, in a process of its own: the interpreter is chosen when triton is imported."""
    code = """
import torch
from loss.liger import found_right
cpu, f32, bf16 = torch.device("cpu"), torch.float32, torch.bfloat16
for case in ((f32, f32, None, False, None), (bf16, bf16, None, False, None), (f32, f32, None, True, None)):
    assert found_right(cpu, *case), case
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
