"""YAML files and `key=value` in, a `RunConfig` out; and back.

A config is made of layers: the file that `extends:` names, at any depth, then the file, then each `key.sub=value`.
Later layers win:

- mappings merge key by key; lists and scalars are replaced;
- naming another member of a one-of (`loss.base`, `data.tokenizer`, the length in `train`) replaces the old member;
- `data.sources`, `data.split.sources`, `data.mixture` and `loss.base` are replaced as a whole where a layer gives the
  mapping itself, so that a corpus of one's own does not join the base file's, nor a loss take over another's options;
  `data.sources.web.split=x` changes one field.

Short forms are written out in each layer before it is merged, and files that a loss names are looked for beside the
layer's file. Every value keeps its place for error messages.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from durable import list_checkpoints
from loss.registry import SHAPES, map_paths
from trainer.config import RunSection

from .checks import hint
from .schema import ONE_OF, Path, RunConfig, to_tree
from .strict_yaml import Document, parse, write
from .validate import expand, validate

RECIPES = FilePath(__file__).parent
_WHOLE: set[Path] = {("data", "sources"), ("data", "split", "sources"), ("data", "mixture"), ("loss", "base")}
_OVERRIDE = re.compile(r"(?:--)?([A-Za-z_][\w-]*(?:\.[\w-]+)*)=(.*)", re.DOTALL)


class ConfigError(ValueError):
    """What is wrong with a config, one line for each mistake."""

    def __init__(self, errors: Sequence[str]) -> None:
        self.errors = [_printable(error) for error in errors]
        super().__init__(self.errors)

    def __str__(self) -> str:
        count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
        return "\n".join([*self.errors, f"{count}; nothing was run."])


def _printable(text: str) -> str:
    """`text` with escapes for what would move a terminal's cursor: a name may hold any character."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def read_tree(path: FilePath) -> dict[str, Any]:
    """A config that `dump` wrote, as it stands: not checked, so that one of an older schema can be read too.

    Raises ConfigError when there is no mapping in it.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError([f"{path}: cannot be read: it is not a file"])  # nobody may ever write to a pipe
        tree = parse(path.read_text(encoding="utf-8")).tree
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([f"{path}: cannot be read: {reason}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError([f"{path}: holds no config"])
    return tree


@dataclass(frozen=True, order=True)
class _Place:
    """Where a value was written: the layer and its line, for sorting, and both as text."""

    layer: int
    line: int
    text: str


@dataclass
class _Reading:
    """Layers merged so far."""

    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, _Place] = field(default_factory=dict)
    errors: list[tuple[_Place, str]] = field(default_factory=list)
    layers: int = 0
    broken: bool = False  # some layer could not be read, so that checking the rest would report what is not wrong

    def add(
        self, document: Document, name: str, at: Path = (), numbered: bool = True, folder: FilePath = FilePath()
    ) -> None:
        """Merge one layer whose value belongs at the path `at`; `folder` is where a loss finds the files it names."""
        self.layers += 1
        places = {
            path: _Place(self.layers, line, f"{name}:{line}" if numbered else name)
            for path, line in document.lines.items()
        }
        start = places.get((), _Place(self.layers, 1, f"{name}:1" if numbered else name))
        for line, message in document.problems:
            self.errors.append((_Place(self.layers, line, f"{name}:{line}" if numbered else name), message))
        own = {at[:i]: start for i in range(1, len(at) + 1)} | {(*at, *path): place for path, place in places.items()}
        value = document.tree
        for part in reversed(at):
            value = {part: value}
        value = expand(value)
        if isinstance(value.get("loss"), dict):
            value["loss"] = map_paths(value["loss"], lambda path: os.path.abspath(folder / path))
        self.tree = _merge(self.tree, value, (), len(at))
        there = set(_paths(self.tree, ()))  # a replaced mapping leaves no places behind
        self.places = {path: place for path, place in self.places.items() if path in there}
        self.places |= {path: _nearest(own, path) or start for path in _paths(value, ()) if path} | own

    def place(self, path: Path) -> _Place:
        """Where the value at `path`, or the nearest one around it, was written."""
        return _nearest(self.places, path) or _Place(0, 1, "config")


def _nearest(places: Mapping[Path, _Place], path: Path) -> _Place | None:
    """The place of `path`, or of the nearest value around it."""
    while path and path not in places:
        path = path[:-1]
    return places.get(path)


def _paths(value: Any, path: Path) -> Iterator[Path]:
    """The paths of a value and of all inside it."""
    yield path
    if isinstance(value, (dict, list)):
        for part, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(below, (*path, part))


def load(path: str | os.PathLike[str], overrides: Sequence[str] = (), *, go_on: bool = False) -> RunConfig:
    """The config in a YAML file, changed by `key.sub=value` texts. Raises `ConfigError` with all that is wrong.

    What is `auto` in it comes from a rule, or with `go_on` from the run's own record if it has a checkpoint.
    """
    reading = _Reading()
    _read_file(os.fspath(path), reading, ())
    for text in overrides:
        _read_override(text, reading)
    config = None
    if not reading.broken:
        config, problems = validate(reading.tree, _record if go_on else None)
        reading.errors += [(reading.place(p.path), p.message) for p in problems]
    if reading.errors or config is None:
        ordered = sorted(reading.errors, key=lambda error: error[0])
        raise ConfigError([f"{place.text}: {message}" for place, message in ordered])
    return config


def _record(run: RunSection) -> dict[str, Any] | None:
    """The tree of a run's `config.yaml`; None where nothing was trained yet or there is none that can be read."""
    place = FilePath(run.dir, run.name)
    try:
        return read_tree(place / "config.yaml") if list_checkpoints(place) else None
    except (ValueError, OSError):
        return None


