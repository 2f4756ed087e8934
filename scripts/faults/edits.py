"""A run that goes on with an edited config (F20): each field of the schema with another value."""

import copy
import shutil
from pathlib import Path
from typing import Any

from configs import ConfigError, RunConfig, changes, dump, load, to_tree
from configs.reference import child, choices, fields
from configs.schema import raw_schema, tag_of
from configs.validate import validate
from resume import restore

from .damage import contents
from .runs import SHORT, Runs, check, check_code, read_lines
from .scenario import Outcome

BASE = """\
run: {name: x}
data:
  sources: {a: {kind: jsonl, files: [f.jsonl]}, b: {kind: text, files: [g.txt]}}
  split: {sources: {c: {kind: text, files: [h.txt]}}}
train: {steps: 100, batch_tokens: 1024}
"""
GENERAL = [
    1,
    2,
    3,
    7,
    0,
    64,
    2048,
    0.5,
    0.25,
    1.5,
    True,
    False,
    "x",
    "5M",
    "5M tokens",
    "a.py",
    "utf-16",
    ["x"],
    [0.5, 0.5],
]
# What no general value is, and what must change along with a field.
SPECIAL: dict[str, dict[str, Any]] = {
    "data.clean.decontaminate.ngram": {"data.clean.decontaminate": {"files": ["t.txt"], "ngram": 9}},
    "data.clean.keep": {"data.clean.keep": {"words": {"min": 3}}},
    "data.curriculum.descending": {"data.curriculum": {"by": "length", "descending": True}},
    "data.curriculum.over": {"data.curriculum": {"by": "length", "over": 0.3}},
    "data.pack.fim.sources": {"data.pack.fim": {"sources": ["a"]}},
    "data.mixture": {"data.mixture": {"a": 1.0, "b": 2.0}},
    "data.phases": {"data.phases": [{"at": 0.5, "mixture": {"a": 1.0, "b": 2.0}}]},
    "data.redact": {"data.redact": ["email"]},
    "data.sources": {"data.sources": {"z": {"kind": "text", "files": ["-"]}}},
    "data.sources.a.constants": {"data.sources.a.constants": {"lang": "en"}},
    "data.sources.a.data_files": {"data.sources.a": {"kind": "hf", "path": "p", "data_files": ["x"]}},
    "data.sources.a.labels": {"data.sources.a.labels": {"lang": "language"}},
    "data.sources.a.name": {"data.sources.a": {"kind": "hf", "path": "p", "name": "x"}},
    "data.sources.a.packages": {"data.sources.a": {"kind": "python", "packages": ["json"]}},
    "data.sources.a.path": {"data.sources.a": {"kind": "hf", "path": "p"}},
    "data.sources.a.split": {"data.sources.a": {"kind": "hf", "path": "p", "split": "x"}},
    "data.sources.a.streaming": {"data.sources.a": {"kind": "hf", "path": "p", "streaming": True}},
    "data.sources.a.template": {"data.sources.a.messages": "m", "data.sources.a.template": "plain"},
    "data.sources.a.train_on": {"data.sources.a.messages": "m", "data.sources.a.train_on": ["user"]},
    "data.split.sources": {"data.split.sources": {"z": {"kind": "text", "files": ["-"]}}},
    "data.tokenizer.file": {"data.tokenizer": {"file": "t.json"}},
    "data.tokenizer.level": {"data.tokenizer": {"level": "char"}},
    "data.tokenizer.tiktoken": {"data.tokenizer": {"tiktoken": "gpt2"}},
    "loss.add": {"loss.add": [{"z": {}}]},
    "loss.base": {"loss.base": {"smooth": {}}},
    "loss.logits": {"loss.logits": [{"softcap": {}}]},
    "loss.weights": {"loss.weights": [{"frequency": {}}]},
    "train.epochs": {"train.steps": None, "train.epochs": 2.0},
    "train.tokens": {"train.steps": None, "train.tokens": "5M"},
}


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *around, last = key.split(".")
    for part in around:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[last] = copy.deepcopy(value)


