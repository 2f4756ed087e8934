"""Measuring a trained model, and drawing and telling what was measured."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compression import compressed
    from .config import EvalConfig
    from .curves import draw
    from .summary import summarize
    from .validate import evaluate, score_groups

__all__ = ["EvalConfig", "compressed", "draw", "evaluate", "score_groups", "summarize"]

_HOMES = {
    "EvalConfig": "config",
    "compressed": "compression",
    "draw": "curves",
    "evaluate": "validate",
    "score_groups": "validate",
    "summarize": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
