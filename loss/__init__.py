"""Losses: named terms, the objective that sums them on either head, and the metrics made from its sums."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import LossConfig
    from .fused import chunk_rows
    from .head import Head, Shard
    from .means import metrics, reliability
    from .objective import LossOutput, Objective, build_objective
    from .terms import TERMS, TRANSFORMS, WEIGHTS, check, term, transform, weight

_HOME = {
    "LossConfig": "config",
    "chunk_rows": "fused",
    "Head": "head",
    "Shard": "head",
    "metrics": "means",
    "reliability": "means",
    "LossOutput": "objective",
    "Objective": "objective",
    "build_objective": "objective",
    "TERMS": "terms",
    "TRANSFORMS": "terms",
    "WEIGHTS": "terms",
    "check": "terms",
    "term": "terms",
    "transform": "terms",
    "weight": "terms",
}
__all__ = [
    "TERMS", "TRANSFORMS", "WEIGHTS", "Head", "LossConfig", "LossOutput", "Objective", "Shard", "build_objective",
    "check", "chunk_rows", "metrics", "reliability", "term", "transform", "weight",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: a config can be checked without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
