"""The two passes over the logits of a chunk, each compiled into one kernel: for GPUs, where a pass costs its memory.

Operator after operator goes through the logits of a chunk, or through a copy in fp32; here they are read twice and
written once, and nothing else of their size is made.

C rows of a chunk, K targets of a row, V vocabulary.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

Seen = tuple[Tensor, Tensor, Tensor, Tensor]


def seen(logits: Tensor, targets: Tensor) -> Seen:
    """The largest logit (C, 1) and its log p (C, 1), the logits of `targets` (C, K), all in fp32, and argmax (C,)."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = x.amax(1, keepdim=True)
    log_top = -(x - top).exp().sum(1, keepdim=True).log()
    return top, log_top, logits.gather(1, targets).to(x.dtype), logits.argmax(1)


def gradient_(logits: Tensor, top: Tensor, log_top: Tensor, targets: Tensor, ratio: Tensor) -> Tensor:
    """p + sum_k ratio_k onehot(target_k), written over the logits (C, V); `top` and `log_top` as from `seen`."""
    grad = (logits.to(top.dtype) - top + log_top).exp()
    columns = torch.arange(logits.shape[1], device=logits.device)
    for k in range(targets.shape[1]):
        grad = grad + torch.where(columns == targets[:, k : k + 1], ratio[:, k : k + 1], 0.0)
    return logits.copy_(grad)


@functools.cache
def compiled() -> tuple[Callable[..., Seen], Callable[..., Tensor]]:
    """Both functions, compiled for each size of a chunk."""
    return torch.compile(seen, dynamic=False), torch.compile(gradient_, dynamic=False)
