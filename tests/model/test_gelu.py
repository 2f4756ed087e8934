"""GELU as one operator: the numbers of torch's, and used where a CPU's blocks are compiled, only there."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import ModelConfig
from model.gelu import whole_gelu, whole_gelu_backward
from model.transformer import MLP

FORMS = pytest.mark.parametrize("approximate", ["none", "tanh"])


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs_with_its_gradient(approximate: str, dtype: torch.dtype):
    x = torch.linspace(-6, 6, 60).view(3, 20).to(dtype).t().requires_grad_()  # not contiguous
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    made = []
    for gelu in (whole_gelu, F.gelu):
        y = gelu(x, approximate=approximate)
        made.append((y.detach(), *torch.autograd.grad(y, x, upstream)))
    for ours, theirs in zip(*made, strict=True):
        assert torch.equal(ours, theirs)


@FORMS
def test_it_keeps_the_rules_of_operators(approximate: str):
    """Its layout without contents, its gradient and what a graph of it computes, by torch's own checks."""
    x = torch.randn(4, 6)
    torch.library.opcheck(whole_gelu, (x.clone().requires_grad_(), approximate))
    for grad in (torch.randn(4, 6), torch.randn(6, 4).t()):
        torch.library.opcheck(whole_gelu_backward, (grad, x, approximate))


@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_compiled_for_a_cpu_the_feed_forward_layer_has_it(preset: Literal["gpt2", "qwen3"]):
    mlp = MLP(ModelConfig(layers=1, dim=16, heads=2, context=8, preset=preset))
    x, called = torch.randn(2, 3, 16), list[str]()

    def look(graph: torch.fx.GraphModule, example: list[Tensor]):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(mlp, backend=look, dynamic=False)
    torch.testing.assert_close(compiled(x), mlp(x))
    assert any("thimble.gelu" in name for name in called) == (preset == "gpt2")
    torch.compiler.reset()
