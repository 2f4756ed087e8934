"""The schema: one tag for each field, what changed, and the file for editors."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import changes, describe, dump, load, to_tree
from configs.reference import fields, json_schema
from configs.schema import SECTIONS, TAGS, tag_of
from configs.strict_yaml import parse
from tests.configs.helpers import BASE, conforms

RECIPES = sorted(Path("configs").rglob("*.yaml"))


def test_every_field_has_exactly_one_tag() -> None:
    keys = [f.key.replace(".<name>", ".x") for f in fields()]
    prefixes = [prefix for group in TAGS.values() for prefix in group]
    for key in keys:
        assert sum(key == p or key.startswith(f"{p}.") for p in prefixes) == 1, key
    for prefix in prefixes:
        assert any(key == prefix or key.startswith(f"{prefix}.") for key in keys), prefix
    assert tag_of("train.precision") == "recorded" and tag_of("data.dir") == "free" and tag_of("run.seed") == "identity"
    assert tag_of("data.sources.a.origin") == tag_of("data.split.sources.a.license") == "free"
    assert tag_of("data.sources.a.files") == tag_of("data.sources.origin") == "identity"
    assert tag_of("optim.name") == "identity" and tag_of("optim.rates.head") == "recorded"


def test_help_is_complete_and_fits() -> None:
    text = describe()
    assert max(map(len, text.splitlines())) <= 120
    for field in fields():
        assert field.doc, f"{field.key} has no docstring"
    for section in SECTIONS:
        assert f"\n{section}: " in f"\n{text}"
    assert " *heads " in text and "  dir " in text and "wsd, cosine, linear or constant" in text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rates = "optim: {rates: {embed: 0.1, head: 0.004}}\n"
    (tmp_path / "a.yaml").write_text(BASE + "loss: {base: smooth, add: [z]}\n" + rates)
    return tmp_path / "a.yaml"


def test_changes_by_tag(path: Path) -> None:
    old = to_tree(load(path))
    assert not any(vars(changes(old, load(path))).values())
    new = load(
        path,
        ["model.dim=128", "data.sources.b={kind: text, files: [g]}", "loss.base=ce", "optim.rates.head=1",
         "train.tokens=5M", "track.wandb=offline", "run.dir=elsewhere", "loss.add=[{z: {coef: 0.5}}]"],
    )  # fmt: skip
    found = changes(old, new)
    assert [(c.key, c.old, c.new) for c in found.recorded] == [
        ("loss.base", {"smooth": {}}, {"ce": {}}),
        ("loss.add", [{"z": {}}], [{"z": {"coef": 0.5}}]),
        ("optim.rates.head", 0.004, 1.0),
        ("train.steps", 100, None),
        ("train.tokens", None, "5M"),
    ]
    assert [c.key for c in found.identity] == ["data.sources.b", "model.dim"]
    assert str(found.identity[1]) == "model.dim: 256 -> 128"
    assert [c.key for c in found.free] == ["run.dir", "track.wandb"]


def test_changes_from_an_older_or_newer_schema(path: Path) -> None:
    config = load(path)
    old: dict[str, Any] = to_tree(config)
    del old["model"]["dropout"], old["track"]
    assert not any(vars(changes(old, config)).values())
    old["train"]["gone"] = 3
    found = changes(old, config)
    assert [(c.key, c.old, c.new) for c in found.recorded] == [("train.gone", 3, None)]
    assert changes({}, config).identity


def test_schema_json_is_in_step() -> None:
    text = Path("configs/schema.json").read_text()
    assert text == json.dumps(json_schema(), indent=1) + "\n", "run: python -m configs.schema > configs/schema.json"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes(recipe: Path, tmp_path: Path) -> None:
    text = recipe.read_text()
    up = "../" * (len(recipe.parts) - 2)
    assert text.startswith(f"# yaml-language-server: $schema={up}schema.json\n")
    for word in ("command", "hardware", "time", "expect"):
        assert f"\n# {word} " in text, f"the header does not say {word}"
    schema = json_schema()
    assert conforms(parse(text).tree, schema, schema)
    config = load(recipe)
    assert config.run.name == recipe.stem
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump(config))
    assert load(resolved) == config
    assert conforms(parse(resolved.read_text()).tree, schema, schema)
    assert yaml.safe_load(resolved.read_text()) == to_tree(config), "readers of YAML 1.1 see the same"


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        (BASE, True),
        (BASE + "loss: ce", True),
        (BASE + "loss: {base: ce, add: [z, {z: }]}", True),
        (BASE + "loss: {base: [ce]}", False),
        (BASE + "optim:", True),
        (BASE + "schedule: {warmup: 5M tokens, decay: 0.5}", True),
        (BASE + "schedule: {warmup: 5M}", False),
        (BASE + "schedule: {warmup: 1.5}", False),
        (BASE + "optim: {betas: [0.9]}", False),
        (BASE + "model: {dimm: 3}", False),
        (BASE + "model: {dim: true}", False),
        ("extends: a.yaml\nmodel: {dim: 64}", True),
        ("extends: a.yaml\nrun: {seed: 3}\ndata: {sources: {a: {exclude: [x]}}}", True),
        ("extends: 3", False),
        ("run: {seed: 3}\ndata: {sources: {a: {kind: text}}}", False),
        ("run: {name: x}\ndata: {sources: {a: {files: [x]}}}", False),
        ("run: {name: x}\ndata: {tokenizer: byte}", False),
        ("run: {name: x}\ndata: {tokenizer: byte, sources: {a: {kind: text}}}", True),
        ("run: {name: x}\ndata: {tokenizer: word, sources: {a: {kind: text}}}", False),
    ],
)
def test_editors_see_the_same_language(text: str, fine: bool) -> None:
    schema = json_schema()
    assert conforms(parse(text).tree, schema, schema) is fine
