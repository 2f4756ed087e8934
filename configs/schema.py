"""The whole of a run's config: its sections, what may change when a run goes on, and what did change.

`python -m configs.schema > configs/schema.json` writes the JSON schema that editors read.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter

from data.config import TOKENIZERS, DataConfig
from eval.config import EvalConfig
from loss.config import LossConfig
from model.config import ModelConfig
from trainer.config import OptimConfig, RunSection, SaveConfig, ScheduleConfig, TrackConfig, TrainConfig

Path = tuple[str | int, ...]  # where a value is in the tree of a config: ("model", "dim"), ("loss", "add", 0)
Tag = Literal["identity", "recorded", "free"]


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on. Frozen; the leaves' own dataclasses are its sections."""

    run: RunSection
    """The run itself: its name, place, seed and device."""
    data: DataConfig
    """Where text comes from and how it becomes rows of tokens."""
    model: ModelConfig = ModelConfig()
    """The shape of the model."""
    loss: LossConfig = LossConfig()
    """What is minimized."""
    optim: OptimConfig = OptimConfig()
    """How weights follow gradients."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate changes over the run."""
    train: TrainConfig = TrainConfig()
    """How long, in what batches and in which precision."""
    eval: EvalConfig = EvalConfig()
    """How often and how much is evaluated."""
    save: SaveConfig = SaveConfig()
    """Checkpoints."""
    track: TrackConfig = TrackConfig()
    """Where metrics go."""

    # Read by pydantic, for the sections too: nothing is coerced, nothing unknown is let through.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


SECTIONS = tuple(f.name for f in dataclasses.fields(RunConfig))

# What happens when a run goes on with another value. A key stands for everything below it.
TAGS: dict[Tag, tuple[str, ...]] = {
    # refused: it would be another run
    "identity": (
        "run.seed",
        "data.sources",
        "data.tokenizer",
        "data.redact",
        "data.detect_language",
        "data.clean",
        "data.split",
        "data.pack",
        "data.mixture",
        "data.phases",
        "data.curriculum",
        "model",
        "optim.name",  # another optimizer cannot go on with this one's state
    ),
    # accepted, and appended to changes.jsonl
    "recorded": (
        "run.deterministic",
        "data.max_epochs",
        "data.max_bad_fraction",
        "loss",
        "optim.rates",
        "optim.betas",
        "optim.eps",
        "optim.momentum",
        "optim.momentum_warmup",
        "optim.weight_decay",
        "optim.cautious",
        "optim.grad_clip",
        "schedule",
        "train",
        "eval",
        "save.every",
    ),
    # accepted: no result depends on it
    "free": (
        "run.name",
        "run.dir",
        "run.device",
        "run.threads",
        "data.dir",
        "data.workers",
        "save.keep",
        "save.keep_every",
        "save.background",
        "save.payload",
        "track",
    ),
}

# One of several: naming another member takes the place of the one before it. None: any key is a member.
ONE_OF: dict[Path, frozenset[str] | None] = {
    ("loss", "base"): None,
    ("data", "tokenizer"): frozenset(TOKENIZERS),
    ("train",): frozenset({"steps", "tokens", "epochs"}),
}


def dotted(path: Path) -> str:
    """`("loss", "add", 0, "z")` as `loss.add[0].z`."""
    parts = [f"[{p}]" if isinstance(p, int) else f".{p if p.isprintable() else ascii(p)}" for p in path]
    return "".join(parts).removeprefix(".")


DESCRIBED = re.compile(r"data\.(split\.)?sources\.[^.]+\.(license|origin)")
"""What is said of a source and decides no token: free, though the source is the run's identity."""


def tag_of(key: str) -> Tag:
    """The tag of a dotted key; a key that the table does not cover, such as one of a later version, is recorded."""
    if DESCRIBED.fullmatch(key):
        return "free"
    for tag, prefixes in TAGS.items():
        if any(key == prefix or key.startswith((f"{prefix}.", f"{prefix}[")) for prefix in prefixes):
            return tag
    return "recorded"


@cache
def adapter() -> TypeAdapter[RunConfig]:
    """The validator of `RunConfig`, built on first use."""
    return TypeAdapter(RunConfig)


@cache
def raw_schema() -> dict[str, Any]:
    """The JSON schema of a complete config in long form."""
    return adapter().json_schema()


def to_tree(config: RunConfig) -> dict[str, Any]:
    """The config as dicts, lists and scalars: what YAML and JSON can hold, every field present."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    tree: dict[str, Any] = plain(dataclasses.asdict(config))
    return tree


@dataclass(frozen=True)
class Change:
    """One key whose value differs; None stands for a key that is not there."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {json.dumps(self.old)} -> {json.dumps(self.new)}"


@dataclass(frozen=True)
class Changes:
    """The keys that differ, by what may be done about it."""

    identity: tuple[Change, ...] = ()
    """Refused: it would be another run."""
    recorded: tuple[Change, ...] = ()
    """Accepted and written down."""
    free: tuple[Change, ...] = ()
    """Accepted."""


def changes(old_tree: dict[str, Any], new: RunConfig) -> Changes:
    """What differs between the tree of a run's `config.yaml` and `new`.

    A field that the old tree lacks counts as its default, so that a run outlives the fields added after it began.
    """
    from .validate import complete

    by_tag: dict[Tag, list[Change]] = {tag: [] for tag in TAGS}
    for change in _differences(complete(old_tree), to_tree(new), ()):
        by_tag[tag_of(change.key)].append(change)
    return Changes(**{tag: tuple(found) for tag, found in by_tag.items()})


def _differences(old: Any, new: Any, path: Path) -> list[Change]:
    """Leaves that differ; a mapping that appears, disappears, or holds one of several is a leaf."""
    both = isinstance(old, dict) and isinstance(new, dict) and ((old and new) or not path)
    swapped = both and ONE_OF.get(path, path) is None and old.keys() != new.keys()
    if swapped or not both:
        return [] if old == new else [Change(dotted(path), old, new)]
    keys = list(new) + [k for k in old if k not in new]
    return [c for k in keys for c in _differences(old.get(k), new.get(k), (*path, k))]


if __name__ == "__main__":
    from .reference import json_schema

    print(json.dumps(json_schema(), indent=1))
