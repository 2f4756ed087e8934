"""The parts that a loss config names, made ready: files read, priors made, coefficients as they are at a moment."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import plugins
from .config import LossConfig
from .detail import decile_of
from .measure import Measure, Use
from .registry import VECTORS, WHOLE, File, Ids, Part, check_options, marked, value_at
from .tables import load_prior, load_table
from .terms import TERMS, TRANSFORMS, WEIGHTS

Counts = Tensor | Callable[[], Tensor]
Named = tuple[Part, dict[str, Any]]


class Recipe:
    """A loss config made ready: its terms, weights and changes of logits, and the tensors that they read.

    Raises ValueError for a file, prior, plugin or source that will not do.
    """

    def __init__(self, config: LossConfig, vocab_size: int, counts: Counts | None, sources: Sequence[str]):
        self.vocab_size, self.sources, self.given_counts = vocab_size, tuple(sources), counts
        self.plugins: list[str] = []
        """Names of the parts that come from a user's file."""
        self._priors: dict[str, Tensor] = {}
        self._tables: dict[tuple[Any, File | Ids], Tensor] = {}
        """What options name, by value and kind: one file may be a table for one part and a prior for another."""
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[dict[str, Tensor], dict[Any, Tensor]]] = {}
        self.terms = [
            self._known(named, TERMS, "base" if i == 0 else "add") for i, named in enumerate((config.base, *config.add))
        ]
        self.weights = [self._known(named, WEIGHTS, "weights") for named in config.weights]
        self.transforms = [self._known(named, TRANSFORMS, "logits") for named in config.logits]
        self.ahead = config.ahead
        if config.ahead and not any({"lp", "ut"} & set(part.reads) for part, _ in self.terms):
            raise ValueError("loss.ahead: no term reads lp, so that none has later targets")

    def _known(self, named: Mapping[str, Any], known: Mapping[str, Part], key: str) -> tuple[Part, dict[str, Any]]:
        """A part with its options; the files that they name are read."""
        ((name, given),) = named.items()
        if name in known:
            part = known[name]
        else:
            part = plugins.load(name, 1.0 if known is TERMS else None)
            self.plugins.append(name)
        if known is TRANSFORMS and (late := {*VECTORS, "log_p"} & set(part.reads)):
            raise ValueError(f"loss.{key}.{name}: reads {min(late)}, which is not known before the logits are")
        if problems := check_options(part, given):
            raise ValueError("; ".join(f"{'.'.join(map(str, ('loss', key, name, *p)))}: {m}" for p, m in problems))
        options = {**{k: v for k, v in part.options.items() if v is not inspect.Parameter.empty}, **given}
        for option, value in options.items():
            try:
                self._read(part, option, value)
            except ValueError as error:
                raise ValueError(f"loss.{key}.{name}.{option}: {error}") from None
        if (
            part is TERMS["smooth"]
            and options["exclude_target"]
            and bool((self._priors[options["prior"]] > 1 - 1e-9).any())
        ):
            raise ValueError(f"loss.{key}.{name}.exclude_target: the prior has one id alone, and nothing is left of it")
        if "source" in part.reads and "by" in options:
            unknown = [source for source in options["by"] if source not in self.sources]
            if unknown:
                have = ", ".join(self.sources) or "none"
                raise ValueError(f"loss.{key}.{name}.by: no source {unknown[0]!r}; there are: {have}")
            options["by"] = {self.sources.index(source): value for source, value in options["by"].items()}
        return part, options

    def _read(self, part: Part, option: str, value: Any) -> None:
        """Read the file or make the prior that an option names, and check ids; most options are none of these."""
        hint_of = part.hints[option]
        if mark := marked(hint_of, File):
            self._tables[value, mark] = load_table(value, mark, self.vocab_size)
        if marked(hint_of, Ids):
            if strange := [i for i in value if i >= self.vocab_size]:
                raise ValueError(f"{strange[0]} is no id of a vocabulary of {self.vocab_size}")
            self._tables[tuple(value), Ids()] = torch.tensor(value, dtype=torch.int64)
        if option != "prior":
            return
        if value not in self._priors:
            counts = self.counts if value == "unigram" else None
            self._priors[value] = load_prior(value, self.vocab_size, counts)
        if "log_u" in part.reads and not bool((self._priors[value] > 0).all()):
            raise ValueError(f"{value} has ids of probability 0, whose logarithm is infinite")

    @cached_property
    def counts(self) -> Tensor | None:
        """(V,) how often each id occurs in the corpus."""
        counts = self.given_counts
        counts = counts() if callable(counts) and not isinstance(counts, Tensor) else counts
        if counts is not None and counts.shape != (self.vocab_size,):
            raise ValueError(f"counts of shape {tuple(counts.shape)} for a vocabulary of {self.vocab_size}")
        return counts

    @cached_property
    def deciles(self) -> Tensor | None:
        """int64 (V,): each id's tenth of the corpus by frequency."""
        return None if self.counts is None else decile_of(self.counts)

    @property
    def reads(self) -> set[str]:
        """Names of the inputs that a call has to find in `extra`."""
        parts = [part for part, _ in (*self.terms, *self.weights, *self.transforms)]
        own = {*VECTORS, *WHOLE, "u", "log_u", "target"}
        needed = {name for part in parts for name in part.reads if name not in part.optional} - own
        return needed | ({"position"} if self.ahead else set())

    @property
    def may_read(self) -> set[str]:
        """Names of inputs that are read where `extra` has them."""
        return {name for part, _ in (*self.terms, *self.weights, *self.transforms) for name in part.optional}

    def at(self, progress: float, device: torch.device, dtype: torch.dtype) -> Measure:
        """The loss at a moment of the run: coefficients as numbers, priors and tables on the device."""
        priors, tables = self._on(device, dtype)

        def use(part: Part, options: Mapping[str, Any]) -> Use:
            now = {name: value_at(value, progress) for name, value in options.items()}
            for name, value in options.items():
                if mark := marked(part.hints[name], File) or marked(part.hints[name], Ids):
                    now[name] = tables[tuple(value) if isinstance(mark, Ids) else value, mark]
            coef, prior = now.pop("coef", 1.0), now.pop("prior", None)
            return Use(part.name, part, now, coef, prior)

        return Measure(
            terms=[use(*item) for item in self.terms],
            weights=[use(*item) for item in self.weights],
            transforms=[use(*item) for item in self.transforms],
            priors=priors,
            ahead=(1.0, *(value_at(value, progress) for value in self.ahead)),
        )

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
        """Priors and tables on a device; ids stay integers."""
        if (device, dtype) not in self._copies:
            priors = {name: value.to(device, dtype) for name, value in self._priors.items()}
            tables = {
                key: value.to(device, dtype if value.is_floating_point() else value.dtype)
                for key, value in self._tables.items()
            }
            self._copies[device, dtype] = (priors, tables)
        return self._copies[device, dtype]
