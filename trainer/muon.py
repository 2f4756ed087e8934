"""Muon: momentum whose update is orthogonalized, for weight matrices.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/, with the rate scaled by sqrt(max(1, rows / columns)).
The same update as `torch.optim.Muon`, with these differences: matrices of one shape go through the iteration together,
its precision is a choice, and so is a decay that is cautious. In bf16 a rounding error of the gradient, such as another
order of summation makes, becomes one of 1e-3 in the update, so a run whose products are fp32 orthogonalizes in fp32. Of
several ranks each orthogonalizes a share of the matrices, whole, whether they are sharded or not.

n matrices of R rows and C columns.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .adamw import Optimizer
from .distributed import Ranks, on_whole_matrices, own_part

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: chosen for speed, so singular values end between 0.7 and 1.2 and not at 1."""
STEPS = 5
"""Of the iteration."""


def orthogonalize(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """UV^T, roughly, of each of (n, R, C) matrices USV^T, by Newton-Schulz iteration in their dtype.

    X goes to (a + b G + c G^2) X with G = X X^T, or for a tall X to X (a + b G + c G^2) with G = X^T X, which is the
    smaller of the two: transposing a matrix on a CPU takes as long as a product.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    size = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    x = matrices / size.clamp_min(1e-7)  # largest singular value at most 1, where it converges
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, factor, beta=a) if tall else torch.baddbmm(x, factor, x, beta=a)
    return x


def shape_factor(rows: int, columns: int) -> float:
    """What an orthogonalized update is multiplied by, so that one rate suits matrices of every shape.

    With it the best of a few rates hardly moved: 0.044 in a model 64 wide, 0.038 in one 256 wide (250 steps of the
    speedrun's text, one seed each). Not tried here: sqrt(max(rows, columns)) (arXiv:2502.16982).
    """
    return max(1.0, rows / columns) ** 0.5


def iteration_flops(rows: int, columns: int, steps: int = STEPS) -> int:
    """Floating-point operations of `orthogonalize` for one matrix: two products with it, one of its gram matrix."""
    short, long = sorted((rows, columns))
    return steps * (4 * short * short * long + 2 * short**3)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalized in `dtype`, with decoupled weight decay. Every parameter is a matrix.

    With `cautious` only those weights decay that the update makes smaller anyway (arXiv:2510.12402): decay then never
    works against the gradient. `ranks` are those that step weights which all of them have whole; None: each by itself.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        momentum: float,
        dtype: torch.dtype,
        *,
        cautious: bool = False,
        ranks: Ranks | None = None,
    ):
        super().__init__({"weight_decay": 0.0} | group for group in groups)
        self.momentum, self.dtype, self.cautious, self.ranks = momentum, dtype, cautious, ranks

    def allocate(self, parameter: nn.Parameter) -> None:
        self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for parameters in by_shape.values():
                self._step_together(parameters, group["lr"], group["weight_decay"])

    def _step_together(self, parameters: list[nn.Parameter], lr: float, decay: float) -> None:
        """Step matrices of one shape."""
        means = [own_part(state["momentum_buffer"]) for state in self.states(parameters)]
        weights = [own_part(p) for p in parameters]
        gradients = [own_part(p.grad) for p in parameters if p.grad is not None]
        if self.finite is not None:  # a mean that moves toward itself stays; NaN times zero would be NaN
            gradients = list(torch.where(self.finite, torch.stack(gradients), torch.stack(means)))
            lr = lr * self.finite  # type: ignore[assignment]
        torch._foreach_lerp_(means, gradients, 1 - self.momentum)
        direction = torch.stack(torch._foreach_lerp(gradients, means, self.momentum)).to(self.dtype)
        if self.ranks is not None:
            update = self.ranks.share_out(orthogonalize, direction).to(weights[0].dtype)
        else:
            update = on_whole_matrices(orthogonalize, direction, like=parameters[0]).to(weights[0].dtype)
        update.mul_(shape_factor(*parameters[0].shape))
        if decay:
            before = torch.stack(weights)
            falling = before * (update * before > 0) if self.cautious else before
            update.add_(falling, alpha=decay)
        torch._foreach_add_(weights, list(update.mul_(-lr)))
