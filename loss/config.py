"""The loss section of a config: names of registered terms and their options."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class LossConfig:
    """`loss: ce` is short for `{base: {ce: {}}}`."""

    base: dict[str, dict[str, Any]] = field(default_factory=lambda: {"ce": {}})
    """One term by name with its options, for example `{smooth: {eps: 0.1}}`."""
    add: tuple[dict[str, dict[str, Any]], ...] = ()
    """Regularizers added to the base, each by name with its options."""
    fused: Literal["auto", "on", "off"] = "auto"
    """Whether the head's product and the loss are computed together."""
