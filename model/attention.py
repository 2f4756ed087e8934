"""The core of attention, and which kernel computes it.

B rows, T tokens of a row, S keys (T, or the slots of a cache), H heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def document_mask(positions: Tensor) -> Tensor:
    """Who sees whom, bool (B, 1, T, T): earlier tokens of the same document. Position 0 starts a document."""
    document = (positions == 0).cumsum(1)
    same = document[:, None, :, None] == document[:, None, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool, device=same.device).tril()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(K)) v for q (B, H, T, K) and k, v (B, H, S, K), all of one dtype.

    `mask` is True where a query sees a key, bool (B, 1, T, S); None is causal, with T = S. Every query must see a key.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[-2] > 512:
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
