"""The schema for people (`--help`) and for editors (`schema.json`)."""

import copy
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from loss.registry import LISTS, options_text

from .schema import raw_schema, tag_of

Node = dict[str, Any]  # a part of a JSON schema

WIDTH = 120
TOKENS = r"^\d+(\.\d+)?\s*[kMBG]?(\s+tokens?)?$"
LENGTH = r"^\d+(\.\d+)?\s*[kMBG]?\s+tokens?$"


def resolve(node: Node) -> Node:
    """The node, or the definition that it refers to."""
    name = node.get("$ref", "").removeprefix("#/$defs/")
    return raw_schema()["$defs"][name] if name else node


def child(node: Node, part: str | int) -> Node | None:
    """The node of one key or index below a node, or None when nothing may be there."""
    node = resolve(node)
    for branch in node.get("anyOf", ()):
        if (found := child(branch, part)) is not None:
            return found
    if isinstance(part, int):
        fixed = node.get("prefixItems", ())
        found = fixed[part] if part < len(fixed) else node.get("items")
    else:
        found = node.get("properties", {}).get(part, node.get("additionalProperties"))
    return {} if found is True else found or None


def kind(node: Node) -> str:
    """What a node takes, as it reads after `is not`: `an integer >= 1`, `auto, on or off`."""
    node = resolve(node)
    if "anyOf" in node:
        branches = [b for b in node["anyOf"] if b.get("type") != "null"]
        null = ["null"] if len(branches) < len(node["anyOf"]) else []
        open_ended = [b for b in branches if not choices(b)]
        names = [resolve(b).get("type") for b in open_ended]
        if names == ["integer", "number", "string"]:
            length = "a length" if branches[0].get("minimum") == 0 else "a length > 0"
            return _either([length, *choices({"anyOf": branches})])
        if names == ["integer", "string"]:
            return _either(["a number of tokens", *null])
        return _either([*map(kind, open_ended), *choices({"anyOf": branches}), *null])
    if choices(node):
        return _either(choices(node))
    match node.get("type"):
        case "array" if "prefixItems" in node:
            return f"a list of {len(node['prefixItems'])} {_plural(kind(node['prefixItems'][0]))}"
        case "array":
            return f"a list of {_plural(kind(node['items']))}"
        case "object":
            return "a mapping that is not empty" if node.get("minProperties") else "a mapping"
        case "string":
            return "text (not empty)" if node.get("minLength") else "text"
        case "integer" | "number":
            return f"{'an' if node['type'] == 'integer' else 'a'} {node['type']}{_range(node)}"
    return str(node.get("type", "anything"))


def choices(node: Node) -> list[str]:
    """The words that a node takes, when it takes only some."""
    node = resolve(node)
    if node.get("type") == "boolean":
        return ["true", "false"]
    words = [str(word) for word in node.get("enum", [node["const"]] if "const" in node else [])]
    return words + [word for branch in node.get("anyOf", ()) for word in choices(branch)]


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _plural(words: str) -> str:
    return re.sub(r"^(a|an) (\w+)", r"\2s", words)


def _range(node: Node) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    high, below = (None if bound is None or bound >= 2**53 else bound for bound in (high, below))  # the type's own
    first = f"[{_number(low)}" if low is not None else f"({_number(above)}" if above is not None else None
    last = f"{_number(high)}]" if high is not None else f"{_number(below)})" if below is not None else None
    if first and last:
        return f" in {first}, {last}"
    if first:
        return f" >= {first[1:]}" if low is not None else f" > {first[1:]}"
    if last:
        return f" <= {last[:-1]}" if high is not None else f" < {last[:-1]}"
    return ""


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


@dataclass(frozen=True)
class Field:
    """One key of the schema; `<name>` in it stands for a name of the user's."""

    group: str
    key: str
    kind: str
    default: str
    doc: str


def fields() -> Iterator[Field]:
    """Every key of the schema in order: those of a section first, then those of its named entries."""
    for section, node in raw_schema()["properties"].items():
        yield from _fields(node, section, f"{section}.", {})
        for name, value in resolve(node)["properties"].items():
            if "properties" in resolve(value.get("additionalProperties") or {}):
                group = f"{section}.{name}.<name>"
                yield from _fields(value["additionalProperties"], group, f"{group}.", {})


def _fields(node: Node, group: str, prefix: str, defaults: dict[str, Any]) -> Iterator[Field]:
    node = resolve(node)
    for name, value in node["properties"].items():
        key = prefix + name
        given = defaults.get(name, value.get("default", {}))
        inner = next((b for b in (value, *value.get("anyOf", ())) if "properties" in resolve(b)), None)
        if inner is not None:
            yield from _fields(inner, group, f"{key}.", given or {})
            continue
        plain = {k: v for k, v in value.items() if k != "description"}
        text = "required" if name in node.get("required", ()) else _flow(given)
        yield Field(group, key, re.sub("^(a|an) ", "", kind(plain)), text, value.get("description", ""))


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    return value if isinstance(value, str) and value else json.dumps(value)


