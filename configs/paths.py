"""Files that a config names and a run must not lose: those that its loss is made of."""

from collections.abc import Callable
from dataclasses import replace

from loss.config import LossConfig
from loss.registry import map_paths

from .schema import RunConfig, to_tree


def files_of(config: RunConfig) -> list[str]:
    """Plugins, tables and priors that the loss names."""
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    with_loss_paths(config, note)
    return found


def with_loss_paths(config: RunConfig, change: Callable[[str], str]) -> RunConfig:
    """The config with `change` made to every path that its loss names."""
    section = map_paths(to_tree(config)["loss"], change)
    lists = {key: tuple(value) for key, value in section.items() if isinstance(value, list)}
    return replace(config, loss=LossConfig(**{**section, **lists}))
