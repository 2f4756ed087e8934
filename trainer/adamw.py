"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) by torch's kernels, and what every optimizer here is."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


class Optimizer:
    """Groups of parameters with options of their own, and a few tensors of state for each parameter.

    It has the `param_groups` and the `state` of a `torch.optim.Optimizer`, as GradScaler reads them, and does not
    inherit from it: to make one of those imports torch's compiler, which takes a second at every start.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self.param_groups = [group | {"params": list(group["params"])} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.finite: Tensor | None = None
        """A boolean scalar on the device that turns the next step into none at all where it is false; None steps."""

    def allocate(self, parameter: nn.Parameter) -> None:
        """Make the state of a parameter before its first step."""
        raise NotImplementedError

    def states(self, parameters: Sequence[nn.Parameter]) -> list[dict[str, Tensor]]:
        """The state of each, made where it is missing."""
        for parameter in parameters:
            if parameter not in self.state:
                self.allocate(parameter)
        return [self.state[parameter] for parameter in parameters]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


class AdamW(Optimizer):
    """Adam with decoupled weight decay: by one kernel for all parameters of a group where the device has it."""

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups)
        self.betas, self.eps = betas, eps

    def allocate(self, parameter: nn.Parameter) -> None:
        moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = self.states(parameters)
            fused = parameters[0].device.type in ("cpu", "cuda", "mps")
            adamw(
                parameters,
                [p.grad for p in parameters if p.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=fused,
                # as from a GradScaler: the kernel leaves everything as it is where this is not 0
                found_inf=None if self.finite is None else (~self.finite).float(),
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.eps,
                maximize=False,
            )
