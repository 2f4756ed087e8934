"""Losses from a user's own file, named in YAML as `my_losses.py:poly`.

The file is parsed to check a config and run only to build the objective, so that looking at a config runs no code.
"""

import ast
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .registry import Part, Problem, describe, hint


def is_plugin(name: str) -> bool:
    """Whether a part's name says a function in a file."""
    return ".py:" in name


def split(name: str) -> tuple[Path, str]:
    """File and function."""
    file, _, function = name.rpartition(":")
    return Path(file), function


def check_plugin(name: str, options: Mapping[str, Any], *, scaled: bool) -> list[Problem]:
    """What can be seen to be wrong with a plugin without running it: file, syntax, function, names of options.

    `scaled`: it is a term, and has a coefficient.
    """
    path, function = split(name)
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        return [((name,), f"{path} cannot be read: {error.strerror}")]
    except (SyntaxError, ValueError) as error:
        return [((name,), f"{path} is not Python: {error}")]
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function not in found:
        return [((name,), f"{path} has no function {function!r}{hint(function, found)}")]
    arguments = found[function].args
    known = [argument.arg for argument in arguments.kwonlyargs]
    reads = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args)}
    known += [*(["coef"] if scaled else []), *(["prior"] if reads & {"lu", "ut", "u", "log_u"} else [])]
    return [
        ((name, option), f"{function} has no option {option!r}{hint(option, known)}")
        for option in options
        if option not in known
    ]


def load(name: str, coef: float | None) -> Part:
    """The part that a function in a file is: runs the file. Raises ValueError when that fails."""
    path, function = split(name)
    spec = importlib.util.spec_from_file_location(f"thimble_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be read")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles in the file look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = next(
            (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), 0
        )
        raise ValueError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    if not callable(found := getattr(module, function, None)):
        raise ValueError(f"{path} has no function {function!r}")
    try:
        return describe(found, coef)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
