"""A decoder-only transformer: train it, sample from it, store it, and translate it to Hugging Face and back."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention import attend
    from .config import ModelConfig
    from .float8 import use_float8
    from .huggingface import from_huggingface, to_huggingface
    from .sampling import beam_search, eval_mode, generate, stream
    from .store import load_model, read_model, save_model
    from .transformer import Transformer
    from .trial import compiler_fails, float8_fails, tiles_fail

_HOME = {
    "attend": "attention",
    "beam_search": "sampling",
    "ModelConfig": "config",
    "Transformer": "transformer",
    "compiler_fails": "trial",
    "eval_mode": "sampling",
    "float8_fails": "trial",
    "generate": "sampling",
    "stream": "sampling",
    "load_model": "store",
    "read_model": "store",
    "save_model": "store",
    "save_shape": "store",
    "from_huggingface": "huggingface",
    "tiles_fail": "trial",
    "to_huggingface": "huggingface",
    "use_float8": "float8",
}

__all__ = [
    "ModelConfig",
    "Transformer",
    "attend",
    "beam_search",
    "compiler_fails",
    "eval_mode",
    "float8_fails",
    "from_huggingface",
    "generate",
    "load_model",
    "read_model",
    "save_model",
    "save_shape",
    "stream",
    "tiles_fail",
    "to_huggingface",
    "use_float8",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `model.config` alone never loads torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