NOTES = """\
* part of a run's identity: a run goes on only with the same value.

A length is 0.1 (a fraction of the run), 500 (steps) or '5M tokens' (k, M, B).
Exactly one of train.steps, train.tokens and train.epochs is given; key=value takes the place of the file's.
Short forms: loss: ce, loss.base: ce, loss.add: [z], data.tokenizer: byte.
extends: other.yaml at the top of a file starts from another one. Mappings merge, except that a given value of
data.sources, data.split.sources, data.mixture or loss.base replaces the other file's. A name alone, loss: focal, is a
whole loss: nothing of the other one stays but fused and chunk."""


def describe() -> str:
    """Every key of a config with its type, default and meaning, by section, at most 120 columns wide."""
    lines: list[str] = []
    sections = raw_schema()["properties"]
    for group, rows in groupby(fields(), lambda field: field.group):
        title = sections[group]["description"] if group in sections else "One entry for each corpus, under any name."
        lines += ["", f"{group}: {title}", *_table(group, list(rows))]
    return "\n".join([*lines, "", *_loss_parts(), "", NOTES]).strip()


def _loss_parts() -> list[str]:
    """The registered parts of a loss with their options and defaults."""
    from loss.terms import TERMS, TRANSFORMS, WEIGHTS

    lines: list[str] = []
    groups = {"terms, for loss.base and loss.add": TERMS, "weights, for loss.weights": WEIGHTS}
    for title, parts in (groups | {"changes of the logits, for loss.logits": TRANSFORMS}).items():
        lines += ["", f"Loss {title}:"]
        for name, part in parts.items():
            doc = " ".join((part.function.__doc__ or "").split())
            lines += textwrap.wrap(f"  {name}: {{{options_text(part)}}}  {doc}", 116, subsequent_indent="    ")
    return lines[1:]


def _table(group: str, rows: list[Field]) -> list[str]:
    """Rows in columns, the last one wrapped."""
    star = {"identity": "*"}
    table = [
        (star.get(tag_of(row.key), " ") + row.key.removeprefix(f"{group}."), row.kind, row.default) for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells, row in zip(table, rows, strict=True):
        head = " " + "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + "  "
        doc = " ".join(row.doc.replace("`", "").split())
        lines += textwrap.wrap(doc, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or [head.rstrip()]
    return lines


def json_schema() -> Node:
    """The JSON schema of a config file as it is written: short forms, `extends`, and parts of a config beside it."""
    schema = copy.deepcopy(raw_schema())
    definitions = schema["$defs"]
    for node in (*definitions.values(), schema):
        node.pop("title", None)
        node.pop("required", None)
        for value in node.get("properties", {}).values():
            value.pop("title", None)
            _patterns(value)
    for name, value in schema["properties"].items():  # an empty section has its defaults
        schema["properties"][name] = {"anyOf": [value, {"type": "null"}], "description": value.pop("description", "")}
    options = {"anyOf": [{"type": "object"}, {"type": "null"}]}
    term = {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": options}]}
    loss = definitions["LossConfig"]["properties"]
    loss["base"] = {"description": loss["base"]["description"], **term}
    for key in LISTS:
        loss[key]["items"] = term
    number = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "object"}]}
    loss["ahead"]["items"] = number
    schema["properties"]["loss"]["anyOf"].append({"type": "string"})
    tokenizer = definitions["DataConfig"]["properties"]["tokenizer"]
    tokenizer["anyOf"] = [{"$ref": tokenizer.pop("$ref")}, {"enum": ["byte", "char"]}]
    rates = definitions["OptimConfig"]["properties"]["rates"]
    rates["anyOf"] = [{"$ref": rates.pop("$ref")}, {"const": "auto"}]
    extends = {"type": "string", "description": "Another config, relative to this one, that this one changes."}
    named = {"additionalProperties": {"required": ["kind"]}}
    sources = {"sources": named, "split": {"properties": {"sources": named}}}
    whole = {
        "required": ["run", "data"],
        "properties": {"run": {"required": ["name"]}, "data": {"required": ["sources"], "properties": sources}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Thimble run config",
        "type": "object",
        "additionalProperties": False,
        "properties": {"extends": extends, **schema["properties"]},
        "anyOf": [{"required": ["extends"]}, whole],
        "$defs": definitions,
    }


def _patterns(node: Node) -> None:
    """Give the text form of lengths and token counts its pattern."""
    names = [None if choices(b) else b.get("type") for b in node.get("anyOf", ())]
    if "integer" in names and "string" in names:
        node["anyOf"][names.index("string")]["pattern"] = LENGTH if "number" in names else TOKENS
