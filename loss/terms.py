"""The terms a loss is made of: one pure line each, registered by name, usable from YAML.

A term sees three numbers of every target, whatever the size of the vocabulary:

    lp   log p(target)
    lse  logsumexp of the logits
    lu   mean over the vocabulary of log p   (only when the term names it as a parameter)

and returns its loss in nats. It is written with operators and tensor methods alone, so that a config can be checked
without importing torch, and is defined for any shape, since all three have the shape of the targets. A keyword
parameter is an option of the term in YAML; its annotation is its range.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from annotated_types import Ge, Lt

from .config import LossConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Term:
    """A registered term: its function, the options it takes, and whether it reads `lu`."""

    name: str
    function: Callable[..., "Tensor"]
    options: dict[str, inspect.Parameter]
    hints: dict[str, Any]
    needs_prior: bool


TERMS: dict[str, Term] = {}


def term(function: Callable[..., "Tensor"]) -> Callable[..., "Tensor"]:
    """Register `function(lp, lse, [lu,] *, option=default)` under its own name."""
    parameters = inspect.signature(function).parameters
    options = {k: p for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    hints = get_type_hints(function, localns={"Tensor": Any}, include_extras=True)
    TERMS[function.__name__] = Term(function.__name__, function, options, hints, "lu" in parameters)
    return function


@term
def ce(lp: "Tensor", lse: "Tensor") -> "Tensor":
    """Cross-entropy, -log p(target)."""
    return -lp


@term
def smooth(lp: "Tensor", lse: "Tensor", lu: "Tensor", *, eps: Annotated[float, Ge(0), Lt(1)] = 0.1) -> "Tensor":
    """Label smoothing (Szegedy et al. 2016, arXiv:1512.00567) as torch defines it: the target gets 1 - eps + eps/V."""
    return -(1 - eps) * lp - eps * lu


@term
def z(lp: "Tensor", lse: "Tensor", *, coef: Annotated[float, Ge(0)] = 1e-4) -> "Tensor":
    """Penalty on the log of the softmax's normalizer (PaLM, arXiv:2204.02311, section 5), coef * lse^2."""
    return coef * lse * lse


def check(config: LossConfig) -> list[tuple[tuple[str | int, ...], str]]:
    """Every mistake in a loss config as (path below `loss`, message); empty when there is none."""
    problems: list[tuple[tuple[str | int, ...], str]] = []
    if config.fused == "on":
        problems.append((("fused",), "there is no fused head yet: auto or off"))
    if len(config.base) != 1:
        problems.append((("base",), f"takes exactly one term, not {len(config.base)}: {', '.join(TERMS)}"))
    places: list[tuple[str | int, ...]] = [("base",), *(("add", i) for i in range(len(config.add)))]
    for place, named in zip(places, (config.base, *config.add), strict=True):
        if place[0] == "add" and len(named) != 1:
            problems.append((place, f"each entry is one term, not {len(named)}"))
        for name, options in named.items():
            problems += [((*place, name, *path), message) for path, message in _check_term(name, options)]
    return problems


def _check_term(name: str, options: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    if name not in TERMS:
        return [((), f"unknown loss term {name!r}{_hint(name, TERMS)}")]
    known = TERMS[name]
    problems: list[tuple[tuple[str, ...], str]] = []
    for key, value in options.items():
        if key not in known.options:
            problems.append(((key,), f"{name} has no option {key!r}{_hint(key, known.options)}"))
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            problems.append(((key,), f"{value!r} is not a number"))
        else:
            for bound in get_args(known.hints[key])[1:]:
                if isinstance(bound, Ge) and not value >= bound.ge:  # type: ignore[operator]
                    problems.append(((key,), f"{value} is below {bound.ge}"))
                if isinstance(bound, Lt) and not value < bound.lt:  # type: ignore[operator]
                    problems.append(((key,), f"{value} is not below {bound.lt}"))
    return problems


def _hint(word: str, known: Any) -> str:
    near = get_close_matches(word, known, n=1)
    return f" — did you mean {near[0]!r}?" if near else f" (there are: {', '.join(known) or 'none'})"
