"""Losses: named terms, the objective that sums them, and the metrics made from its sums."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import LossConfig
    from .objective import Head, LossOutput, Objective, build_objective, metrics
    from .terms import TERMS, check, term

__all__ = ["TERMS", "Head", "LossConfig", "LossOutput", "Objective", "build_objective", "check", "metrics", "term"]

_HOME = {"LossConfig": ".config", "TERMS": ".terms", "check": ".terms", "term": ".terms"}


def __getattr__(name: str) -> Any:
    """Import on first use: a config can be checked without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, ".objective"), __name__), name)
