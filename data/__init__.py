"""Corpora to batches: sources -> tokenizer -> token store -> split and rows -> order -> loader.

`prepare` makes a corpus or opens it, `Loader` reads it; everything is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import DataConfig, PackConfig, SourceConfig, SplitConfig, TokenizerConfig, TrainTokenizerConfig
    from .corpus import Estimate, estimate, lookup, prepare, prepare_slice, repair
    from .errors import DataError
    from .loader import Batch, Loader, Step
    from .making.engines import Engine
    from .making.texts import prepare_file
    from .prepared import Prepared
    from .rows.curriculum import order_of, plain_order, starts_of
    from .rows.epochs import check_epochs, epochs_of
    from .rows.groups import held_out_labels
    from .rows.order import Order
    from .rows.packing import PackingReport, packing_report
    from .rows.plan import RowPlan
    from .tokenizer import Tokenizer, load_tokenizer
    from .tokens.chat import chat_prompt

_HOMES = {
    "config": ("DataConfig", "PackConfig", "SourceConfig", "SplitConfig", "TokenizerConfig", "TrainTokenizerConfig"),
    "rows.curriculum": ("order_of", "plain_order", "starts_of"),
    "rows.epochs": ("check_epochs", "epochs_of"),
    "errors": ("DataError",),
    "rows.groups": ("held_out_labels",),
    "loader": ("Batch", "Loader", "Step"),
    "rows.order": ("Order",),
    "rows.packing": ("PackingReport", "packing_report"),
    "prepared": ("Prepared",),
    "rows.plan": ("RowPlan",),
    "corpus": ("Estimate", "estimate", "lookup", "prepare", "prepare_slice", "repair"),
    "making.engines": ("Engine",),
    "making.texts": ("prepare_file",),
    "tokenizer": ("Tokenizer", "load_tokenizer"),
    "tokens.chat": ("chat_prompt",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "Engine",
    "Estimate",
    "Loader",
    "Order",
    "PackConfig",
    "PackingReport",
    "Prepared",
    "RowPlan",
    "SourceConfig",
    "SplitConfig",
    "Step",
    "Tokenizer",
    "TokenizerConfig",
    "TrainTokenizerConfig",
    "chat_prompt",
    "check_epochs",
    "epochs_of",
    "estimate",
    "held_out_labels",
    "load_tokenizer",
    "lookup",
    "order_of",
    "packing_report",
    "plain_order",
    "prepare",
    "prepare_file",
    "prepare_slice",
    "repair",
    "starts_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
