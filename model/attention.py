"""The core of attention, and which kernel computes it.

B rows, T tokens of a row, S keys (T, or the slots of a cache), H heads, K head width, N tiles of TILE tokens in a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

Mask = Tensor | BlockMask | None
"""Who sees whom: as a bool tensor (B, 1, T, S), by tiles, or plainly causal."""
TILE = 128
"""Queries, and keys, that FlexAttention computes or leaves out together: what its kernels are made for."""
PRODUCTS = 512
"""Keys up to which a CPU computes attention in bf16 by two products."""


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

    `mask` is True where a query sees a key, bool (B, 1, T, S); None is causal, with T = S. Every query must see a key.
    A mask by tiles goes without dropout, and outside of a compiled block it is slow. On a CPU in bf16 up to `products`
    keys are seen by two products, more by torch's flash kernel.
    """
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    if (group := q.shape[1] // k.shape[1]) > 1:  # repeated by hand: the kernels that take a mask have no grouped form
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[-2] > products:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)
    # In bf16 torch's flash kernel for CPU takes about as long as in fp32. Up to 512 keys two plain products are faster,
    # forward and backward: 4 times at 128 keys, twice at 256, 1.5 times at 512. Beyond that the S x S scores cost more
    # than they save. The price is accuracy, as the scores are rounded to bf16 before the softmax (which computes, as
    # the products accumulate, in fp32). Relative error of the output, K = 64, entries of q and k of deviation s:
    # 0.003 s, the kernel's 0.002 whatever s; gradients 0.004, 0.01 and 0.02 at s = 1, 2, 3, the kernel's 0.003 to
    # 0.006. With a norm on queries and keys s starts at 1. Scores in fp32 would take 1.5 to 2.5 times as long.
    with torch.autocast("cpu", enabled=False):
        if mask is None:
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores += torch.zeros((), dtype=q.dtype).masked_fill(~mask, float("-inf"))
        return F.dropout(scores.softmax(-1), dropout) @ v
