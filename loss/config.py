"""The loss section of a config: names of registered parts and their options.

A part is written as a name, `ce`, or as a name with options, `{smooth: {eps: 0.1}}`. An option that is a number may
also move over the run: `{linear: [0.2, 0.0]}` or `{cosine: [0.2, 0.0], over: [0.5, 1.0]}`, where `over` is the part
of the run in which it moves.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

Named = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class LossConfig:
    """`loss: ce` is short for `{base: {ce: {}}}`."""

    base: Named = field(default_factory=lambda: {"ce": {}})
    """One term by name with its options, for example `{smooth: {eps: 0.1}}`."""
    add: tuple[Named, ...] = ()
    """Terms added to the base, each by name with its options."""
    weights: tuple[Named, ...] = ()
    """Rules for the importance of a target, multiplied with each other; they change the loss alone, never nll."""
    logits: tuple[Named, ...] = ()
    """Changes of the logits, in this order, that the loss sees and nll does not."""
    ahead: tuple[float | dict[str, Any], ...] = ()
    """Multi-token prediction: weights of the second, third, ... target of the same document; the first one's is 1."""
    teacher: str | None = None
    """Run or checkpoint to distill from, with the same tokenizer; for terms such as `kl`."""
    fused: Literal["auto", "on", "off"] = "auto"
    """Whether the head's product and the loss are computed together, in chunks of rows, without holding all logits."""
    chunk: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Rows of a chunk; auto: as many as suit the caches."""
