"""One token a step: the model's weights, a cache of keys and values, and buffers, all made once for a text.

B rows, T tokens of a prompt, S slots of the cache, L layers, V vocabulary, D width, H query heads, G of them to each of
the KV key and value heads, K head width, F width of the feed-forward layer.

On a CPU a step of a small model takes as long as reading the weights and starting some hundred operators. Each layer
here is about 25 operators that write to buffers which are there already; views of the cache, the only thing that grows,
are made for all layers at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pages import Pages
from .products import Product, Weights, product
from .transformer import Block, Extend, RMSNorm, Transformer

gelu_ = torch.ops.aten.gelu_.default  # `F.gelu` has no form that writes to a buffer


class Reader(Protocol):
    """What continues texts. Logits (B, V), fp32, hold until the next call."""

    def read(self, windows: list[list[int]]) -> Tensor:
        """Logits after each window; what was read before is forgotten."""
        ...

    def step(self, ids: list[int]) -> Tensor:
        """Logits after one more id in each row."""
        ...


class Cache:
    """Keys and values of the tokens so far, (L, 2, B, KV, S, K), allocated once; a token's slot is its position.

    A row's slots from its next position on may hold anything: no token sees a slot after its own.
    """

    held: Tensor

    def __init__(self, layers: int, slots: int) -> None:
        self.layers = layers
        self.slots = slots

    def mask(self, positions: Tensor) -> Tensor:
        """Who sees which slot, bool (B, 1, T, S), for tokens at `positions` (B, T)."""
        return torch.arange(self.slots, device=positions.device) <= positions[:, None, :, None]

    def extend(self, layer: int, positions: Tensor) -> Extend:
        """A function that stores this layer's keys and values (B, KV, T, K) at `positions` and returns all S slots."""

        def store(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            if not hasattr(self, "held"):
                shape = (self.layers, 2, *k.shape[:2], self.slots, k.shape[-1])
                on_cpu = k.device.type == "cpu"
                self.held = Pages(0).empty(shape, k.dtype).zero_() if on_cpu else k.new_zeros(shape)
            index = positions[:, None, :, None].expand_as(k)
            held_k, held_v = self.held[layer]
            return held_k.scatter_(2, index, k), held_v.scatter_(2, index, v)

        return store


class ThroughModule:
    """A reader that calls the module for every token: for weights that are sharded, which only it can gather."""

    def __init__(self, model: Transformer, slots: int) -> None:
        self.model = model
        self.cache = Cache(model.config.layers, slots)
        self.lengths: list[int] = []

    def read(self, windows: list[list[int]]) -> Tensor:
        self.lengths = [0 for _ in windows]
        return self.logits(self.hidden(windows))

    def step(self, ids: list[int]) -> Tensor:
        return self.logits(self.hidden([[token] for token in ids]))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.head_weight).float()

    @torch.no_grad()
    def hidden(self, new: list[list[int]]) -> Tensor:
        """Hidden states (B, D) after further tokens of each row, of unequal number."""
        device = self.model.embed.weight.device
        width = max(map(len, new))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in new], device=device)
        starts = torch.tensor(self.lengths, device=device)
        last = torch.tensor([len(row) - 1 for row in new], device=device)
        positions = starts[:, None] + torch.arange(width, device=device)
        hidden = self.model(tokens, positions, logits=False, cache=self.cache)
        self.lengths = [length + len(row) for length, row in zip(self.lengths, new, strict=True)]
        return hidden[torch.arange(len(new), device=device), last]


