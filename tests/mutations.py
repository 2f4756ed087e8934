"""Inputs gone wrong at random: the texts of configs, and the directories of runs. All are functions of a `Random`."""

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63 - 1, 2**63, 10**400, -(10**30), 0.0, 1e-320, 1e308, -0.5, 0.5, 3.0,
    "", " ", "x", "off", "none", "auto", "5M tokens", "-5M tokens", "1e9B", "\u202e\u0000\ud7ff", "ü" * 5000, "../..",
    "/dev/null", "/proc/self/mem", "a\nb\tc", "{x", "<<", [], [[]], [1, "a", None], {}, {"": 1},
    {"a": {"b": []}}, {"ce": {}},
]  # fmt: skip
SNIPPETS = [
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\t", b"&a ", b"*a", b"<<: *a\n", b"<<: {a: 1}\n",
    b"!!python/object:os.system ", b"!!binary aGk=", b"!!set {a}", b"!x ", b"%YAML 1.1\n---\n", b"---\n", b"...\n",
    b"? [1]\n: 2\n", b"{" * 2000, b"[" * 50, b"- " * 3000, b"|\n", b": ", b"#", b"'", b'"', b"\\ud800", b"2024-01-01",
    b".nan", b"1_000", b"0o17", b"\xe2\x80\xa8", b"\r",
]  # fmt: skip


def config_text(rng: Random, tree: dict[str, Any]) -> bytes:
    """YAML of `tree` after one to three mutations of its structure, its values or its bytes."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((0, 1, 1, 2))):
        rng.choice(_OF_TREES)(rng, tree)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5).encode(errors="surrogatepass")
    for _ in range(rng.choice((0, 1, 1, 2))):
        text = rng.choice(_OF_BYTES)(rng, text)
    return text


def _holders(value: Any) -> Iterator[Any]:
    """Every mapping and list inside a value that has anything in it."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for below in value.values() if isinstance(value, dict) else value:
            yield from _holders(below)


def _somewhere(rng: Random, tree: Any) -> tuple[Any, Any]:
    """A mapping or list of the tree, and one of its keys."""
    holder = rng.choice(list(_holders(tree)) or [tree])
    return holder, rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder))) if holder else None


def _set(rng: Random, tree: dict[str, Any]) -> None:
    holder, key = _somewhere(rng, tree)
    if holder:
        holder[key] = copy.deepcopy(rng.choice(VALUES))


def _drop(rng: Random, tree: dict[str, Any]) -> None:
    holder, key = _somewhere(rng, tree)
    if holder:
        del holder[key]


def _rename(rng: Random, tree: dict[str, Any]) -> None:
    holder, key = _somewhere(rng, tree)
    if isinstance(holder, dict) and holder:
        spelled = [str(key) + "s", str(key)[1:], str(key).upper(), "", "é", 3, None, True, "a.b", str(key) * 300]
        holder[rng.choice(spelled)] = holder.pop(key)


def _move(rng: Random, tree: dict[str, Any]) -> None:
    """Wrong nesting: a value of one place appears at another."""
    (one, a), (other, b) = _somewhere(rng, tree), _somewhere(rng, tree)
    if one and other:
        other[b] = copy.deepcopy(one[a])


def _wrap(rng: Random, tree: dict[str, Any]) -> None:
    holder, key = _somewhere(rng, tree)
    if holder:
        holder[key] = rng.choice(({"x": holder[key]}, [holder[key]], str(holder[key])))


def _cut(rng: Random, text: bytes) -> bytes:
    return text[: rng.randrange(len(text) + 1)]


def _flip(rng: Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(rng: Random, text: bytes) -> bytes:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(SNIPPETS) + text[at:]


def _swap_lines(rng: Random, text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    rng.shuffle(lines) if rng.random() < 0.3 else lines.insert(0, lines[rng.randrange(len(lines))] if lines else b"")
    return b"".join(lines)


def _garble(rng: Random, text: bytes) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 20, 2000)))


_OF_TREES: tuple[Callable[[Random, dict[str, Any]], None], ...] = (_set, _set, _set, _drop, _rename, _move, _wrap)
_OF_BYTES: tuple[Callable[[Random, bytes], bytes], ...] = (_cut, _flip, _insert, _insert, _swap_lines, _garble)


def hurt_run(rng: Random, run: Path) -> str:
    """Do one thing to a file of the run at `run`; what was done, in words."""
    kept = ("curves.png", "run.lock")
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name not in kept)
    file = rng.choice(files + [path for path in files if path.suffix in (".json", ".jsonl", ".yaml", "")])
    act = rng.choice(_OF_FILES)
    act(rng, file, files)
    return f"{act.__name__.strip('_')} {file.relative_to(run)}"


def _missing(rng: Random, file: Path, files: list[Path]) -> None:
    file.unlink()


def _truncated(rng: Random, file: Path, files: list[Path]) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size or 1))


def _garbage(rng: Random, file: Path, files: list[Path]) -> None:
    file.write_bytes(rng.choice(_OF_BYTES)(rng, file.read_bytes()))


def _swapped(rng: Random, file: Path, files: list[Path]) -> None:
    other = rng.choice(files)
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)


def _retyped(rng: Random, file: Path, files: list[Path]) -> None:
    """Another value somewhere in a YAML or JSON file, or in a line of one."""
    try:
        text = file.read_text()
        if file.suffix == ".yaml":
            tree = yaml.safe_load(text)
            rng.choice(_OF_TREES)(rng, tree)
            file.write_text(yaml.safe_dump(tree))
            return
        lines = text.splitlines() if file.suffix == ".jsonl" else [text]
        at = rng.randrange(len(lines))
        tree = json.loads(lines[at])
        rng.choice((_set, _drop, _rename, _wrap))(rng, tree)
        lines[at] = json.dumps(tree)
        file.write_text("\n".join(lines) + "\n")
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):  # a file of another kind, or hurt before
        file.write_text(json.dumps(rng.choice(VALUES)))


def _directory(rng: Random, file: Path, files: list[Path]) -> None:
    file.unlink()
    file.mkdir()


def _looping_link(rng: Random, file: Path, files: list[Path]) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _dead_link(rng: Random, file: Path, files: list[Path]) -> None:
    file.unlink()
    file.symlink_to("/nowhere/at/all")


def _link_elsewhere(rng: Random, file: Path, files: list[Path]) -> None:
    other = rng.choice([path for path in files if path != file])
    file.unlink()
    file.symlink_to(os.path.relpath(other, file.parent))


def _pipe(rng: Random, file: Path, files: list[Path]) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder_for_file(rng: Random, file: Path, files: list[Path]) -> None:
    """A file where the folder around it was."""
    if (file.parent / "config.yaml").exists():
        file.unlink()
    else:
        shutil.rmtree(file.parent)
        file.parent.write_text("x")


_OF_FILES: tuple[Callable[[Random, Path, list[Path]], None], ...] = (
    _missing, _truncated, _truncated, _garbage, _garbage, _swapped, _retyped, _retyped, _retyped, _directory,
    _looping_link, _dead_link, _link_elsewhere, _pipe, _folder_for_file,
)  # fmt: skip
