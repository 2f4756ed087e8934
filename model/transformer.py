"""The decoder, top down: Transformer, Block, Attention, MLP, then the functions that they call (`attention.py` too).

B rows, T tokens of a row, S keys (T, or the slots of a cache), V vocabulary, D model width, H heads, K head width.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import PRODUCTS, Mask, attend, document_mask, document_tiles
from .config import ModelConfig

if TYPE_CHECKING:
    from .decode import Cache

Role = Literal["matrix", "embed", "head", "vector"]
Rope = tuple[Tensor, Tensor]
Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Transformer(nn.Module):
    """A decoder-only language model: pre-norm blocks between a token embedding and a linear head.

    `qwen3` is RMSNorm, rotary positions, SwiGLU, grouped queries and a norm on each query and key head; `llama` is
    the same without that last norm; `gpt2` is LayerNorm, learned positions, GELU and biases. Weights are drawn from
    torch's default generator (`init_weights`) and held in fp32.
    """

    cos: Tensor
    sin: Tensor
    tiles = False
    """Whether documents of a row are kept apart by FlexAttention, for blocks that are compiled; else by a mask."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, not {vocab_size}")
        self.config = config
        self.vocab_size = vocab_size
        self.embed = nn.Embedding(vocab_size, config.dim)
        self.position = nn.Embedding(config.context, config.dim) if config.preset == "gpt2" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = norm(config, config.dim)
        self.head = None if config.tie else nn.Linear(config.dim, vocab_size, bias=False)
        if config.preset != "gpt2":
            cos, sin = rope_tables(config.context, config.head_dim, config.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        init_weights(self)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, logits: bool = True, cache: "Cache | None" = None
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of `tokens` (B, T), or hidden states (B, T, D) when `logits=False`.

        Hidden states are taken after the final norm: `F.linear(hidden, head_weight)` are the logits.
        `positions` (B, T) start again from 0 with every document of a row, and no token sees another document than
        its own; None means one document a row. With a `cache` (`decode.Cache`) positions are required, say where
        in the cache the tokens go, and one row is one document. Raises ValueError when T is more than
        `config.context`; that positions are below it is not checked, which would wait for the device.
        """
        T = tokens.shape[1]
        if self.config.context < T:
            raise ValueError(f"rows of {T} tokens do not fit the model's context of {self.config.context}")
        x = self.embed(tokens)
        rope = None
        if self.position is not None:
            x = x + (self.position.weight[:T] if positions is None else self.position(positions))
        else:
            rope = (self.cos[:T], self.sin[:T]) if positions is None else (self.cos[positions], self.sin[positions])
        mask: Mask = None
        if positions is not None:
            apart = document_tiles if self.tiles else document_mask
            mask = apart(positions) if cache is None else cache.mask(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            extend = None if cache is None or positions is None else cache.extend(layer, positions)
            x = block(x, rope, mask, extend)
        x = self.norm(x)
        return F.linear(x, self.head_weight) if logits else x

    @property
    def recompute(self) -> bool:
        """Whether blocks compute their activations again in the backward pass instead of keeping them."""
        return all(block.recompute for block in self.blocks)

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        for block in self.blocks:
            block.recompute = wanted  # type: ignore[assignment]

    @property
    def products(self) -> int:
        """Keys up to which a CPU computes attention in bf16 by `Products`."""
        return self.blocks[0].attention.products  # type: ignore[union-attr,return-value]

    @products.setter
    def products(self, keys: int) -> None:
        for block in self.blocks:
            block.attention.products = keys  # type: ignore[union-attr]

    @property
    def head_weight(self) -> Tensor:
        """The output head's weight, a Parameter (V, D): the embedding itself when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def roles(self) -> dict[str, Role]:
        """What each trainable parameter is, by name; a tied weight stands once, as `embed`.

        `matrix`: 2-D weights inside the blocks; `embed`: token and position embeddings; `head`: an untied head;
        `vector`: gains and biases.
        """
        outside: dict[str, Role] = {"embed.weight": "embed", "position.weight": "embed", "head.weight": "head"}
        return {
            name: outside.get(name, "matrix" if parameter.ndim == 2 else "vector")
            for name, parameter in self.named_parameters()
        }

    def parameter_count(self) -> int:
        """Trainable parameters in all, embeddings included, a tied weight once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations to train on one token of rows of `context` tokens: 6 N + 12 L H K T.

        PaLM (Chowdhery et al. 2022, arXiv:2204.02311), appendix B: forward and backward; N counts the weights of
        matrix products (with the head, tied or not; without lookups, gains and biases); attention is counted in
        full, not halved for causality, and recomputation not at all.
        """
        roles = self.roles()
        weights = sum(p.numel() for name, p in self.named_parameters() if roles[name] == "matrix")
        weights += self.head_weight.numel()
        return 6 * weights + 12 * self.config.layers * self.config.dim * context


class Block(nn.Module):
    """Attention, then the feed-forward layer, each on normed input and added to the residual stream."""

    recompute = False
    """Whether to compute all this again in the backward pass instead of keeping it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.attention_norm = norm(config, config.dim)
        self.attention = Attention(config)
        self.mlp_norm = norm(config, config.dim)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope: Rope | None, mask: Mask, extend: Extend | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if not self.recompute:
            return self.both(x, rope, mask, extend)
        # In here, not around the block: a compiled one then plans what it keeps, and hooks of FSDP see it run once.
        random = self.dropout > 0
        return checkpoint(self.both, x, rope, mask, extend, use_reentrant=False, preserve_rng_state=random)

    def both(self, x: Tensor, rope: Rope | None, mask: Mask, extend: Extend | None) -> Tensor:
        """The two layers."""
        attended = self.attention(self.attention_norm(x), rope, mask, extend)
        x = add(x, F.dropout(attended, self.dropout, self.training))
        return add(x, F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training))


class Attention(nn.Module):
    """Causal self-attention with `heads` query heads on `kv_heads` key and value heads.

    The four matrices are separate parameters, so that an optimizer for matrices sees each by itself.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.preset == "gpt2"
        kv_dim = config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        self.products = PRODUCTS
        self.q = nn.Linear(config.dim, config.dim, bias=bias)
        self.k = nn.Linear(config.dim, kv_dim, bias=bias)
        self.v = nn.Linear(config.dim, kv_dim, bias=bias)
        self.out = nn.Linear(config.dim, config.dim, bias=bias)
        self.q_norm = norm(config, config.head_dim) if config.preset == "qwen3" else None
        self.k_norm = norm(config, config.head_dim) if config.preset == "qwen3" else None

    def forward(self, x: Tensor, rope: Rope | None, mask: Mask, extend: Extend | None) -> Tensor:
        """(B, T, D) -> (B, T, D); `extend` puts new keys and values into a cache and returns all that it holds."""
        x = in_autocast(x)
        q, k, v = (linear(x).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
        if rope is not None:
            q, k = q.to(rope[0].dtype), k.to(rope[0].dtype)  # norm and rotation in fp32, also under autocast
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q), self.k_norm(k)
            q, k = rotate(q, rope), rotate(k, rope)
        q, k, v = (y.to(v.dtype).transpose(1, 2) for y in (q, k, v))
        if extend is not None:
            k, v = extend(k, v)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0, self.products)
        return self.out(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The feed-forward layer: SwiGLU (Shazeer 2020, arXiv:2002.05202), or GELU for gpt2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.preset == "gpt2"
        self.approximate = config.gelu_approximate
        self.gate = None if config.preset == "gpt2" else nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=bias)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = in_autocast(x)
        if self.gate is None:
            return self.down(F.gelu(self.up(x), approximate=self.approximate))
        return self.down(F.silu(self.gate(x)) * self.up(x))