class Decoder:
    """A reader with a fast path for single tokens; windows are read by the module, whose weights must all be here.

    Products take weights in fp32, or in bf16 or int8 with activations in bf16 (`products`). All else is in fp32, also
    under autocast. Matrices may be copied, so a change of the weights asks for a new decoder.
    """

    def __init__(self, model: Transformer, rows: int, slots: int, weights: Weights = "fp32") -> None:
        config, embed = model.config, model.embed.weight.detach()
        self.module = ThroughModule(model, slots)
        self.embed, self.device = embed, embed.device
        self.position = None if model.position is None else model.position.weight.detach()
        with torch.inference_mode():
            new = partial(torch.empty, dtype=embed.dtype, device=embed.device)
            self.given = torch.empty(2, rows, dtype=torch.long, device=embed.device)
            self.x, self.h = new(rows, config.dim), new(rows, config.dim)
            self.logits = new(rows, model.vocab_size)
            self.attention = StepAttention(model, rows, slots, new)
            pages = Pages()
            blocks = (cast(Block, block) for block in model.blocks)
            self.layers = [Layer(block, self.x, self.h, self.attention, weights, pages) for block in blocks]
            self.norm = norm(model.norm, self.x, self.h)
            self.head = product([model.head_weight], [None], self.h, self.logits, weights, pages)

    def read(self, windows: list[list[int]]) -> Tensor:
        """As `Reader`: by the module, in fp32 but for the head."""
        self.module.lengths = [0 for _ in windows]
        with torch.autocast(self.device.type, enabled=False):
            hidden = self.module.hidden(windows)
            with torch.inference_mode():
                self.h.copy_(hidden)
                self.head()
        return self.logits

    @torch.inference_mode()
    def step(self, ids: list[int]) -> Tensor:
        """As `Reader`."""
        with torch.autocast(self.device.type, enabled=False):
            positions = self.module.lengths
            self.given.copy_(torch.tensor([ids, positions]))  # the one copy to a device, which has nothing to do yet
            torch.index_select(self.embed, 0, self.given[0], out=self.x)
            if self.position is not None:
                self.x.add_(self.position.index_select(0, self.given[1]))
            self.attention.turn_to(self.module.cache.held, positions, self.given[1])
            for number, layer in enumerate(self.layers):
                layer(number)
            self.norm()
            self.head()
        self.module.lengths = [position + 1 for position in positions]
        return self.logits


class Layer:
    """A block for one token a row: adds to the residual stream x (B, D), with h (B, D) to work in."""

    def __init__(
        self, block: Block, x: Tensor, h: Tensor, attention: "StepAttention", weights: Weights, pages: Pages
    ) -> None:
        def joined(linears: Sequence[nn.Linear], x: Tensor, out: Tensor) -> Product:
            return product([each.weight for each in linears], [each.bias for each in linears], x, out, weights, pages)

        self.x, self.h, self.attention = x, h, attention
        inner, mlp = block.attention, block.mlp
        into = [inner.q, inner.k, inner.v]
        self.attention_norm = norm(block.attention_norm, x, h)
        self.qkv = joined(into, h, attention.qkv.flatten(1))
        self.head_norm: Product = partial(attention.turned.copy_, attention.qk)
        if isinstance(inner.q_norm, RMSNorm) and isinstance(inner.k_norm, RMSNorm):
            self.head_norm = RMS([inner.q_norm, inner.k_norm], attention.heads, attention.qk, attention.turned)
        self.out = joined([inner.out], attention.y, h)
        self.mlp_norm = norm(block.mlp_norm, x, h)
        first = [mlp.up] if mlp.gate is None else [mlp.gate, mlp.up]
        wide = x.new_empty(len(x), len(first), mlp.up.out_features)
        self.gate, self.up = wide[:, 0], wide[:, -1]
        self.gated, self.approximate = mlp.gate is not None, mlp.approximate
        self.hidden = torch.empty_like(self.up) if self.gated else self.up
        self.gate_up = joined(first, h, wide.flatten(1))
        self.down = joined([mlp.down], self.hidden, h)

    def __call__(self, number: int) -> None:
        """The layer's `number` is that of its part of the cache."""
        self.attention_norm()
        self.qkv()
        if self.attention.rope:
            self.head_norm()
        self.attention(number)
        self.out()
        self.x.add_(self.h)
        self.mlp_norm()
        self.gate_up()
        if self.gated:
            torch.mul(F.silu(self.gate, inplace=True), self.up, out=self.hidden)
        else:
            gelu_(self.hidden, approximate=self.approximate)
        self.down()
        self.x.add_(self.h)


