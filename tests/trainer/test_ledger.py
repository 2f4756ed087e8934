"""The ledger of tensors' memory: what it counts, and how code runs on tensors without contents."""

import torch
from torch import nn

from trainer.ledger import Ledger, without_contents

KIB = 1024


def test_storages_are_counted_once_and_until_they_are_freed():
    with Ledger("a") as ledger:
        x = torch.zeros(256)
        views = x[3:], x.view(16, 16).t(), x.detach()
        x.add_(1)
        ledger.account = "b"
        y = x + 1
        assert ledger.live == {"a": KIB, "b": KIB} and ledger.peak == 2 * KIB
        del y
        assert ledger.live == {"a": KIB, "b": 0}
        del x
        assert ledger.live["a"] == KIB
        del views
        assert ledger.live.total() == 0
        torch.zeros(256)
    assert ledger.parts == {"a": KIB, "b": KIB}


def test_what_autograd_keeps_is_counted_until_the_backward_pass_has_used_it():
    with Ledger("model") as ledger:
        layer = nn.Linear(16, 16, bias=False)
        x = torch.zeros(4, 16)
        ledger.account = "kept"
        y = (layer(x).exp().exp()).sum()  # each exp keeps its result, and forgets its input
        assert ledger.live["kept"] == 2 * 4 * 16 * 4 + 4
        ledger.account = "gradients"
        y.backward()
        del y
        assert ledger.live["kept"] == 0
        assert ledger.live["gradients"] == layer.weight.numel() * 4


def test_tensors_without_contents_cost_nothing_and_are_ordinary():
    with without_contents("all") as ledger:
        huge = torch.zeros(1 << 30, 1 << 10)
        assert ledger.peak == 4 << 40
        few = huge[:2, :3]
        assert not (few < 0).any() and (few == 0).all() and (few == 0).any(1).shape == (2,)
        assert few.nonzero().shape == (6, 2) and few.sum().item() == 1
        assert type(few) is not torch.Tensor
    assert type(torch.zeros(1)) is torch.Tensor
