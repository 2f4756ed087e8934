"""Optimizers by role: Muon or AdamW on the matrices, AdamW on everything else, one interface over both.

A role is what a parameter does in the model: `matrix` (linear layers inside blocks), `embed`, `head` (when untied),
`vector` (norms and biases). Each has its own peak rate; weight decay is for matrices alone.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .adamw import AdamW, Optimizer
from .config import OptimConfig
from .distributed import Ranks
from .muon import Muon, iteration_flops

_PREFIX = "optim."


class Optimizers:
    """AdamW and, when asked for, Muon over a model's parameters."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        roles: Mapping[str, str],
        config: OptimConfig,
        muon_dtype: torch.dtype = torch.float32,
        ranks: Ranks | None = None,
    ):
        """`parameters` and `roles` are keyed by the same names. Raises ValueError when a name is on one side only.

        Muon orthogonalizes in `muon_dtype`, each of `ranks`, which have the same whole weights, a share of them.
        """
        if set(parameters) != set(roles):
            raise ValueError(f"roles and parameters differ in {sorted(set(parameters) ^ set(roles))}")
        self.names = {id(p): name for name, p in parameters.items()}
        self.clip_at = config.grad_clip
        self.device = next(iter(parameters.values())).device
        groups = []
        for role in ("matrix", "embed", "head", "vector"):
            members = [parameters[name] for name, r in roles.items() if r == role]
            rate = getattr(config.rates, role)
            decay = config.weight_decay if role == "matrix" else 0.0
            if members:
                groups.append({"params": members, "lr": rate, "peak": rate, "weight_decay": decay, "role": role})

        matrices = [g for g in groups if config.name == "muon" and g["role"] == "matrix"]
        others = [g for g in groups if not (config.name == "muon" and g["role"] == "matrix")]
        self.all: list[Optimizer] = []
        if others:
            betas = (config.betas[0], config.betas[1])
            self.all.append(AdamW(others, betas, config.eps))
        if matrices:
            self.all.append(Muon(matrices, config.momentum, muon_dtype, cautious=config.cautious, ranks=ranks))

    def parameters(self) -> Iterable[nn.Parameter]:
        return (p for optimizer in self.all for group in optimizer.param_groups for p in group["params"])

    def muon_flops(self) -> int:
        """Floating-point operations that Muon's iterations take in each step, over all matrices."""
        muons = (optimizer for optimizer in self.all if isinstance(optimizer, Muon))
        return sum(iteration_flops(*p.shape) for muon in muons for group in muon.param_groups for p in group["params"])

    def clip(self) -> Tensor:
        """Scale gradients down to the configured global norm; returns the norm before, a scalar on the device."""
        parameters = list(self.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.clip_at is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_at, norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded gradients

    def set_rates(self, factor: float) -> None:
        """Set every group to `factor` times its peak rate."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor

    def set_momentum(self, momentum: float) -> None:
        """Set Muon's, for the steps to come."""
        for optimizer in self.all:
            if isinstance(optimizer, Muon):
                optimizer.momentum = momentum

    def step(self, factor: float, finite: Tensor) -> None:
        """Update at `factor` times the peak rates, or change nothing at all where `finite`, a scalar, is false."""
        self.set_rates(factor)
        if self.device.type == "cuda":
            self._step_without_sync(finite)
        elif bool(finite):
            for optimizer in self.all:
                optimizer.step()

    def _step_without_sync(self, finite: Tensor) -> None:
        """The same with the decision left on the device, so that the host need not wait for the gradients."""
        for optimizer in self.all:
            optimizer.finite = finite
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad()

    def allocate(self) -> None:
        """Make the state that the first step would begin with, for a reader to fill."""
        for optimizer in self.all:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.allocate(parameter)

    def state(self) -> dict[str, Tensor]:
        """Every state tensor as `optim.<parameter>.<key>`: independent of order and grouping.

        Of a sharded parameter they are sharded alike, but for the number of steps, a scalar.
        """
        return {
            f"{_PREFIX}{self.names[id(p)]}.{key}": value
            for optimizer in self.all
            for p, entries in optimizer.state.items()
            for key, value in entries.items()
            if isinstance(value, Tensor)
        }
