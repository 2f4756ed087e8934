"""Proofs by example that a loss is what it should be on both heads: for the tests, and for a user's own losses.

B rows, T tokens in a row, V vocabulary, D width.
"""

import dataclasses
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .head import Head
from .objective import LossOutput, Objective
from .rows import IGNORE

B, T, D = 3, 8, 5
EXACT, SINGLE = 1e-12, 1e-5  # relative to the largest number compared


@dataclass(frozen=True)
class Verdict:
    """What one check found."""

    name: str
    ok: bool
    detail: str


class Failed(AssertionError):
    """A check that did not hold, with the numbers that show it."""


@dataclass(frozen=True)
class Problem:
    """A random batch for a loss. Hidden states, weight and bias are leaves that want gradients."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    weights: Tensor
    extra: dict[str, Any]

    @classmethod
    def random(
        cls, objective: Objective, seed: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
    ) -> "Problem":
        """Uneven masks, uneven importance, and an input for whatever the loss reads."""
        generator = torch.Generator().manual_seed(seed)
        v = objective.vocab_size

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        targets = torch.randint(0, v, (B, T), generator=generator)
        targets[0, 3:5], targets[1, 1:] = IGNORE, IGNORE
        known = {
            "source": torch.arange(B) % max(1, len(objective.recipe.sources)),
            "position": torch.cat([torch.arange(5), torch.arange(T - 5)]).expand(B, T),
            "negatives": torch.randint(0, v, (B, T, 2), generator=generator),
            "soft_labels": normal(B, T, v).softmax(-1),
            "teacher_logits": 2 * normal(B, T, v),
        }
        extra = {name: known[name] if name in known else normal(B, T) for name in sorted(objective.reads)}
        hidden, weight, bias = scale * normal(B, T, D), normal(v, D), normal(v)
        return cls(
            hidden=hidden.to(dtype).requires_grad_(),
            weight=weight.to(dtype).requires_grad_(),
            bias=bias.to(dtype).requires_grad_(),
            targets=targets,
            weights=torch.rand(B, T, generator=generator, dtype=torch.float64).to(dtype) + 0.5,
            extra={k: x.to(dtype) if x.is_floating_point() else x for k, x in extra.items()},
        )

    @property
    def leaves(self) -> list[Tensor]:
        """What wants a gradient."""
        return [self.hidden, self.weight, *([] if self.bias is None else [self.bias])]

    def call(self, objective: Objective, **options: Any) -> LossOutput:
        return objective(
            self.hidden, Head(self.weight, self.bias), self.targets, self.weights, extra=self.extra, **options
        )

    def gradients(self, objective: Objective, **options: Any) -> list[Tensor]:
        """Loss and its gradients by hidden, weight and bias."""
        loss = self.call(objective, **options).loss
        return [loss.detach(), *torch.autograd.grad(loss, self.leaves)]

    def at(self, index: Any) -> "Problem":
        """Some of the rows."""
        extra = {name: value[index] for name, value in self.extra.items()}
        hidden = self.hidden.detach()[index].requires_grad_()
        return dataclasses.replace(
            self, hidden=hidden, targets=self.targets[index], weights=self.weights[index], extra=extra
        )


def prove(objective: Objective, names: Iterable[str] | None = None, seed: int = 0) -> Iterator[Verdict]:
    """The checks of a loss by name, all of them by default, one verdict each; none raises."""
    for name in CHECKS if names is None else names:
        try:
            yield Verdict(name, True, CHECKS[name](objective, seed) or "")
        except Failed as error:
            yield Verdict(name, False, str(error))
        except Exception as error:  # a plugin may do anything
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = str(error).splitlines()[0] if str(error) else ""
            yield Verdict(name, False, f"{type(error).__name__}: {text} ({last.filename}:{last.lineno})")


def variant(objective: Objective, **changes: Any) -> Objective:
    """The same loss on another head or with other chunks."""
    return objective.with_config(dataclasses.replace(objective.config, **changes))


def _compare(ours: list[Tensor], theirs: list[Tensor], tolerance: float, what: str) -> str:
    """The largest difference, relative to the largest number of its tensor. Raises `Failed` above `tolerance`."""
    worst = 0.0
    for name, a, b in zip(("loss", "d hidden", "d weight", "d bias"), ours, theirs, strict=False):
        if not (a.isfinite().all() and b.isfinite().all()):
            raise Failed(f"{what}: {name} is not finite")
        error = float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) if a.numel() else 0.0
        if error > tolerance:
            raise Failed(f"{what}: {name} differs by {error:.2e} of its largest value (allowed: {tolerance:.0e})")
        worst = max(worst, error)
    return f"{worst:.1e}"


def _heads_agree(objective: Objective, seed: int, dtype: torch.dtype, tolerance: float) -> str:
    """With a bias and without one, as most models have it."""
    fused, reference = variant(objective, fused="on", chunk=7), variant(objective, fused="off")
    biased = Problem.random(objective, seed, dtype)
    worst = ""
    for problem in (biased, dataclasses.replace(biased, bias=None)):
        ours, theirs = (problem.call(o, progress=0.3, per_token=True) for o in (fused, reference))
        assert ours.per_token is not None and theirs.per_token is not None
        for name, value in theirs.sums.items():
            _compare([ours.sums[name]], [value], tolerance, f"sum {name}")
        for name, value in theirs.per_token.items():
            _compare([ours.per_token[name].double()], [value.double()], tolerance, f"per-token {name}")
        gradients = [problem.gradients(o, progress=0.3) for o in (fused, reference)]
        worst = max(worst, _compare(gradients[0], gradients[1], tolerance, "fused against reference"))
    return worst


def agree_in_fp64(objective: Objective, seed: int) -> str:
    return _heads_agree(objective, seed, torch.float64, EXACT)


def agree_in_fp32(objective: Objective, seed: int) -> str:
    return _heads_agree(objective, seed, torch.float32, SINGLE)


def bf16_is_no_worse(objective: Objective, seed: int) -> str:
    """Under autocast the fused head's error against fp64 is that of the reference head, over several problems."""
    errors = {"on": 0.0, "off": 0.0}
    for extra_seed in range(8):
        exact = Problem.random(objective, seed + 100 * extra_seed)
        leaves = [t.detach().float().requires_grad_() for t in exact.leaves]
        floats = {k: x.float() if x.is_floating_point() else x for k, x in exact.extra.items()}
        single = dataclasses.replace(
            exact, hidden=leaves[0], weight=leaves[1], bias=leaves[2], weights=exact.weights.float(), extra=floats
        )
        truth = exact.gradients(variant(objective, fused="off"), progress=0.3)
        for head in errors:
            with torch.autocast("cpu", torch.bfloat16):
                found = single.gradients(variant(objective, fused=head, chunk=7), progress=0.3)
            if found[0].dtype != torch.float32:
                raise Failed(f"under autocast the loss is {found[0].dtype}")
            pairs = [(a.double(), b) for a, b in zip(found, truth, strict=True) if b.any()]
            errors[head] += sum(float((a - b).norm() / b.norm()) for a, b in pairs)
    if not errors["on"] <= 1.1 * errors["off"] + 1e-6:
        raise Failed(f"error under bf16 {errors['on'] / 8:.2e}, of the reference head {errors['off'] / 8:.2e}")
    return f"{errors['on'] / errors['off']:.2f} of the reference head's error" if errors["off"] else ""


