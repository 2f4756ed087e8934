"""What a run is made of, in YAML: the schema, the loader and the command line that every verb shares."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cli import entry, explain, parse
    from .loader import ConfigError, dump, load, read_tree
    from .paths import files_of, with_loss_paths
    from .reference import describe
    from .schema import Change, Changes, RunConfig, changes, to_tree

_HOME = {
    "Change": "schema",
    "Changes": "schema",
    "ConfigError": "loader",
    "RunConfig": "schema",
    "changes": "schema",
    "describe": "reference",
    "dump": "loader",
    "entry": "cli",
    "explain": "cli",
    "files_of": "paths",
    "load": "loader",
    "parse": "cli",
    "read_tree": "loader",
    "to_tree": "schema",
    "with_loss_paths": "paths",
}

__all__ = [
    "Change",
    "Changes",
    "ConfigError",
    "RunConfig",
    "changes",
    "describe",
    "dump",
    "entry",
    "explain",
    "files_of",
    "load",
    "parse",
    "read_tree",
    "to_tree",
    "with_loss_paths",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `python -m configs.schema` runs a module that is not loaded yet."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)
