"""How parts of a loss are registered, described in YAML and checked. Nothing here needs torch.

A part is a pure function. Its positional parameters say what it reads, its keyword parameters are its options in
YAML, and their annotations are the options' kinds and ranges. There are three kinds of parts:

- a *term* gives the loss of each target in nats: `term(lp, *, gamma=2.0)`;
- a *weight* gives the importance of each target: `weight(target, *, file)`;
- a *transform* changes logits before the terms see them: `transform(logits, *, cap=30.0)`.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

M = TypeVar("M")
Place = tuple[str | int, ...]
Problem = tuple[Place, str]

VECTORS = ("lp", "lse", "lu", "ut")
"""What a term can read that is one number a target: the closed-form gradient of the fused head covers these."""
WHOLE = frozenset({"log_p", "logits"})
"""What a term can read that is a number for each id: then autograd finds the gradient, a chunk at a time."""
PRIORS = ("uniform", "unigram")
SHAPES = ("linear", "cosine")
ALIASES = {
    "cross_entropy": "ce", "crossentropy": "ce", "nll": "ce", "label_smoothing": "smooth", "z_loss": "z",
    "kl_div": "kl", "distillation": "kl", "entropy": "confidence", "logit_adjustment": "adjust",
}  # fmt: skip
"""What parts are also called."""
LISTS = ("add", "weights", "logits")
"""Keys of a loss config that hold lists of named parts."""
Coefficient = Annotated[float, Ge(0)]


@dataclass(frozen=True)
class File:
    """Marks an option that names a file of numbers, `.npy` or `.json`, with `dims` axes of the vocabulary's size."""

    dims: int
    simplex: bool = False  # each row is a distribution


@dataclass(frozen=True)
class Prior:
    """Marks an option that names a distribution over the vocabulary: one of `PRIORS`, or a file."""


@dataclass(frozen=True)
class Ids:
    """Marks an option that lists ids of the vocabulary."""


@dataclass(frozen=True)
class BySource:
    """Marks an option that maps names of data sources to numbers."""


@dataclass(frozen=True)
class Part:
    """A registered function: what it reads, and the options it takes with their kinds and defaults."""

    name: str
    function: Callable[..., Any]
    reads: tuple[str, ...]
    optional: frozenset[str]
    """What is read only when it is there."""
    options: dict[str, Any]
    """Default of each option; `inspect.Parameter.empty` where it must be given."""
    hints: dict[str, Any]

    @property
    def needs_prior(self) -> bool:
        return not {"lu", "ut", "u", "log_u"}.isdisjoint(self.reads)

    @property
    def whole(self) -> bool:
        """Whether more of a row's logits is read than the `VECTORS`."""
        return not WHOLE.isdisjoint(self.reads)


def describe(function: Callable[..., Any], coef: float | None = None) -> Part:
    """The part that a function is. With `coef`, its default, the part is scaled by an option of that name.

    A part that reads the prior (`lu`, `ut` or `log_u`) has an option `prior`. Raises TypeError for a signature that
    is none of a part.
    """
    reads: list[str] = []
    optional: set[str] = set()
    options: dict[str, Any] = {}
    try:
        found = get_type_hints(function, localns={"Tensor": Any}, include_extras=True)
    except NameError as error:
        raise TypeError(f"{function.__name__}: an annotation cannot be read: {error}") from None
    hints: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name in ("coef", "prior"):
            raise TypeError(f"{function.__name__}: every part that can have an option {name} has it already")
        if parameter.kind is parameter.KEYWORD_ONLY:
            options[name], hints[name] = parameter.default, found.get(name, float)
        elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{function.__name__}: *{name} says neither what is read nor what is an option")
        else:
            reads.append(name)
            if parameter.default is not parameter.empty:
                optional.add(name)
    part = Part(function.__name__, function, tuple(reads), frozenset(optional), options, hints)
    if coef is not None:
        options["coef"], hints["coef"] = coef, Coefficient
    if part.needs_prior:
        # Where the prior's logarithm is read, a uniform one would say nothing.
        options["prior"] = "unigram" if "log_u" in reads else "uniform"
        hints["prior"] = Annotated[str, Prior()]
    return part


def check_named(named: Mapping[str, Any], known: Mapping[str, Part], what: str) -> list[Problem]:
    """What is wrong with one `{name: options}`, as (path, message)."""
    if len(named) != 1:
        return [((), f"takes exactly one {what}, not {len(named)}: {', '.join(map(str, named)) or 'name one'}")]
    ((name, options),) = named.items()
    if name not in known:
        return [((name,), f"unknown {what} {name!r}{hint(name, known)}")]
    return [((name, *path), message) for path, message in check_options(known[name], options)]


