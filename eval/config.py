"""How often and how much a run evaluates."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Lt


@dataclass(frozen=True)
class EvalConfig:
    every: Annotated[int, Ge(1)] | Annotated[float, Gt(0), Lt(1)] | str = 100
    """An evaluation each so often (a length), and at each save."""
    max_tokens: Annotated[int, Ge(1)] = 131_072
    """Validation tokens of an evaluation; the last one takes all of them."""
    by: tuple[str, ...] | None = None
    """Labels of documents by whose values validation is reported, besides the source; null: each that `labels`,
    `constants` or `detect_language` of the data gives, with at most 20 values; []: none."""
    prompts: tuple[str, ...] = ("",)
    """A sample is generated from each at every evaluation; the empty prompt starts a document."""
    sample_tokens: Annotated[int, Ge(0)] = 128
    """Tokens of a sample; 0: none."""
