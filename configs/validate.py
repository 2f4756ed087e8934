"""From the tree of a config to a `RunConfig`, or to all that is wrong with it."""

import copy
import json
from collections.abc import Callable
from dataclasses import fields as fields_of
from typing import Any, cast

from pydantic import ValidationError

from loss.registry import LISTS
from model.config import ModelConfig
from trainer.config import AUTO, Rates, RunSection

from .auto import has_auto, without_auto
from .checks import Problem, check, check_model, hint
from .reference import Node, child, choices, fields, kind, resolve
from .schema import SECTIONS, Path, RunConfig, adapter, dotted, raw_schema, to_tree

# Stand-ins for required values that are missing or wrong, so that the rest can be checked all the same.
_STAND_INS: dict[Path, Any] = {
    ("run",): {"name": "unnamed"},
    ("run", "name"): "unnamed",
    ("data",): {"sources": {"unnamed": {"kind": "text", "files": ["-"]}}},
    ("data", "sources"): {"unnamed": {"kind": "text", "files": ["-"]}},
    ("model", "heads"): 1,
}


def expand(tree: dict[str, Any]) -> dict[str, Any]:
    """Short forms written out: `loss: ce`, `base: ce`, `add: [z]`, `tokenizer: byte`, `rates: auto`, empty sections."""
    tree = {k: {} if v is None and k in SECTIONS else v for k, v in tree.items()}
    loss, data = tree.get("loss"), tree.get("data")
    if isinstance(loss, str):
        tree["loss"] = {"base": {loss: {}}, **{key: [] for key in LISTS}, "ahead": [], "teacher": None}
    elif isinstance(loss, dict):
        tree["loss"] = loss | {
            key: (_term if key == "base" else _terms)(loss[key]) for key in ("base", *LISTS) if key in loss
        }
    if isinstance(data, dict) and data.get("tokenizer") in ("byte", "char"):
        tree["data"] = data | {"tokenizer": {"level": data["tokenizer"]}}
    optim = tree.get("optim")
    if isinstance(optim, dict) and optim.get("rates") == AUTO:
        tree["optim"] = optim | {"rates": {f.name: AUTO for f in fields_of(Rates)}}
    return tree


def _term(value: Any) -> Any:
    if isinstance(value, str):
        return {value: {}}
    return {k: {} if v is None else v for k, v in value.items()} if isinstance(value, dict) else value


def _terms(value: Any) -> Any:
    return [_term(v) for v in value] if isinstance(value, list) else value


def validate(
    tree: dict[str, Any], record: Callable[[RunSection], dict[str, Any] | None] | None = None
) -> tuple[RunConfig | None, list[Problem]]:
    """The config, or None and every mistake: first those of single fields, then those between sound fields.

    What is `auto` comes from the tree that `record` has of the run if it has begun.
    """
    work = copy.deepcopy({"run": {}, "data": {}} | expand(tree))
    problems: list[Problem] = []
    bad: set[Path] = set()  # what was taken out of `work`, so that nothing can be said about it
    for _ in range(20):  # a few rounds are enough
        try:
            config = adapter().validate_json(json.dumps(work))
            break
        except ValidationError as error:
            found = {p.path: p for e in error.errors(include_url=False) for p in _problems(dict(e), work)}
            problems += [p for p in found.values() if _sound(p, bad)]
            for path in found:
                bad.add(_take_out(work, path, bad))
    else:
        return None, problems
    began = record(config.run) if record and has_auto(config) else None
    config = without_auto(config, validate(began)[0] if began else None)
    problems += [p for p in check(config) if _sound(p, bad)]
    return (None if problems else config), problems


