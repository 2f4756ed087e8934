"""YAML as configs use it: the scalars of YAML 1.2, a place for every value, and nothing clever.

`off`, `on`, `yes`, `no`, `12:30:00` and dates are text; `3e-4` and `1e9` are floats; `0o17` and `0x1f` are integers.
Refused, each with its line: duplicate keys, keys that are not text, aliases (`extends` does their work), merge keys
(`<<` is an unknown key), tags that name other types, infinities and NaN, text with a NUL.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from .schema import Path, dotted

_TAG = "tag:yaml.org,2002:"
_SCALARS = [  # the core schema of YAML 1.2.2, section 10.3.2
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else, so that any reader gets the same values."""


for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def _inline(dumper: _Dumper, items: list[Any]) -> Node:
    """A list of scalars on one line."""
    flat = not any(isinstance(item, (dict, list)) for item in items)
    return dumper.represent_sequence(f"{_TAG}seq", items, flow_style=flat)


def _text(dumper: _Dumper, text: str) -> Node:
    """Text in double quotes, which have an escape for everything, unless each character can be seen."""
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(list, _inline)
_Dumper.add_representer(str, _text)


_BAD = object()  # in place of a value that cannot be read; it is left out of the tree


@dataclass
class Document:
    """A parsed text: its value, the line of every path in it, and what is wrong as (line, message)."""

    tree: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def parse(text: str) -> Document:
    """Read one YAML document. Never raises: what cannot be read is in `problems`."""
    document = Document()
    try:
        node = yaml.compose(text, Loader=_Loader)
        tree = None if node is None else _value(node, (), document)
        document.tree = None if tree is _BAD else tree
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.problems.append((line, f"character U+{error.character:04X} is not allowed"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(filter(None, (error.context, error.problem)))
        if "'\\t'" in message:
            message = "a tab; YAML indents with spaces"
        document.problems.append((mark.line + 1 if mark else 1, message))
    except RecursionError:
        document.problems.append((1, "nested too deeply"))
    return document


def _value(node: Node, path: Path, document: Document) -> Any:
    document.lines[path] = node.start_mark.line + 1
    if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
        items: list[Any] = []
        for item_node in node.value:
            place = (*path, len(items))  # where the item is in the tree, in which there is no bad one before it
            item = _value(item_node, place, document)
            if item is _BAD:
                del document.lines[place]
            else:
                items.append(item)
        return items
    if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, path, document)
    try:
        return _scalar(node)
    except ValueError as error:
        where = f"{dotted(path)}: " if path else ""
        document.problems.append((node.start_mark.line + 1, f"{where}{error}"))
        return _BAD


def _mapping(node: MappingNode, path: Path, document: Document) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag != f"{_TAG}str" or not isinstance(key_node, ScalarNode):
            what = repr(key_node.value) if isinstance(key_node, ScalarNode) else "a list or mapping"
            document.problems.append((line, f"{dotted(path) or 'a config'} has {what} as a key; keys are text"))
            continue
        key = key_node.value
        below = (*path, key)
        if key in tree:
            first = document.lines[below]
            document.problems.append((line, f"{dotted(below)} is given twice, first in line {first}"))
            continue
        tree[key] = _value(value_node, below, document)
        document.lines[below] = line
    return {key: value for key, value in tree.items() if value is not _BAD}


def _scalar(node: Node) -> Any:
    """A scalar by its tag. Raises ValueError with a reason."""
    kind, text = node.tag.removeprefix(_TAG), node.value
    if not isinstance(node, ScalarNode) or kind not in ("null", "bool", "int", "float", "str"):
        raise ValueError(f"the tag {node.tag.replace(_TAG, '!!')!r} is not supported")
    if kind == "str":
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError("text that is not valid Unicode")
        if "\0" in text:
            raise ValueError("text with a NUL, which no path or name can hold")
        return text
    if kind == "null":
        return None
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is not true or false")
        return text.lower() == "true"
    if kind == "int":
        if not re.fullmatch(_SCALARS[2][1], text):
            raise ValueError(f"{text!r} is not an integer")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        if len(text) > 70 or abs(number := int(text, base)) >= 2**63:
            raise ValueError(f"{text[:20]}{'...' if len(text) > 20 else ''} does not fit into 64 bits")
        return number
    value = float(text) if re.fullmatch(_SCALARS[3][1], text) else math.nan  # .inf and .nan
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def write(tree: dict[str, Any]) -> str:
    """YAML that `parse` reads back to the same tree: mappings in blocks, lists of scalars on one line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**9)
