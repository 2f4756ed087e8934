"""docs/data.md: its YAML loads, it names all there is, its links lead somewhere, and the tests that it names exist."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from configs import load
from data import config as data_config
from data.config import STATISTICS, TOKENIZERS, PackConfig, SourceConfig
from scripts.corpus import VERBS
from scripts.doctor import ROOT

DOCS = (ROOT / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
PROSE = re.sub(r"```.*?```", "", DOCS, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.sub(r"\W+", "-", block)[:40])
def test_every_block_loads(block: str, tmp_path: Path):
    path = tmp_path / "block.yaml"
    path.write_text(f"extends: {ROOT / 'configs' / 'tiny.yaml'}\n{block}")
    config = load(path)
    assert config.data != load(ROOT / "configs" / "tiny.yaml").data


def test_all_there_is_is_named():
    named = set(re.findall(r"[a-z_]+", " ".join([*BLOCKS, *re.findall(r"`([^`]+)`", PROSE)])))
    kinds, modes = (get_args(t) for t in (_type(SourceConfig, "kind"), _type(PackConfig, "mode")))
    assert {*kinds, *modes, *STATISTICS, *TOKENIZERS} <= named
    fields = {
        field.name
        for kind in vars(data_config).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == data_config.__name__
        for field in dataclasses.fields(kind)
    }
    assert fields - named == {"dir", "name", "data_files", "sample_bytes", "min_frequency"}  # the schema tells
    for verb in VERBS:
        assert f"`python -m scripts.corpus {verb} CONFIG`" in DOCS, verb
    for kind in kinds:
        assert f"\n### {kind}\n" in DOCS, kind


def _type(config: type, name: str) -> object:
    return next(field.type for field in dataclasses.fields(config) if field.name == name)


def test_every_link_leads_somewhere():
    titles = re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", DOCS):
        assert target[1:] in anchors if target.startswith("#") else (ROOT / "docs" / target).exists(), target


def test_every_trap_has_its_tests():
    rows = re.findall(r"^\| (\d+) \|.*\| (.*?) \|$", DOCS, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    for _, cell in rows:
        found = re.findall(r"`(tests/\S+\.py)::(\w+)`( \*soak\*)?", cell)
        assert len(found) == cell.count("`") // 2 > 0
        for path, name, soak in found:
            tree = ast.parse((ROOT / path).read_text())
            tests = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert name in tests, f"{path}::{name}"
            marks = [ast.unparse(mark) for mark in tests[name].decorator_list]
            assert any("mark.soak" in mark for mark in marks) == bool(soak), f"{path}::{name}"