def dump(config: RunConfig) -> str:
    """YAML of a config with every field; it loads back to an equal config."""
    return write(to_tree(config))


def _merge(old: Any, new: Any, path: Path, literal: int) -> Any:
    """`new` over `old`; a mapping in `new` was written as such where `path` has at least `literal` parts."""
    if not (isinstance(old, dict) and isinstance(new, dict)) or (path in _WHOLE and len(path) >= literal):
        return new
    if path[:1] == ("loss",) and not new.keys().isdisjoint(SHAPES):
        return new  # a number that moves is one value
    if path in ONE_OF:
        members = ONE_OF[path]
        if any(value is not None and (members is None or key in members) for key, value in new.items()):
            old = {k: v for k, v in old.items() if k in new or (members is not None and k not in members)}
    merged = {k: _merge(old[k], v, (*path, k), literal) if k in old else v for k, v in new.items()}
    return {k: merged.get(k, v) for k, v in old.items()} | merged


def _read_file(name: str, reading: _Reading, above: tuple[str, ...]) -> None:
    """Add a file's layer, after those of the files that it extends."""
    document = _open(name)
    tree = document.tree
    unreadable = tree is None and bool(document.problems)
    if tree is None and not unreadable:
        document.problems.append((1, "an empty config"))
    elif not unreadable and not isinstance(tree, dict):
        document.problems.append((1, f"a config is a mapping of sections, not {_what(tree)}"))
    if not isinstance(tree, dict):
        reading.broken = True
        document.tree = {}
    elif "extends" in tree:
        base = tree.pop("extends")
        if error := _extend(name, base, reading, above):
            reading.broken = True
            document.problems.append((document.lines[("extends",)], error))
    reading.add(document, name, folder=FilePath(name).parent)


def _extend(name: str, base: Any, reading: _Reading, above: tuple[str, ...]) -> str:
    """Read the file that `name` extends; what is wrong with naming it, if anything."""
    if not isinstance(base, str) or not base.isprintable() or not base:
        return "extends: takes the path of one file"
    target = os.path.normpath(os.path.join(os.path.dirname(name), base))
    chain = (*above, name)
    if os.path.realpath(target) in map(os.path.realpath, chain):
        return f"extends: goes round in a circle: {' -> '.join((*chain, target))}"
    if not os.path.exists(target):
        return f"extends: {_missing_file(target)}"
    _read_file(target, reading, chain)
    return ""


def _open(name: str) -> Document:
    try:
        with open(name, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise ConfigError([_missing_file(name)]) from None
    except OSError as error:
        raise ConfigError([f"{name}: cannot be read: {error.strerror}"]) from None
    try:
        return parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return Document(problems=[(line, f"byte 0x{content[error.start]:02x} is not UTF-8")])


def _missing_file(name: str) -> str:
    recipes = [os.path.relpath(path) for path in sorted(RECIPES.glob("*.yaml"))]
    every = [os.path.relpath(path) for path in sorted(RECIPES.rglob("*.yaml"))]
    by_stem = {os.path.basename(path).removesuffix(".yaml"): path for path in every}
    stem = os.path.basename(name).removesuffix(".yaml")
    near = hint(stem, by_stem) if stem not in by_stem else f" — did you mean {by_stem[stem]!r}?"
    shown = name if name.isprintable() else ascii(name)
    return f"{shown}: no such file{near or ';'} recipes: {', '.join(recipes)}"


def _read_override(text: str, reading: _Reading) -> None:
    """Add the layer of one `key.sub=value`."""
    name = f"command line: {text if text.isprintable() else ascii(text)}"
    match = _OVERRIDE.fullmatch(text)
    if not match:
        document = Document(problems=[(1, "not of the form key.sub=value")])
    elif match[1] == "extends":
        document = Document(problems=[(1, "extends: is for files; give the other file instead")])
    else:
        document = parse(match[2])
    if match and not document.problems:
        reading.add(document, name, tuple(match[1].split(".")), numbered=False)
    else:
        reading.add(Document({}, {}, document.problems), name, numbered=False)


def _what(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{value!r}"[:60]
