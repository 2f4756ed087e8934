"""Corpora to batches: sources -> tokenizer -> token store -> split and rows -> order -> loader.

`prepare` makes a corpus or opens it, `Loader` reads it; everything is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import DataConfig, PackConfig, SourceConfig, SplitConfig, TokenizerConfig, TrainTokenizerConfig
    from .corpus import Estimate, Prepared, estimate, lookup, prepare
    from .errors import DataError
    from .loader import Batch, Loader, Step
    from .order import Order
    from .plan import RowPlan
    from .tokenizer import Tokenizer, load_tokenizer

_HOMES = {
    "config": ("DataConfig", "PackConfig", "SourceConfig", "SplitConfig", "TokenizerConfig", "TrainTokenizerConfig"),
    "errors": ("DataError",),
    "loader": ("Batch", "Loader", "Step"),
    "order": ("Order",),
    "plan": ("RowPlan",),
    "corpus": ("Estimate", "Prepared", "estimate", "lookup", "prepare"),
    "tokenizer": ("Tokenizer", "load_tokenizer"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "Estimate",
    "Loader",
    "Order",
    "PackConfig",
    "Prepared",
    "RowPlan",
    "SourceConfig",
    "SplitConfig",
    "Step",
    "Tokenizer",
    "TokenizerConfig",
    "TrainTokenizerConfig",
    "estimate",
    "load_tokenizer",
    "lookup",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