def gradients_are_numerical_ones(objective: Objective, seed: int) -> str:
    """`gradcheck` of both heads, in random directions. A weight that reads lp is a constant to the gradient, but not
    to a numerical one: such rules are left out."""
    steady = [i for i, (part, _) in enumerate(objective.recipe.weights) if "lp" not in part.reads]
    rules = tuple(objective.config.weights[i] for i in steady)
    problem = Problem.random(objective, seed)
    for head in ("off", "on"):
        checked = variant(objective, fused=head, chunk=7, weights=rules)

        def loss(hidden: Tensor, weight: Tensor, bias: Tensor, checked: Objective = checked) -> Tensor:
            moved = dataclasses.replace(problem, hidden=hidden, weight=weight, bias=bias)
            extra = {k: v for k, v in problem.extra.items() if k in checked.reads}
            return dataclasses.replace(moved, extra=extra).call(checked, denom=5).loss

        try:
            torch.autograd.gradcheck(loss, problem.leaves, fast_mode=True, atol=1e-6, rtol=1e-5)
        except RuntimeError as error:
            line = " ".join(str(error).split())[:160]
            raise Failed(f"fused {head}: the gradient is not the numerical one: {line}") from None
    return ""


def no_target_depends_on_another(objective: Objective, seed: int) -> str:
    """Any division into chunks gives the same numbers."""
    problem = Problem.random(objective, seed)
    whole = problem.gradients(variant(objective, fused="on", chunk=1000))
    found = [problem.gradients(variant(objective, fused="on", chunk=size)) for size in (1, 5, 7, 15)]
    return max(
        _compare(part, whole, EXACT, f"chunks of {size}") for size, part in zip((1, 5, 7, 15), found, strict=True)
    )


