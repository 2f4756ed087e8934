"""Losses: named terms, the objective that sums them on either head, and the metrics made from its sums."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import LossConfig
    from .detail import WORST
    from .head import Head, Shard
    from .means import metrics, reliability
    from .objective import LossOutput, Objective, build_objective
    from .products import chunk_rows
    from .sequence import DPOOutput, bradley_terry, dpo, sequence_log_probs, token_log_probs
    from .terms import TERMS, TRANSFORMS, WEIGHTS, check, term, transform, weight

_PUBLIC = {
    "config": ("LossConfig",),
    "detail": ("WORST",),
    "head": ("Head", "Shard"),
    "means": ("metrics", "reliability"),
    "objective": ("LossOutput", "Objective", "build_objective"),
    "products": ("chunk_rows",),
    "sequence": ("DPOOutput", "bradley_terry", "dpo", "sequence_log_probs", "token_log_probs"),
    "terms": ("TERMS", "TRANSFORMS", "WEIGHTS", "check", "term", "transform", "weight"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = [
    "TERMS", "TRANSFORMS", "WEIGHTS", "WORST", "DPOOutput", "Head", "LossConfig", "LossOutput", "Objective", "Shard",
    "bradley_terry", "build_objective", "check", "chunk_rows", "dpo", "metrics", "reliability", "sequence_log_probs",
    "term", "token_log_probs", "transform", "weight",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: a config can be checked without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
