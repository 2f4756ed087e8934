"""The core of attention, and which kernel computes it.

B rows, T tokens of a row, S keys (T, or the slots of a cache), H heads, K head width, N tiles of TILE tokens in a row.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

Mask = Tensor | BlockMask | None
"""Who sees whom: as a bool tensor (B, 1, T, S), by tiles, or plainly causal."""
TILE = 128
"""Queries, and keys, that FlexAttention computes or leaves out together: what its kernels are made for."""
PRODUCTS = 1024
"""Keys up to which a CPU computes attention in bf16 by `Products`."""


def document_mask(positions: Tensor) -> Tensor:
    """Who sees whom, bool (B, 1, T, T): earlier tokens of the same document. Position 0 starts a document."""
    document = (positions == 0).cumsum(1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()


def document_tiles(positions: Tensor) -> BlockMask:
    """The same by tiles, for FlexAttention: which tiles of keys each tile of queries sees in part, and which in full.

    Documents stand one after another, so the ends of two tiles tell: an earlier tile of keys is seen when its last
    token is of the document of the first query, and in full when its first token is of the document of the last one.
    No (T, T) mask is made, every shape is fixed by (B, T), and the host waits for nothing.
    """
    B, T = positions.shape
    document = (positions == 0).cumsum(1, dtype=torch.int32)
    ends = F.pad(document, (0, -T % TILE), value=T + 1).unflatten(1, (-1, TILE))  # padding belongs to no document
    first, last = ends[..., 0], ends[..., -1]
    seen = first[:, :, None] == last[:, None, :]
    full = last[:, :, None] == first[:, None, :]
    earlier = torch.ones(seen.shape[1:], dtype=torch.bool, device=seen.device).tril(-1)
    own = torch.eye(len(earlier), dtype=torch.bool, device=seen.device)

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document[b, query] == document[b, key])

    return BlockMask.from_kv_blocks(
        *_listed(seen & ~full & earlier | own), *_listed(full & earlier),
        BLOCK_SIZE=TILE, mask_mod=visible, seq_lengths=(T, T),
    )  # fmt: skip


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """bool (B, N, N) as int32 (B, 1, N), how many of each row are true, and (B, 1, N, N), their numbers first."""
    order = torch.argsort(tiles.int(), dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32).unsqueeze(1), order.int().unsqueeze(1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, dropout: float, products: int = PRODUCTS) -> Tensor:
    """softmax(q k^T / sqrt(K)) v for q (B, H, T, K) and k, v (B, G, S, K), all of one dtype; G divides H.

    `mask` is True where a query sees a key, bool (B, 1, T, S); None is causal, with T = S. Every query must see a key,
    and none a later one. A mask by tiles goes without dropout, and outside of a compiled block it is slow. On a CPU in
    bf16 rows of up to `products` tokens go by `Products`; longer ones, tokens after a cache, and compiled blocks with
    dropout by torch's kernels.
    """
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    T, S = q.shape[-2], k.shape[-2]
    lost = dropout > 0 and torch.compiler.is_compiling()  # inductor's CPU code drew 0 for each of them (torch 2.13)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and T == S <= products and not lost:
        with torch.autocast("cpu", enabled=False):
            return Products.apply(q, k, v, mask, dropout)
    if (group := q.shape[1] // k.shape[1]) > 1:  # repeated by hand: the kernels that take a mask have no grouped form
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)


class Products(torch.autograd.Function):
    """Attention by plain products in bf16, of TILE queries at a time with the keys that are not later than all of them.

    For CPUs: torch's flash kernel, about as slow in bf16 as in fp32 there, takes 2.4, 2.5, 1.8 and 1.4 times as long at
    256, 512, 1,024 and 2,048 tokens, forward and backward, up to 2.7 times with documents masked (2 cores of an EPYC,
    Zen 4, torch 2.13). The price is memory, for probabilities are kept, and accuracy, for scores are rounded to bf16
    before the softmax (which computes, as the products accumulate, in fp32). Relative error with K = 64, 1,024 tokens,
    and entries of q and k of deviation 1, 2, 3: of the output 0.004, 0.009, 0.013, the kernel's 0.002; of gradients
    0.005, 0.012, 0.024, the kernel's 0.004 to 0.006. With a norm on queries and keys the deviation starts at 1.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        (B, H, T, K), G = q.shape, k.shape[1]
        k, v = k.reshape(B * G, T, K) * K**-0.5, v.reshape(B * G, T, K)  # heads that share keys are rows of one product
        out = q.new_empty(B, T, H, K).transpose(1, 2)
        later = torch.full((min(TILE, T),) * 2, float("-inf"), dtype=q.dtype).triu(1)
        kept = []
        for start in range(0, T, TILE):
            end = min(start + TILE, T)
            width = end - start
            tile = q[:, :, start:end].reshape(B * G, H // G * width, K)
            scores = tile @ k[:, :end].transpose(1, 2)
            if mask is None:
                scores.view(B, H, width, end)[..., start:] += later[:width, :width]
            else:
                unseen = ~mask[:, :, start:end, :end]
                scores.view(B, H, width, end).add_(torch.zeros((), dtype=q.dtype).masked_fill(unseen, float("-inf")))
            seen = scores.softmax(-1)
            held = torch.empty_like(seen, dtype=torch.bool).bernoulli_(1 - dropout) if dropout else None
            kept += [tile, seen, held] if any(ctx.needs_input_grad) else []
            out[:, :, start:end] = (_thinned(seen, held, dropout) @ v[:, :end]).view(B, H, width, K)
        ctx.save_for_backward(k, v, *kept)
        ctx.groups, ctx.dropout = G, dropout
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        k, v, *kept = ctx.saved_tensors
        B, H, T, K = grad.shape
        G = ctx.groups
        d_q = grad.new_empty(B, T, H, K).transpose(1, 2)
        d_k, d_v = torch.empty_like(k), torch.empty_like(v)
        for tile, seen, held in zip(kept[-3::-3], kept[-2::-3], kept[::-3], strict=True):
            end = seen.shape[-1]
            width = tile.shape[1] * G // H
            start = end - width
            given = grad[:, :, start:end].reshape(B * G, H // G * width, K)
            others = float(end < T)  # the last tile comes first, and writes all keys
            d_v[:, :end].baddbmm_(_thinned(seen, held, ctx.dropout).transpose(1, 2), given, beta=others)
            d_seen = _thinned(given @ v[:, :end].transpose(1, 2), held, ctx.dropout)
            d_scores = torch._softmax_backward_data(d_seen, seen, -1, seen.dtype)
            d_q[:, :, start:end] = (d_scores @ k[:, :end]).view(B, H, width, K)
            d_k[:, :end].baddbmm_(d_scores.transpose(1, 2), tile, beta=others)
        return d_q, d_k.mul_(K**-0.5).view(B, G, T, K), d_v.view(B, G, T, K), None, None


def _thinned(seen: Tensor, held: Tensor | None, dropout: float) -> Tensor:
    """With dropout: what is `held` of it, scaled up by as much as is lost."""
    return seen if held is None else seen * held / (1 - dropout)