def masked_rows_are_not_there(objective: Objective, seed: int) -> str:
    """A row without a target may hold anything, NaN too; neither numbers nor gradients change."""
    if objective.config.ahead:
        return "not checked: later targets look across rows"
    problem = Problem.random(objective, seed)
    keep = problem.targets != IGNORE
    dirty = {k: torch.where(_like(keep, x), x, math.nan) if x.is_floating_point() and x.dim() > 1 else x
             for k, x in problem.extra.items()}  # fmt: skip
    hidden = torch.where(keep.unsqueeze(-1), problem.hidden.detach(), math.nan).requires_grad_()
    weights = torch.where(keep, problem.weights, math.nan)
    poisoned = dataclasses.replace(problem, hidden=hidden, weights=weights, extra=dirty)
    clean = problem.at(keep) if all(x.shape[:2] == keep.shape for x in problem.extra.values()) else problem
    for head in ("off", "on"):
        o = variant(objective, fused=head, chunk=7)
        dirty_out, clean_out = poisoned.gradients(o), clean.gradients(o)
        if clean is not problem:
            dirty_out[1] = dirty_out[1][keep]
        _compare(dirty_out, clean_out, EXACT, f"fused {head}")
        if torch.autograd.grad(poisoned.call(o).loss, hidden)[0][~keep].any():
            raise Failed(f"fused {head}: a masked row has a gradient")
    return ""


def _like(mask: Tensor, values: Tensor) -> Tensor:
    return mask.view(*mask.shape, *[1] * (values.dim() - mask.dim()))


def nothing_to_learn_is_zero(objective: Objective, seed: int) -> str:
    """Without a target the loss is 0 with gradients of 0, and no sum counts anything."""
    problem = Problem.random(objective, seed)
    empty = dataclasses.replace(problem, targets=torch.full_like(problem.targets, IGNORE))
    for head in ("off", "on"):
        o = variant(objective, fused=head)
        if any(found.any() for found in (*empty.gradients(o), *empty.call(o).sums.values())):
            raise Failed(f"fused {head}: something is not 0")
    return ""


def extreme_logits_stay_finite(objective: Objective, seed: int) -> str:
    """Logits of +-1e4 in fp32: no NaN in loss or gradients, and equal heads."""
    problem = Problem.random(objective, seed, torch.float32, scale=3e3)
    fused, reference = (problem.gradients(variant(objective, fused=head, chunk=7)) for head in ("on", "off"))
    return _compare(fused, reference, 1e-4, "fused against reference")


def banned_ids_are_not_there(objective: Objective, seed: int) -> str:
    """An id with a bias of -inf, as padding of a vocabulary: the loss stays finite, and the id learns nothing."""
    problem = Problem.random(objective, seed)
    banned = next(i for i in range(objective.vocab_size) if not (problem.targets == i).any())
    assert problem.bias is not None
    bias = problem.bias.detach().clone()
    bias[banned] = -math.inf
    shut = dataclasses.replace(problem, bias=bias.requires_grad_())
    fused, reference = (shut.gradients(variant(objective, fused=head, chunk=7)) for head in ("on", "off"))
    for head, (_, _, d_weight, d_bias) in {"on": fused, "off": reference}.items():
        if d_weight[banned].any() or d_bias[banned] != 0:
            raise Failed(f"fused {head}: a banned id has a gradient")
    return _compare(fused, reference, EXACT, "fused against reference")