def check_options(part: Part, options: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the options given to a part."""
    problems: list[Problem] = [
        ((), f"{part.name} needs {name}")
        for name, default in part.options.items()
        if default is inspect.Parameter.empty and name not in options
    ]
    for name, value in options.items():
        if name not in part.options:
            problems.append(((name,), f"{part.name} has no option {name!r}{hint(name, part.options)}"))
        else:
            problems += [((name, *path), message) for path, message in check_value(part.hints[name], value)]
    return problems


def check_value(annotation: Any, value: Any) -> list[Problem]:
    """What is wrong with a value for an option annotated so."""
    kind: Any = annotation
    marks: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        kind, *rest = get_args(annotation)
        marks = tuple(rest)
    if get_origin(kind) in (Union, type(int | None)):
        if value is None and NoneType in get_args(kind):
            return []
        kind = next(k for k in get_args(kind) if k is not NoneType)
    if any(isinstance(mark, BySource) for mark in marks):
        if not isinstance(value, Mapping) or not value:
            return [((), "takes a mapping of source names to weights")]
        return [((key, *path), text) for key, v in value.items() for path, text in check_value(Coefficient, v)]
    if kind is bool:
        return [] if isinstance(value, bool) else [((), f"{value!r} is not true or false")]
    if get_origin(kind) is Literal:
        names = get_args(kind)
        return [] if value in names else [((), f"{value!r} is none of {', '.join(map(str, names))}")]
    if kind is str:
        return [] if isinstance(value, str) and value else [((), f"{value!r} is not a text")]
    if get_origin(kind) in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return [((), f"{value!r} is not a list")]
        inner = get_args(kind)[0]
        return [((i, *path), text) for i, v in enumerate(value) for path, text in check_value(inner, v)]
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        return [((), f"{value!r} is not a whole number")]
    return _check_ramp(value, marks) if isinstance(value, Mapping) else _check_number(value, marks)


def _check_number(value: Any, marks: Iterable[Any]) -> list[Problem]:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return [((), f"{value!r} is not a number")]
    broken: dict[type, tuple[str, Callable[[Any], bool], str]] = {
        Ge: ("ge", lambda bound: value < bound, "below"),
        Gt: ("gt", lambda bound: value <= bound, "not above"),
        Le: ("le", lambda bound: value > bound, "above"),
        Lt: ("lt", lambda bound: value >= bound, "not below"),
    }
    for mark in marks:
        if type(mark) in broken:
            field, wrong, text = broken[type(mark)]
            if wrong(bound := getattr(mark, field)):
                return [((), f"{value} is {text} {bound}")]
    return []


def _check_ramp(value: Mapping[str, Any], marks: Iterable[Any]) -> list[Problem]:
    shapes = [key for key in value if key in SHAPES]
    strange = [key for key in value if key not in (*SHAPES, "over")]
    if strange:
        return [((key,), f"unknown{hint(key, (*SHAPES, 'over'))}") for key in strange]
    if len(shapes) != 1:
        return [((), "a number that moves over the run is {linear: [from, to]} or {cosine: [from, to]}")]
    for key, ends in value.items():
        if not isinstance(ends, (list, tuple)) or len(ends) != 2:
            return [((key,), "takes two numbers, [from, to]")]
        limits = marks if key != "over" else (Ge(0), Le(1))
        for i, end in enumerate(ends):
            if problems := _check_number(end, limits):
                return [((key, i), problems[0][1])]
    start, end = value.get("over", (0, 1))
    return [] if start < end else [(("over",), f"{start} is not before {end}")]


def value_at(value: Any, progress: float) -> Any:
    """An option at `progress`, the fraction of the run done: a ramp becomes its number, anything else stays."""
    if not isinstance(value, Mapping):
        return value
    if not value.keys() <= {*SHAPES, "over"}:
        return {name: value_at(v, progress) for name, v in value.items()}
    start, end = value.get("over", (0.0, 1.0))
    done = min(max((progress - start) / (end - start), 0.0), 1.0)
    shape = next(key for key in value if key in SHAPES)
    low, high = value[shape]
    share = done if shape == "linear" else (1 - math.cos(math.pi * done)) / 2
    return low + (high - low) * share


def options_text(part: Part) -> str:
    """The options of a part with their defaults, as in YAML; `...` where one must be given."""
    return ", ".join(f"{name}: {default_text(default, '...')}" for name, default in part.options.items())


def default_text(value: Any, missing: str) -> str:
    """A default as in YAML; `missing` for an option that has none."""
    if value is inspect.Parameter.empty:
        return missing
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(default_text(x, missing) for x in value)}]"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def marked(annotation: Any, kind: type[M]) -> M | None:
    """The mark of a kind that an option's annotation bears, such as `File`."""
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, kind)), None)


def map_paths(section: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A `loss` section in long form with `change` made to every path in it: of plugins, tables and priors."""

    def option(name: str, value: Any) -> Any:
        path = isinstance(value, str) and (name == "file" or (name == "prior" and value not in PRIORS))
        return change(value) if path else value

    def named(entry: Any) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        found = {}
        for name, options in entry.items():
            if isinstance(name, str) and ".py:" in name:
                file, _, function = name.rpartition(":")
                name = f"{change(file)}:{function}"
            if isinstance(options, Mapping):
                options = {key: option(key, value) for key, value in options.items()}
            found[name] = options
        return found

    made = dict(section)
    for key, value in section.items():
        if key == "base":
            made[key] = named(value)
        elif key in LISTS and isinstance(value, (list, tuple)):
            made[key] = [named(entry) for entry in value]
    return made


def hint(word: Any, known: Any) -> str:
    """A suggestion: the known word nearest to `word`, or all of them."""
    word = str(word).lower()
    near = [ALIASES[word]] if ALIASES.get(word) in known else get_close_matches(word, list(known), n=1)
    return f" — did you mean {near[0]!r}?" if near else f" (there are: {', '.join(known) or 'none'})"