class StepAttention:
    """Attention of one token a row to those before it and itself, between buffers that all layers share.

    `qkv` (B, H + 2 KV, K) is what it reads and `y` (B, D) what it writes; with rotary positions, queries and keys are
    read from `turned` (B, H + KV, K) instead, where they are put after their norm, and written to `qkv` as they turn.
    """

    def __init__(self, model: Transformer, rows: int, slots: int, new: Callable[..., Tensor]) -> None:
        config = model.config
        heads, kv, width = config.heads, config.num_kv_heads, config.head_dim
        self.heads, self.kv, self.group, self.scale = (heads, kv), kv, heads // kv, width**-0.5
        self.rope = None if config.preset == "gpt2" else (model.cos, model.sin)
        self.qkv, self.turned = new(rows, heads + 2 * kv, width), new(rows, heads + kv, width)
        self.qk, self.new = self.qkv[:, :-kv], self.qkv[:, heads:].unflatten(1, (2, kv)).transpose(0, 1)
        self.halves = list(zip(self.turned.chunk(2, -1)[::-1], self.qk.chunk(2, -1), strict=True))
        self.y = new(rows, config.dim)
        # A batch of a head's queries must be one view: alone they are, else they are copied out of `qkv`
        self.q_of = self.qkv[:, :heads]
        self.q = self.q_of if rows == 1 else new(rows, heads, width)
        shape = (rows * kv, self.group, width)
        self.queries, self.result = self.q.view(shape), self.y.view(shape)
        self.room = new(2, rows * heads * slots)

    def turn_to(self, held: Tensor, positions: list[int], where: Tensor) -> None:
        """Go to the next token: the cache, the rows' positions, and the same on the device."""
        length, alike = max(positions) + 1, min(positions) == max(positions)
        past = held.flatten(2, 3)[:, :, :, :length]
        self.keys, self.values = past[:, 0].transpose(2, 3).unbind(), past[:, 1].unbind()
        batch, group, _ = self.queries.shape
        self.scores, self.shares = self.room[:, : batch * group * length].view(2, batch, group, length).unbind()
        self.bias, self.index = self.scores, None
        if alike:
            self.slots = held[..., length - 1, :].unbind()
        else:
            self.slots = held.unbind()
            self.index = where[:, None, None, None].expand(self.new[..., None, :].shape)
            unseen = torch.arange(length, device=where.device) > where[:, None]
            bias = torch.zeros_like(unseen, dtype=held.dtype).masked_fill_(unseen, -torch.inf)
            self.bias = bias.repeat_interleave(self.kv, 0)[:, None]
        if self.rope is not None:
            cos, sin = (table[length - 1] if alike else table[where][:, None] for table in self.rope)
            self.cos, self.sin = cos, sin.chunk(2, -1)

    def __call__(self, number: int) -> None:
        if self.rope is not None:
            torch.mul(self.turned, self.cos, out=self.qk)
            for (other, half), sin in zip(self.halves, self.sin, strict=True):
                half.addcmul_(other, sin)
        if self.index is None:
            self.slots[number].copy_(self.new)
        else:
            self.slots[number].scatter_(3, self.index, self.new[..., None, :])
        if self.q is not self.q_of:
            self.q.copy_(self.q_of)
        beta = 0 if self.index is None else 1
        keys = self.keys[number]
        torch.baddbmm(self.bias, self.queries, keys, beta=beta, alpha=self.scale, out=self.scores)
        torch.softmax(self.scores, -1, out=self.shares)
        torch.bmm(self.shares, self.values[number], out=self.result)


class RMS:
    """RMSNorm of x (..., N, width) to `out`, each of the N with its gain: x / sqrt(|x|^2 + width eps) * gain'."""

    def __init__(self, norms: Sequence[RMSNorm], counts: Sequence[int], x: Tensor, out: Tensor) -> None:
        width, eps = x.shape[-1], norms[0].eps or 0.0
        self.x, self.out = x, out
        self.gain = torch.cat([norm.weight.expand(n, -1) for norm, n in zip(norms, counts, strict=True)]) * width**0.5
        self.length = x.new_empty(*x.shape[:-1], 1)
        self.floor = x.new_tensor((width * eps) ** 0.5)

    def __call__(self) -> None:
        torch.linalg.vector_norm(self.x, dim=-1, keepdim=True, out=self.length)
        torch.div(self.x, self.length.hypot_(self.floor), out=self.out).mul_(self.gain)


def norm(module: nn.Module, x: Tensor, out: Tensor) -> Product:
    """A function that writes the norm of x (B, D) to `out`."""
    if isinstance(module, RMSNorm):
        return RMS([module], [1], x, out)
    assert isinstance(module, nn.LayerNorm)
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda: out.copy_(torch.layer_norm(x, shape, weight, bias, eps))
