"""The catalogue of losses: `python -m scripts.losses` prints it, `--plot OUT.png` draws what depends on p(target)."""

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from configs import entry
from loss.registry import PRIORS, BySource, File, Part, Prior, default_text, marked
from loss.terms import TERMS, TRANSFORMS, WEIGHTS

if TYPE_CHECKING:
    import torch

    from loss import Objective

GROUPS: dict[str, Mapping[str, Part]] = {
    "Terms, for loss.base and loss.add": TERMS,
    "Weights, for loss.weights": WEIGHTS,
    "Changes of the logits, for loss.logits": TRANSFORMS,
}
NOTES = """\
reads    what a part is given: lp = log p(target), lse = logsumexp of the logits, lu = mean of log p under the prior,
         ut = prior of the target, log_p and logits = the whole row, log_u = log of the prior; others come with the
         batch (source, position), from a teacher (teacher_logits), or from a caller in Python (extra=...)
numbers  may move over the run: {linear: [0.2, 0.0]} or {cosine: [0.2, 0.0], over: [0.5, 1.0]}
own      "my_losses.py:phuber" names a function in a file beside the config; docs/losses.md says more"""
PLOTTED = ("ce", "smooth", "focal", "poly", "gce", "sce", "noise")
VOCABULARY = 1000
WIDTH = 116


@entry
def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.losses", description="Print every loss that YAML can name, or draw some of them."
    )
    parser.add_argument("--plot", metavar="OUT.png", help="draw loss and gradient against p(target) instead")
    parser.add_argument("--terms", nargs="+", default=PLOTTED, metavar="TERM", help="what to draw, by name")
    arguments = parser.parse_args(argv)
    if arguments.plot is None:
        print(catalogue())
    else:
        plot(arguments.plot, arguments.terms)
        print(arguments.plot)


def catalogue() -> str:
    """Every registered part: what it is, what it reads, and its options with defaults and ranges."""
    lines: list[str] = []
    for title, parts in GROUPS.items():
        lines += [title, ""]
        for part in parts.values():
            lines += [*_entry(part), ""]
    return "\n".join([*lines, NOTES])


def _entry(part: Part) -> list[str]:
    doc = " ".join((part.function.__doc__ or "").split())
    lines = [f"  {part.name.ljust(13)} reads {', '.join(part.reads)}"]
    lines += textwrap.wrap(doc, WIDTH, initial_indent="      ", subsequent_indent="      ")
    lines += [
        f"      {name.ljust(15)} {default_text(default, 'required').ljust(10)} {kind(part.hints[name])}"
        for name, default in part.options.items()
    ]
    return lines


def kind(annotation: Any) -> str:
    """What an option takes, in words: `a number in [0, 1)`, `true or false`."""
    whole: Any = annotation
    marks: Sequence[Any] = ()
    if get_origin(annotation) is Annotated:
        annotation, *marks = get_args(annotation)
    if file := marked(whole, File):
        axes = "one number for each id" if file.dims == 1 else "a row of numbers for each id"
        return f"a file, .npy or .json: {axes}{', each row summing to 1' if file.simplex else ''}"
    if marked(whole, Prior):
        return f"{', '.join(PRIORS)} or a file, .npy or .json"
    if marked(whole, BySource):
        return "a mapping: source names to numbers >= 0"
    if annotation is bool:
        return "true or false"
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    if get_origin(annotation) in (list, tuple):
        return f"a list, each {kind(get_args(annotation)[0])}"
    return f"{ {int: 'a whole number', str: 'text'}.get(annotation, 'a number') }{_range(marks)}"


def _range(marks: Sequence[Any]) -> str:
    bounds = {type(mark): mark for mark in marks}
    low = f"[{bounds[Ge].ge:g}" if Ge in bounds else f"({bounds[Gt].gt:g}" if Gt in bounds else ""
    high = f"{bounds[Le].le:g}]" if Le in bounds else f"{bounds[Lt].lt:g})" if Lt in bounds else ""
    if low and high:
        return f" in {low}, {high}"
    if low:
        return f" {'>=' if Ge in bounds else '>'} {low[1:]}"
    return f" {'<=' if Le in bounds else '<'} {high[:-1]}" if high else ""


def plot(path: str, terms: Sequence[str]) -> None:
    """Draw terms at their defaults. Raises ValueError for one that is no function of the target's probability."""
    from eval.loss_plot import draw_losses

    p, logits = targets()
    curves = {}
    for name in terms:
        objective, label = _objective(name)
        loss, push = measured(objective, logits)
        curves[label] = (loss.tolist(), push.tolist())
    note = f"Default options and prior; {VOCABULARY} ids, those that are not the target equally likely."
    draw_losses(p.tolist(), curves, path, note)


def _objective(name: str) -> "tuple[Objective, str]":
    """The objective of one term, and its name with the options that shape it."""
    from loss import build_objective

    objective = build_objective({"base": name}, vocab_size=VOCABULARY)
    ((part, options),) = objective.recipe.terms
    if not set(part.reads) <= {"lp", "lu", "ut"}:
        reads = ", ".join(sorted(set(part.reads) - {"lp", "lu", "ut"}))
        raise ValueError(f"{name} reads {reads}: it is no function of p(target); those are {', '.join(PLOTTED)}")
    shape = ", ".join(
        f"{key}\N{NO-BREAK SPACE}{default_text(value, 'required')}"
        for key, value in options.items()
        if _shapes(key, value)
    )
    return objective, "\n".join(textwrap.wrap(f"{part.name} {shape}".strip(), 16, subsequent_indent="  "))


def _shapes(option: str, value: Any) -> bool:
    return option not in ("coef", "prior") and value is not False


def targets() -> "tuple[torch.Tensor, torch.Tensor]":
    """Probabilities of the target (N,), and logits (N, V) with them for id 0; all other logits are 0. In fp64."""
    import torch

    log_odds = torch.linspace(-11.5, 7, 371, dtype=torch.float64)
    logits = torch.zeros(len(log_odds), VOCABULARY, dtype=torch.float64)
    logits[:, 0] = log_odds + torch.tensor(VOCABULARY - 1, dtype=torch.float64).log()
    return log_odds.sigmoid(), logits


def measured(objective: "Objective", logits: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Loss of each row (N,) with target 0, and -d loss / d logit of the target (N,), by autograd."""
    import torch

    x = logits.clone().requires_grad_()
    out = objective.from_logits(x, torch.zeros(len(x), dtype=torch.int64), denom=1, per_token=True)
    (gradient,) = torch.autograd.grad(out.loss, x)
    assert out.per_token is not None
    return out.per_token["loss"], -gradient[:, 0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