def _edited(tree: dict[str, Any], edit: dict[str, Any]) -> dict[str, Any]:
    new = copy.deepcopy(tree)
    for key, value in edit.items():
        _put(new, key, value)
    return new


def _node(key: str) -> dict[str, Any]:
    node: dict[str, Any] | None = raw_schema()
    for part in key.split("."):
        node = child(node or {}, part)
    return node or {}


def changed(tree: dict[str, Any], key: str) -> RunConfig | None:
    """A valid config in which `key`, and as little else as possible, has another value than in the valid `tree`."""
    old, _ = validate(tree)
    words = [{"true": True, "false": False}.get(word, word) for word in choices(_node(key))]
    for edit in [*([SPECIAL[key]] if key in SPECIAL else []), *({key: value} for value in (*words, *GENERAL))]:
        config, problems = validate(_edited(tree, edit))
        if config and not problems and config != old:
            return config
    return None


KEYS = [f.key.replace(".<name>", ".c" if f.key.startswith("data.split") else ".a") for f in fields()]
"""Every field, of a source `a` or of a held-out source `c` where it is one of a source."""


def base_tree(folder: Path) -> dict[str, Any]:
    """The config that is edited, written to a folder."""
    path = folder / "base.yaml"
    path.write_text(BASE)
    return to_tree(load(path))


def check_change(key: str, tree: dict[str, Any], run: Path) -> None:
    """A field of another value is refused by name, or accepted and told, as its tag in the schema says."""
    old, _ = validate(tree)
    new = changed(tree, key)
    assert old is not None and new is not None, f"no valid value for {key} is known here: add one to SPECIAL"
    found, tag = changes(tree, new), tag_of(key)
    at_all = [change.key for change in (*found.identity, *found.recorded, *found.free)]
    near = any(each == key or each.startswith(f"{key}.") or key.startswith(f"{each}.") for each in at_all)
    check(near, f"{key} changed, and found were {at_all}")
    (run / "config.yaml").write_text(dump(old))
    try:
        state, checkpoint = restore(new, run)
    except ConfigError as refusal:
        check(tag == "identity", f"{key} is refused")
        check(all(str(change) in str(refusal) for change in found.identity), f"{refusal} does not name {key}")
    else:
        check(tag != "identity" and not found.identity, f"{key} is accepted")
        check(checkpoint is None and bool(found.recorded) == (tag == "recorded"), f"{key} is not recorded")


EDITS = {
    "model.dim=32": "identity", "train.batch_tokens=1024": "recorded", "optim.rates.matrix=0.01": "recorded",
    "run.seed=5": "identity", "data.split.val=0.2": "identity", "eval.every=4": "recorded",
}  # fmt: skip
"""Of the real runs, and the tag of each."""


def edited(runs: Runs, outcome: Outcome, count: int) -> None:
    """F20: every field of the schema edited under a run's directory; `count` of the edits in real runs."""
    folder = runs.runs / "edited"
    folder.mkdir(parents=True)
    tree = base_tree(folder)
    for key in KEYS:
        with outcome.injection(f"{key} edited"):
            check_change(key, tree, folder)
    for number, (edit, tag) in enumerate(list(EDITS.items())[:count]):
        with outcome.injection(f"{edit}, gone on with"):
            _goes_on(runs, f"edited-{number}", edit, tag)
    outcome.detection = f"{outcome.survived}/{outcome.injected}"


def _goes_on(runs: Runs, name: str, edit: str, tag: str) -> None:
    """A run that has come to its end goes on with another value and more steps."""
    run = shutil.copytree(runs.runs / runs.clean(*SHORT), runs.runs / name)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(f"name: {runs.clean(*SHORT)}", f"name: {name}"))
    before, key = contents(run), edit.split("=")[0]
    ended = runs.finish(name, *SHORT, "train.steps=28", edit)
    if tag == "identity":
        check_code(ended, 2)
        check(key in ended.told and "--restart" in ended.told, f"it said {ended.told[-500:]}")
        check(contents(run) == before, "files of the run were changed")
        return
    check_code(ended, 0)
    told = [change["key"] for change in read_lines(run / "changes.jsonl")]
    check(key in told and runs.last_row(name) == 28, f"recorded are {told}")
