"""Muon: momentum whose update is orthogonalized, for weight matrices.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with the rate scaled by sqrt(max(1, rows / columns)).
The same update as `torch.optim.Muon`, with two differences: matrices of one shape go through the iteration together,
and its precision is a choice. In bf16 a rounding error of the gradient, such as another order of summation makes,
becomes one of 1e-3 in the update, so a run whose products are fp32 orthogonalizes in fp32. Of sharded matrices each
rank orthogonalizes a share, whole.

n matrices of R rows and C columns.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .distributed import on_whole_matrices, own_part

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: chosen for speed, so singular values end between 0.7 and 1.2 and not at 1."""


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """UV^T, roughly, of each of (n, R, C) matrices USV^T, by Newton-Schulz iteration in their dtype."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)  # largest singular value at most 1, where it converges
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized in `dtype`, with decoupled weight decay. Every parameter is a matrix.

    `finite`, a boolean scalar on the device, turns the next step into none at all where it is false; None steps.
    """

    def __init__(self, params: Iterable[dict[str, Any]], momentum: float, dtype: torch.dtype, steps: int = 5):
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum})
        self.dtype, self.iterations = dtype, steps
        self.finite: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for parameters in by_shape.values():
                self._step_together(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _step_together(self, parameters: list[nn.Parameter], lr: float, momentum: float, decay: float) -> None:
        """Step matrices of one shape."""
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [own_part(self.state[p]["momentum_buffer"]) for p in parameters]
        weights = [own_part(p) for p in parameters]
        gradients = torch.stack([own_part(p.grad) for p in parameters if p.grad is not None])
        mean = torch.stack(buffers)
        new_mean = mean.lerp(gradients, 1 - momentum)
        direction = gradients.lerp(new_mean, momentum).to(self.dtype)
        update = on_whole_matrices(self._orthogonalize, direction, like=parameters[0]).to(mean.dtype)
        R, C = parameters[0].shape
        update.mul_(-lr * max(1.0, R / C) ** 0.5)
        if decay:
            update.add_(torch.stack(weights), alpha=-lr * decay)
        if self.finite is not None:  # NaN times zero is NaN: choose instead
            new_mean, update = torch.where(self.finite, new_mean, mean), torch.where(self.finite, update, 0.0)
        torch._foreach_copy_(buffers, list(new_mean))
        torch._foreach_add_(weights, list(update))

    def _orthogonalize(self, matrices: Tensor) -> Tensor:
        return orthogonalize(matrices, self.iterations)