def norm(config: ModelConfig, width: int) -> nn.Module:
    """The preset's norm over the last dimension, with a gain (and for gpt2 a bias)."""
    return (nn.LayerNorm if config.preset == "gpt2" else RMSNorm)(width, eps=config.norm_eps)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * gain (Zhang and Sennrich 2019, arXiv:1910.07467), in x's dtype, computed in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        if x.device.type == "cpu":  # no fused kernel there, and a third of the time of the operator made of parts
            return _RMSNorm.apply(x, self.weight, self.eps)
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradients in closed form: fewer passes over memory than one operator after another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = (length.square() / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, gain, scale)
        return (x * scale).mul_(gain).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gain, scale = ctx.saved_tensors
        normed = x * scale  # in fp32 or wider, whatever x, its gradient and the gain are in
        grad = grad.to(normed.dtype)
        inner = grad * gain.to(normed.dtype)
        along = torch.linalg.vecdot(inner, normed)[..., None] / x.shape[-1]
        grad_gain = (grad * normed).reshape(-1, x.shape[-1]).sum(0).to(gain.dtype)
        return inner.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), grad_gain, None


def in_autocast(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast gives to products: cast once here, it would be before each product otherwise."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def add(x: Tensor, y: Tensor) -> Tensor:
    """`x` + `y` in x's dtype, which holds y's; a CPU adds what it has to cast at a quarter of its speed."""
    return x + (y.to(x.dtype) if x.device.type == "cpu" else y)


def rope_tables(context: int, head_dim: int, theta: float) -> Rope:
    """Cosines and sines (context, K), fp32, of position * theta ** (-2 i / K) (Su et al. 2021, arXiv:2104.09864).

    Both halves of K hold the same angles; the sines of the first half are negated, as `rotate` needs them.
    """
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    angles = torch.arange(context, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn each pair (x[i], x[i + K/2]) of (B, T, H, K) by its position's angle; tables (T, K) or (B, T, K)."""
    cos, sin = (table.unsqueeze(-2) for table in rope)
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def init_table(config: ModelConfig) -> dict[str, float]:
    """Standard deviation at the start of every weight, by the end of its name; means are 0. Gains are 1, biases 0.

    Zero output projections make each block start as the identity, and a zero head makes the first loss exactly ln V.
    A tied head cannot be zero: with 1 / (4 D) a token's logit for itself starts at 1/4 and all others near 0.
    """
    inputs = config.dim**-0.5  # keeps the variance of a normed input
    embed = 0.25 / config.dim if config.tie else 0.5
    return {
        "embed.weight": embed,
        "position.weight": embed,
        "q.weight": inputs,
        "k.weight": inputs,
        "v.weight": inputs,
        "gate.weight": inputs,
        "up.weight": inputs,
        "out.weight": 0.0,
        "down.weight": 0.0,
        "head.weight": 0.0,
    }


@torch.no_grad()
def init_weights(model: Transformer) -> None:
    """Draw every weight anew from torch's default generator, in the order of `named_parameters`."""
    table = init_table(model.config)
    for name, parameter in model.named_parameters():
        std = table.get(".".join(name.split(".")[-2:]))
        if std:
            parameter.normal_(0.0, std)
        elif std == 0.0 or name.endswith(".bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