def complete(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree with every default filled in; one that is no longer valid is returned as it is, in long form."""
    config, _ = validate(tree)
    return to_tree(config) if config else expand(tree)


def _sound(problem: Problem, bad: set[Path]) -> bool:
    """Whether a problem rests on values of the user's alone, none of which was taken out."""
    return not any(p[: len(b)] == b[: len(p)] for p in (problem.path, *problem.reads) for b in bad)


def _take_out(tree: dict[str, Any], path: Path, bad: set[Path]) -> Path:
    """Remove what is at `path`, so that its default counts; where none does, a stand-in comes, or its parent goes.

    Returns the path that was changed, one that is not in `bad` already.
    """
    for end in range(len(path), 0, -1):
        holder: Any = tree
        for part in path[: end - 1]:
            holder = holder.get(part) if isinstance(holder, dict) else None
        part, start = path[end - 1], path[:end]
        if isinstance(holder, dict) and start not in bad and (part in holder or start in _STAND_INS):
            if start in _STAND_INS:
                holder[part] = copy.deepcopy(_STAND_INS[start])
            else:
                del holder[part]
            return start
    return ()


def _problems(error: dict[str, Any], tree: dict[str, Any]) -> list[Problem]:
    """One of pydantic's errors as paths in the tree and lines about them."""
    node: Node | None = raw_schema()
    value: Any = tree
    path: Path = ()
    for part in error["loc"]:  # ends with names of a union's branches, which are no part of the path
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        below = child(node, part) if node is not None else None
        if not inside or (below is None and error["type"] != "unexpected_keyword_argument"):
            break
        value, path, node = value[part], (*path, part), below
    if error["type"] == "missing" and isinstance(error["loc"][-1], str):
        return [_missing(path, error["loc"][-1], node or {})]
    if error["type"] == "unexpected_keyword_argument":
        return [Problem(path, _unknown(path))]
    if error["type"] == "value_error":  # the section's own class refuses it
        known = list(check_model(cast(ModelConfig, _Loose(ModelConfig(), value)))) if path == ("model",) else []
        return known or [Problem(path, f"{dotted(path)}: {error['ctx']['error']}")]
    node = node or {}
    return [Problem(path, f"{dotted(path)}: {show(value)} is not {kind(node)}{_advice(value, node, path)}")]


class _Loose:
    """The fields of a section, sound one by one but perhaps not together."""

    def __init__(self, defaults: object, given: dict[str, Any]) -> None:
        self.__dict__ = vars(defaults) | given


def _missing(path: Path, name: str, node: Node) -> Problem:
    below = child(node, name) or {}
    words = choices(below)
    doc = ", ".join(words) or below.get("description", "").split(";")[0].rstrip(".")
    return Problem((*path, name), f"{dotted((*path, name))} is missing ({doc})")


def _unknown(path: Path) -> str:
    """An unknown key: the nearest of its siblings, or the key of that name elsewhere, or what there is."""
    word = str(path[-1])
    node: Node = raw_schema()
    for part in path[:-1]:
        node = child(node, part) or {}
    siblings = {name: dotted((*path[:-1], name)) for name in resolve(node).get("properties", ())}
    everywhere = {f.key.rsplit(".", 1)[-1]: f.key for f in reversed(list(fields()))}
    near = hint(word, siblings) or hint(word, everywhere) or f"; there are {', '.join(siblings)}"
    return f"unknown key {dotted(path)!r}{near}"


def show(value: Any) -> str:
    """A value in one short line, as YAML would have it."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _advice(value: Any, node: Node, path: Path) -> str:
    """What to write instead, when it can be guessed."""
    wanted = kind(node)
    numeric = any(word in wanted for word in ("number", "integer", "length"))
    write: Any = None
    if path == ("data", "tokenizer"):
        write = "byte, char, {file: PATH} or {train: {vocab_size: N}}"
    elif isinstance(value, str) and wanted.startswith("a list of"):
        write = f"[{value}]" if value.isprintable() else None
    elif isinstance(value, str) and "true" in wanted and value.lower() in _SPELLED:
        write = _SPELLED[value.lower()]
    elif isinstance(value, str) and numeric:
        plain = value.replace("_", "").replace(",", "")
        write = plain if plain.replace(".", "", 1).isdecimal() else None
    elif isinstance(value, bool) and "off" in wanted:
        write = {True: "on", False: "off"}[value] if not value or "on or off" in wanted else None
    elif isinstance(value, float) and value.is_integer() and numeric:
        write = int(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and wanted.startswith("text"):
        write = f'"{value}"'
    elif wanted.startswith("a length"):
        return ": 0.1 (a fraction of the run), 500 (steps) or '5M tokens'"
    if write is None and isinstance(value, str):
        return hint(value, choices(node))
    return "" if write is None else f"; write {write}"


_SPELLED = dict.fromkeys(("on", "yes", "y"), "true") | dict.fromkeys(("off", "no", "n"), "false")