def micro_batches_add_up(objective: Objective, seed: int) -> str:
    """Uneven micro-batches with the denominator of the whole give the loss, gradients and sums of one batch."""
    problem = Problem.random(objective, seed)
    tokens = int((problem.targets != IGNORE).sum())
    for head in ("off", "on"):
        o = variant(objective, fused=head, chunk=7)
        whole, parts = problem.call(o), [problem.at(slice(i, i + 1)) for i in range(B)]
        outs = [part.call(o, denom=tokens) for part in parts]
        loss = sum((out.loss for out in outs), torch.zeros((), dtype=torch.float64))
        shared = torch.autograd.grad(loss, problem.leaves[1:])
        theirs = problem.gradients(o)
        _compare([loss.detach(), *shared], [theirs[0], *theirs[2:]], EXACT, f"fused {head}")
        for name, value in whole.sums.items():
            total = torch.stack([out.sums[name] for out in outs]).sum(0)
            _compare([total.double()], [value.double()], EXACT, f"fused {head}: sum {name}")
    return ""


def nll_is_plain(objective: Objective, seed: int) -> str:
    """The reported nll, accuracy and token count are those of plain cross-entropy on the model's own logits."""
    problem = Problem.random(objective, seed)
    with torch.no_grad():
        log_p = torch.nn.functional.linear(problem.hidden, problem.weight, problem.bias).log_softmax(-1)
        keep = problem.targets != IGNORE
        lp = log_p.gather(-1, problem.targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)[keep]
        right = (log_p.argmax(-1) == problem.targets) & keep
    truth = {"nll": -lp.sum(), "tokens": keep.sum(), "correct": right.sum()}
    for head in ("off", "on"):
        sums = problem.call(variant(objective, fused=head, chunk=7)).sums
        for name, value in truth.items():
            _compare([sums[name].double()], [value.double()], EXACT, f"fused {head}: {name}")
    return ""


def weights_scale_the_loss(objective: Objective, seed: int) -> str:
    """Doubled importance doubles the loss and nothing else; importance 0 takes a target out of the loss alone."""
    problem = Problem.random(objective, seed)
    double = dataclasses.replace(problem, weights=2 * problem.weights)
    nothing = dataclasses.replace(problem, weights=0 * problem.weights)
    for head in ("off", "on"):
        o = variant(objective, fused=head, chunk=7)
        once, twice, never = problem.gradients(o), double.gradients(o), nothing.gradients(o)
        _compare(twice, [2 * x for x in once], EXACT, f"fused {head}: doubled")
        if any(x.any() for x in never):
            raise Failed(f"fused {head}: importance 0 leaves a loss or a gradient")
        sums = problem.call(o).sums, double.call(o).sums
        if any(not torch.equal(sums[0][k], sums[1][k]) for k in sums[0] if k != "loss"):
            raise Failed(f"fused {head}: importance changes more than the loss")
    return ""


CHECKS: Mapping[str, Callable[[Objective, int], str]] = {
    "both heads agree in fp64": agree_in_fp64,
    "both heads agree in fp32": agree_in_fp32,
    "bf16 is no worse fused": bf16_is_no_worse,
    "gradients are the numerical ones": gradients_are_numerical_ones,
    "no target depends on another": no_target_depends_on_another,
    "masked rows are not there": masked_rows_are_not_there,
    "nothing to learn is zero": nothing_to_learn_is_zero,
    "extreme logits stay finite": extreme_logits_stay_finite,
    "banned ids are not there": banned_ids_are_not_there,
    "micro-batches add up": micro_batches_add_up,
    "nll is plain": nll_is_plain,
    "importance scales the loss alone": weights_scale_the_loss,
}
QUICK = (
    "no target depends on another",
    "both heads agree in fp64",
    "nothing to learn is zero",
    "gradients are the numerical ones",
)
"""What every start checks of a plugin."""


def teaches(objective: Objective) -> bool:
    """Whether the loss has a gradient at any time of a run."""
    problem = Problem.random(objective, 0)
    return any(problem.gradients(objective, progress=progress)[1].any() for progress in (0.0, 0.5, 1.0))
