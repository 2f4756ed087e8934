"""What the tests of configs share: writing files, collecting errors, and a small reader of JSON schemas."""

import re
from pathlib import Path
from typing import Any

from configs import ConfigError, load

BASE = """\
run: {name: x}
data: {sources: {a: {kind: text, files: [f.txt]}}}
train: {steps: 100, batch_tokens: 1024}
"""


def errors(path: Path, text: str | bytes = BASE, *overrides: str) -> list[str]:
    """The errors of a config with this text, with the file's folder left out; empty when it loads."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load(path, overrides)
    except ConfigError as error:
        return [line.replace(f"{path.parent}/", "") for line in error.errors]
    return []


def conforms(value: Any, node: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether `value` is valid by a JSON schema of the few keywords that ours uses; others are an error."""
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    for key, want in node.items():
        match key:
            case "$ref":
                ok = conforms(value, root["$defs"][want.removeprefix("#/$defs/")], root)
            case "type" if want in ("integer", "number"):
                ok = isinstance(value, int | float) and not isinstance(value, bool)
                ok = ok and (want == "number" or isinstance(value, int))
            case "type":
                ok = isinstance(value, types[want])
            case "enum":
                ok = value in want
            case "const":
                ok = value == want
            case "anyOf":
                ok = any(conforms(value, branch, root) for branch in want)
            case "required":
                ok = not isinstance(value, dict) or all(k in value for k in want)
            case "properties":
                ok = not isinstance(value, dict) or all(conforms(value[k], want[k], root) for k in want if k in value)
            case "additionalProperties":
                rest = (
                    [v for k, v in value.items() if k not in node.get("properties", {})]
                    if isinstance(value, dict)
                    else []
                )
                ok = all(want is True or (want is not False and conforms(v, want, root)) for v in rest)
            case "items":
                ok = not isinstance(value, list) or all(conforms(v, want, root) for v in value)
            case "prefixItems":
                ok = not isinstance(value, list) or all(conforms(v, w, root) for v, w in zip(value, want, strict=False))
            case "pattern":
                ok = not isinstance(value, str) or re.search(want, value) is not None
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                compare = {"minimum": "__ge__", "maximum": "__le__", "exclusiveMinimum": "__gt__"}.get(key, "__lt__")
                ok = not isinstance(value, int | float) or bool(getattr(float(value), compare)(float(want)))
            case "minLength" | "minItems" | "minProperties":
                ok = not isinstance(value, str | list | dict) or len(value) >= want
            case "maxItems":
                ok = not isinstance(value, list) or len(value) <= want
            case "description" | "default" | "$defs" | "$schema" | "title":
                ok = True
            case _:
                raise AssertionError(f"the test does not know the keyword {key!r}")
        if not ok:
            return False
    return True
