"""The decoder: who sees whom, numerics, weights at the start, and counts worked out by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import ModelConfig, Transformer
from model.attention import attend, document_mask
from model.transformer import RMSNorm, init_table

from .conftest import PRESETS, VOCAB, Make, Preset


def restarting(*lengths: int) -> Tensor:
    """Positions (1, sum of lengths) of documents of these lengths."""
    return torch.cat([torch.arange(n) for n in lengths])[None]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("masked", [False, True])
def test_no_token_sees_a_later_one(make: Make, tokens: Tensor, preset: Preset, masked: bool) -> None:
    model = make(preset=preset, kv_heads=None if preset == "gpt2" else 2)
    positions = torch.arange(24).expand(3, 24) if masked else None
    before = model(tokens, positions)
    for at in (0, 11, 23):
        changed = tokens.clone()
        changed[:, at] = (changed[:, at] + 1) % VOCAB
        difference = (model(changed, positions) - before).abs().amax(-1)
        assert torch.equal(difference[:, :at], torch.zeros(3, at))
        assert (difference[:, at:] > 1e-4).all()  # and every later one does see it


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5).filter(lambda x: sum(x) <= 24))
def test_a_packed_row_equals_its_documents_alone(preset: Preset, lengths: list[int]) -> None:
    torch.manual_seed(3)
    model = Transformer(ModelConfig(preset=preset, layers=2, dim=32, heads=4, context=24), VOCAB).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.2)
    row = torch.randint(VOCAB, (1, sum(lengths)))
    packed = model(row, restarting(*lengths))
    alone = torch.cat([model(document) for document in row.split(lengths, dim=1)], dim=1)
    assert (packed - alone).abs().max() < 1e-5


@pytest.mark.parametrize("preset", PRESETS)
def test_no_positions_means_one_document(make: Make, tokens: Tensor, preset: Preset) -> None:
    model = make(preset=preset)
    assert (model(tokens) - model(tokens, torch.arange(24).expand(3, 24))).abs().max() < 1e-5


def test_document_mask_by_hand() -> None:
    want = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert torch.equal(document_mask(torch.tensor([[0, 1, 0, 0]]))[0, 0], want)


@pytest.mark.parametrize("tie", [True, False])
def test_hidden_states_and_head_give_the_logits(make: Make, tokens: Tensor, tie: bool) -> None:
    model = make(tie=tie)
    assert model.head_weight.shape == (VOCAB, 32)
    assert (model.head_weight is model.embed.weight) is tie
    assert torch.equal(F.linear(model(tokens, logits=False), model.head_weight), model(tokens))


def test_rows_longer_than_the_context_are_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="rows of 25 tokens do not fit the model's context of 24"):
        make()(torch.zeros(1, 25, dtype=torch.long))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 30, "heads": 4}, "heads 4 does not divide dim 30"),
        ({"dim": 32, "heads": 4, "kv_heads": 3}, "kv_heads 3 does not divide heads 4"),
        ({"preset": "gpt2", "heads": 4, "kv_heads": 2}, "no grouped-query attention"),
        ({"dim": 12, "heads": 4}, "even head width"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**sizes)


# Attention and norm against their definitions.


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The definition, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [16, 300, 1030])  # in bf16 one tile, several, and more than attend takes by tiles
@pytest.mark.parametrize("heads_of_keys", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attend_and_its_gradients_are_the_definition(
    dtype: torch.dtype, tolerance: float, heads_of_keys: int, size: int, masked: bool
) -> None:
    is_the_definition(attend, dtype, tolerance, heads_of_keys, size, masked)


@pytest.mark.soak
@pytest.mark.parametrize("masked", [False, True])
def test_attend_compiled_for_this_machine_is_the_definition(masked: bool) -> None:
    is_the_definition(torch.compile(attend, dynamic=False), torch.bfloat16, 0.03, 2, 300, masked)


def is_the_definition(
    attention: Callable[..., Tensor],
    dtype: torch.dtype,
    tolerance: float,
    heads_of_keys: int,
    size: int,
    masked: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)
    heads, repeat = (4, heads_of_keys, heads_of_keys, 4), 4 // heads_of_keys
    draws = [torch.randn(2, count, size, 8, generator=generator).to(dtype) for count in heads]
    mask = document_mask(torch.arange(size).remainder(size // 2).expand(2, size))
    seen = mask if masked else torch.ones(size, size, dtype=torch.bool).tril()
    results = []
    for exact in (False, True):
        inputs = [t.double() if exact else t for t in draws[:3]]
        q, k, v = leaves = [t.clone().requires_grad_() for t in inputs]
        if exact:
            out = softmax_attention(q, k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1), seen)
        else:
            out = attention(q, k, v, mask if masked else None, 0.0)
        out.backward(draws[3].to(out.dtype))
        results.append([out, *(t.grad for t in leaves)])
    for ours, exact_one in zip(*results, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - exact_one).norm() < tolerance * exact_one.norm()


@pytest.mark.parametrize(("scale", "output", "worst"), [(1, 0.004, 0.005), (2, 0.009, 0.012), (3, 0.013, 0.024)])
def test_the_price_of_scores_in_bf16_is_what_is_documented(scale: float, output: float, worst: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4, 1, 2, 1024, 64, generator=generator) * torch.tensor([scale, scale, 1, 1]).view(4, 1, 1, 1, 1)
    seen = torch.ones(1024, 1024, dtype=torch.bool).tril()
    results = []
    for way in ("ours", "torch", "exact"):
        q, k, v = leaves = [t.bfloat16().to(torch.float64 if way == "exact" else torch.bfloat16) for t in draws[:3]]
        for leaf in leaves:
            leaf.requires_grad_()
        if way == "exact":
            out = softmax_attention(q, k, v, seen)
        else:
            out = (
                attend(q, k, v, None, 0.0) if way == "ours" else F.scaled_dot_product_attention(q, k, v, is_causal=True)
            )
        out.backward(draws[3].to(out.dtype))
        results.append([t.detach().double() for t in (out, q.grad, k.grad, v.grad) if t is not None])
    errors = [[float((a - b).norm() / b.norm()) for a, b in zip(way, results[2], strict=True)] for way in results[:2]]
    (ours, *gradients), (torchs, *torchs_gradients) = errors
    assert ours == pytest.approx(output, rel=0.15) and torchs == pytest.approx(0.002, rel=0.25)
    assert max(gradients) == pytest.approx(worst, rel=0.15) and 0.0035 < max(torchs_gradients) < 0.0065


def test_rms_norm_and_its_gradients_are_torch_s() -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 3, 5, 8, generator=generator)
    ours, torchs = RMSNorm(8, eps=1e-3), nn.RMSNorm(8, eps=1e-3)
    gain = torch.randn(8, generator=generator)
    results = []
    for module in (ours, torchs):
        module.weight.data = gain.clone()
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.backward(grad)
        results.append((out, leaf.grad, module.weight.grad))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < 1e-5
    ours.double()
    leaf = x.double().requires_grad_()
    assert torch.autograd.gradcheck(ours, (leaf,))
    assert ours.float()(x.bfloat16()).dtype == torch.bfloat16


def test_rms_norm_of_zeros_is_zero_with_finite_gradients() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = RMSNorm(8, eps=1e-6)(x)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 8))
    assert x.grad is not None and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("gain_dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(8,), (3, 2, 8)])
def test_a_norm_of_any_floats_has_gradients(x_dtype: torch.dtype, gain_dtype: torch.dtype, shape: tuple[int, ...]):
    ours, plain = RMSNorm(8, eps=1e-3).to(gain_dtype), nn.RMSNorm(8, eps=1e-3).double()
    x = torch.randn(shape).to(x_dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    toward = torch.randn(shape, dtype=torch.float64)
    (ours(x).double() * toward).sum().backward()
    (plain(wide) * toward).sum().backward()
    for found, wanted in ((x, wide), (ours.weight, plain.weight)):
        assert found.grad is not None and wanted.grad is not None and found.grad.dtype == found.dtype
        assert (found.grad - wanted.grad).norm() <= 0.02 * wanted.grad.norm()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("masked", [False, True])
def test_bf16_autocast_stays_near_fp32(make: Make, tokens: Tensor, preset: Preset, masked: bool) -> None:
    model = make(preset=preset)
    positions = restarting(10, 14).expand(3, 24) if masked else None
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            hidden = model(tokens, positions, logits=False)
        assert hidden.dtype == torch.float32
        gradients = torch.autograd.grad(hidden.pow(3).sum(), list(model.blocks.parameters()))
        results.append([hidden, torch.cat([g.flatten() for g in gradients])])
    for full, half in zip(*results, strict=True):
        assert (full - half).norm() < 0.05 * full.norm()


def test_compiled_without_graph_breaks_or_recompiles(make: Make, tokens: Tensor) -> None:
    model = make()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    positions = restarting(10, 14).expand(3, 24)
    assert torch.equal(compiled(tokens), model(tokens))
    assert torch.equal(compiled(tokens, positions), model(tokens, positions))


@pytest.mark.parametrize("preset", PRESETS)
def test_compiled_gradients_are_the_same(make: Make, tokens: Tensor, preset: Preset) -> None:
    model = make(preset=preset)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    positions = restarting(10, 14).expand(3, 24)
    results = []
    for module in (model, compiled):
        loss = module(tokens, positions).pow(2).sum()
        results.append(torch.autograd.grad(loss, list(model.parameters())))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * ours.norm()


# Activations computed again.


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputing_keeps_less_and_changes_no_bit(make: Make, tokens: Tensor, preset: Preset, dropout: float) -> None:
    model = make(preset=preset, layers=4, dropout=dropout).train()
    positions = restarting(10, 14).expand(3, 24)
    results, kept = [], []
    for model.recompute in (False, True):
        kept.append(0)

        def keep(tensor: Tensor) -> Tensor:
            kept[-1] += tensor.nbytes
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(tokens, positions).pow(2).sum()
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    assert kept[1] < kept[0] / 3


def test_compiled_blocks_are_recomputed_compiled(make: Make, tokens: Tensor) -> None:
    model = make()
    model.recompute = True
    plain = torch.autograd.grad(model(tokens).pow(2).sum(), list(model.parameters()))
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    for block in model.blocks:
        block.compile(backend=count, fullgraph=True, dynamic=False)
    compiled = torch.autograd.grad(model(tokens).pow(2).sum(), list(model.parameters()))
    assert graphs
    for ours, theirs in zip(plain, compiled, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * ours.norm()


# Dropout.


@pytest.mark.parametrize("preset", PRESETS)
def test_dropout_acts_in_training_only(make: Make, tokens: Tensor, preset: Preset) -> None:
    model = make(preset=preset, dropout=0.5)
    plain = make(preset=preset)
    assert torch.equal(model(tokens), plain(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    assert torch.equal(plain.train()(tokens), plain(tokens))


def test_dropout_acts_on_the_embedding_and_both_branches(
    make: Make, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, bool]] = []

    def record(x: Tensor, p: float, training: bool) -> Tensor:
        seen.append((p, training))
        return x

    monkeypatch.setattr(F, "dropout", record)
    make(dropout=0.25).train()(tokens)
    assert seen == [(0.25, True)] * (1 + 2 * 2)  # and twice in each of two blocks; attention weights have their own


def test_dropout_reaches_attention_weights_in_both_ways_of_attend() -> None:
    ones = torch.ones(1, 1, 64, 8)
    for dtype in (torch.float32, torch.bfloat16):
        value = ones.to(dtype)
        assert torch.allclose(attend(value, value, value, None, 0.0), value, atol=0.01)
        dropped = attend(value, value, value, None, 0.5).float()
        assert dropped[0, 0, 0].unique().tolist() in ([0.0], [2.0])  # the first row has one weight: kept, doubled
        assert 0.7 < dropped[0, 0, 32:].mean() < 1.3


def test_attend_takes_a_batch_of_no_rows() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.zeros(0, 4, 16, 8, dtype=dtype, requires_grad=True)
        attend(q, q, q, None, 0.0).sum().backward()
        assert q.grad is not None and q.grad.shape == q.shape


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.parametrize("size", [24, 200])  # one tile, and two
def test_gradients_under_dropout_are_those_of_what_was_kept(size: int, compiled: bool) -> None:
    attention = torch.compile(attend, dynamic=False) if compiled else attend
    generator = torch.Generator().manual_seed(0)
    q, k, grad = (torch.randn(1, 2, size, size, generator=generator).bfloat16() for _ in range(3))
    v = torch.eye(size).expand_as(q).bfloat16()  # so that the output is the probabilities
    leaves = tuple(t.clone().requires_grad_() for t in (q, k, v))
    torch.manual_seed(1)
    out = attention(leaves[0], leaves[1], leaves[2], None, 0.25)
    out.backward(grad)
    kept = (out > 0).double().detach()
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    assert 0.7 < kept[..., causal].mean() < 0.8 and not kept[..., ~causal].any()
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    scores = (exact[0] @ exact[1].transpose(-2, -1) / math.sqrt(size)).masked_fill(~causal, float("-inf"))
    ((scores.softmax(-1) * kept / 0.75) @ exact[2]).backward(grad.double())
    for ours, theirs in zip(leaves, exact, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()


# Weights at the start.


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tie", [True, False])
def test_init_follows_the_table(preset: Preset, tie: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(preset=preset, layers=2, dim=128, heads=4, context=64, tie=tie)
    model = Transformer(config, 512)
    golden = {"q": 128**-0.5, "k": 128**-0.5, "v": 128**-0.5, "gate": 128**-0.5, "up": 128**-0.5}
    golden |= {"out": 0.0, "down": 0.0, "head": 0.0}
    golden |= dict.fromkeys(("embed", "position"), 0.25 / 128 if tie else init_table(config)["embed.weight"])
    for name, parameter in model.named_parameters():
        owner = name.split(".")[-2]
        if name.endswith("bias"):
            assert (parameter == 0).all()
        elif "norm" in owner:
            assert (parameter == 1).all()
        else:
            assert parameter.mean().abs() <= 0.03 * golden[owner]
            assert parameter.std().item() == pytest.approx(golden[owner], rel=0.03)


def test_init_repeats_with_the_seed() -> None:
    def draw(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return Transformer(ModelConfig(layers=1, dim=16, heads=2), VOCAB).state_dict()

    a, b, c = draw(1), draw(1), draw(2)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["embed.weight"], c["embed.weight"])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("dim", "vocab_size"), [(64, 65), (128, 257), (256, 4096), (768, 4096)])
def test_first_loss_is_ln_v(preset: Preset, dim: int, vocab_size: int) -> None:
    for tie in (True, False):
        torch.manual_seed(0)
        model = Transformer(ModelConfig(preset=preset, layers=1, dim=dim, heads=4, context=64, tie=tie), vocab_size)
        data = torch.randint(vocab_size, (8, 65))
        loss = F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten()).item()
        assert loss == pytest.approx(math.log(vocab_size), rel=0.02 if tie else 1e-6)


def test_every_parameter_learns_in_two_steps(tokens: Tensor) -> None:
    for preset in PRESETS:
        for tie in (True, False):
            torch.manual_seed(0)
            model = Transformer(ModelConfig(preset=preset, layers=2, dim=32, heads=4, context=24, tie=tie), VOCAB)
            start = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            for _ in range(4):  # zero outputs open one after the other: head, blocks' outputs, what is before them
                optimizer.zero_grad()
                F.cross_entropy(model(tokens).transpose(1, 2)[..., :-1], tokens[:, 1:]).backward()
                optimizer.step()
            still = [name for name, p in model.named_parameters() if torch.equal(p, start[name])]
            assert not still


# Roles and counts.


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tie", [True, False])
def test_roles_cover_every_parameter_once(make: Make, preset: Preset, tie: bool) -> None:
    model = make(preset=preset, tie=tie)
    roles = model.roles()
    assert list(roles) == [name for name, _ in model.named_parameters()]
    assert sum(model.get_parameter(name).numel() for name in roles) == model.parameter_count()
    assert roles["embed.weight"] == "embed"
    assert ("head.weight" in roles) is not tie
    assert all(model.get_parameter(name).ndim == 2 for name, role in roles.items() if role == "matrix")
    assert all(model.get_parameter(name).ndim == 1 for name, role in roles.items() if role == "vector")


SIZES: dict[str, Any] = {"layers": 3, "dim": 64, "heads": 4, "context": 40}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # V 100, D 64, feed-forward ceil(8 * 64 / 3) = 171 -> 192, K 16, keys and values 2 * 16 wide.
        # block: q 64*64, k and v 2*32*64, out 64*64, three of 64*192, two gains of 64, two gains of 16
        (ModelConfig(preset="qwen3", kv_heads=2, **SIZES), 100 * 64 + 3 * (4096 + 4096 + 4096 + 36864 + 160) + 64),
        (ModelConfig(preset="llama", tie=False, **SIZES), 2 * 100 * 64 + 3 * (4 * 4096 + 36864 + 128) + 64),
        # block: four of 64*64 with 64 biases, 64*256 with 256 biases, 256*64 with 64 biases, two norms of 2*64
        (
            ModelConfig(preset="gpt2", **SIZES),
            (100 + 40) * 64 + 3 * (4 * (4096 + 64) + (16384 + 256) + (16384 + 64) + 256) + 128,
        ),
    ],
)
def test_parameter_counts_by_hand(config: ModelConfig, count: int) -> None:
    assert Transformer(config, 100).parameter_count() == count


def test_derived_sizes() -> None:
    assert [ModelConfig(dim=dim, heads=4).ffn_dim for dim in (64, 128, 256, 384)] == [192, 352, 704, 1024]
    assert ModelConfig(preset="gpt2", dim=768, heads=12).ffn_dim == 3072
    assert ModelConfig(hidden=100).ffn_dim == 100


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tie", [True, False])
def test_flops_are_those_of_torch_s_counter(make: Make, tokens: Tensor, preset: Preset, tie: bool) -> None:
    model = make(preset=preset, tie=tie, kv_heads=None if preset == "gpt2" else 2)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()
    assert counter.get_total_flops() == model.flops_per_token(24) * tokens.numel()
