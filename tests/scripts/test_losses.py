"""The catalogue, its picture, docs/losses.md and the recipes: what they show and say is what the losses do."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs import RunConfig, load
from loss import Objective, build_objective
from loss.terms import TERMS, TRANSFORMS, WEIGHTS
from scripts import losses
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "configs" / "losses").glob("*.yaml"))
DOCS = (ROOT / "docs" / "losses.md").read_text()
HAND_FED = {"soft"}  # what training has no input for
VOCABULARY = 257  # that of configs/tiny.yaml


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)


def header(path: Path) -> str:
    return path.read_text().split("\nextends:")[0]


@pytest.fixture(scope="module")
def case_file(tmp_path_factory) -> Path:
    """What the first command in the header of transition.yaml makes."""
    folder = tmp_path_factory.mktemp("case")
    found = re.search(r"# first +(.*?)\n# command", header(ROOT / "configs/losses/transition.yaml"), re.DOTALL)
    assert found is not None
    command = re.sub(r"\n# +", "\n", found[1])
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)
    return folder / "corpora" / "case.npy"


def objective(config: RunConfig) -> Objective:
    return build_objective(
        config.loss, vocab_size=VOCABULARY, counts=torch.ones(VOCABULARY), sources=tuple(config.data.sources)
    )


def used(config: RunConfig) -> Iterator[str]:
    for named in (config.loss.base, *config.loss.add, *config.loss.weights, *config.loss.logits):
        yield from named


# Catalogue.


def test_the_catalogue_names_every_part_and_option(capsys):
    assert losses.main([]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 120
    for parts in (TERMS, WEIGHTS, TRANSFORMS):
        for name, part in parts.items():
            entry = re.search(rf"^  {name} .*?(?=\n\n)", told, re.DOTALL | re.MULTILINE)
            assert entry is not None and " ".join(part.reads[0].split()) in entry[0]
            for option in part.options:
                assert re.search(rf"^      {option} +\S+ +\S", entry[0], re.MULTILINE), (name, option)


@pytest.mark.parametrize(
    ("part", "option", "words"),
    [
        (TERMS["smooth"], "eps", "a number in [0, 1)"),
        (TERMS["smooth"], "exclude_target", "true or false"),
        (TERMS["smooth"], "prior", "uniform, unigram or a file, .npy or .json"),
        (TERMS["gce"], "q", "a number in (0, 1]"),
        (TERMS["sce"], "A", "a number < 0"),
        (TERMS["z"], "coef", "a number >= 0"),
        (TERMS["kl"], "top_k", "a whole number >= 0"),
        (TERMS["unlikelihood"], "ids", "a list, each a whole number >= 0"),
        (TERMS["transition"], "file", "a file, .npy or .json: a row of numbers for each id, each row summing to 1"),
        (WEIGHTS["classes"], "file", "a file, .npy or .json: one number for each id"),
        (WEIGHTS["sources"], "by", "a mapping: source names to numbers >= 0"),
    ],
)
def test_kinds_in_words(part: Any, option: str, words: str):
    assert losses.kind(part.hints[option]) == words


# Picture.


@pytest.mark.parametrize(
    ("name", "loss", "push"),
    [
        ("ce", lambda p: -math.log(p), lambda p: 1 - p),
        ("gce", lambda p: (1 - p**0.7) / 0.7, lambda p: p**0.7 * (1 - p)),
        ("poly", lambda p: -math.log(p) + 1 - p, lambda p: (1 - p) * (1 + p)),
        ("sce", lambda p: -0.1 * math.log(p) + 4 * (1 - p), lambda p: (1 - p) * (0.1 + 4 * p)),
        ("focal", lambda p: -((1 - p) ** 2) * math.log(p), lambda p: (1 - p) ** 3 - 2 * p * (1 - p) ** 2 * math.log(p)),
        ("noise", lambda p: -math.log(0.9 * p + 1e-4), lambda p: 0.9 * p * (1 - p) / (0.9 * p + 1e-4)),
        (
            "smooth",  # 999 other ids share 1 - p
            lambda p: -(0.9 + 1e-4) * math.log(p) - 0.0999 * math.log((1 - p) / 999),
            lambda p: 0.9 + 1e-4 - p,
        ),
    ],
)
def test_what_is_drawn(name: str, loss: Callable[[float], float], push: Callable[[float], float]):
    p, logits = losses.targets()
    found_loss, found_push = losses.measured(build_objective(name, vocab_size=losses.VOCABULARY), logits)
    assert p[0] < 1.1e-5 and p[-1] > 0.999
    assert found_loss.tolist() == pytest.approx([loss(x) for x in p.tolist()], rel=1e-9, abs=1e-9)
    assert found_push.tolist() == pytest.approx([push(x) for x in p.tolist()], rel=1e-9, abs=1e-9)


def test_probability_on_ce_pushes_as_gce_does():
    _, logits = losses.targets()
    weighted = {"base": "ce", "weights": [{"probability": {"power": 0.7}}]}
    pushes = [losses.measured(build_objective(x, vocab_size=losses.VOCABULARY), logits)[1] for x in (weighted, "gce")]
    torch.testing.assert_close(*pushes)


def test_the_picture_is_the_committed_one(tmp_path: Path, capsys):
    from matplotlib.image import imread

    assert losses.main(["--plot", str(tmp_path / "losses.png")]) == 0
    drawn, shown = imread(tmp_path / "losses.png"), imread(ROOT / "docs" / "losses.png")
    assert drawn.shape == shown.shape == (820, 1800, 4)
    # Another version of matplotlib or of its fonts moves edges by a pixel; another curve moves far more.
    assert np.abs(drawn - shown).mean() < 0.01
    assert losses.main(["--plot", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "losses.png").read_bytes()


def test_a_plugin_is_drawn_and_other_terms_are_refused(tmp_path: Path, capsys):
    plugin = f"{ROOT}/configs/losses/my_losses.py:phuber"
    assert losses.main(["--plot", str(tmp_path / "own.png"), "--terms", "ce", plugin]) == 0
    assert losses.main(["--plot", str(tmp_path / "z.png"), "--terms", "z"]) == 2
    assert "z reads lse: it is no function of p(target)" in capsys.readouterr().err
    assert losses.main(["--plot", str(tmp_path / "z.png"), "--terms", "focl"]) == 2
    assert "'focal'" in capsys.readouterr().err and not (tmp_path / "z.png").exists()


# Recipes.


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(recipe: Path, case_file: Path):
    text = header(recipe)
    assert text.startswith("# yaml-language-server: $schema=../schema.json\n#\n")
    assert f"\n# command   python train.py configs/losses/{recipe.name}\n" in text
    for fact in ("hardware", "time", "expect"):
        assert re.search(rf"^# {fact} +\S", text, re.MULTILINE), fact
    anchor = re.search(r"^# more +docs/losses.md#(\S+)$", text, re.MULTILINE)
    assert anchor is not None and anchor[1] in anchors()
    changes = [f"loss.base.transition.file={case_file}"] if recipe.stem == "transition" else []
    config = load(recipe, changes)
    assert config.run.name == recipe.stem
    built = objective(config)
    assert built.reads <= {"source", "position", "teacher_logits"}
    assert ("teacher_logits" in built.reads) == (config.loss.teacher is not None)


def test_every_part_that_training_can_feed_has_a_recipe():
    named = {name for recipe in RECIPES for name in used(load(recipe))}
    assert {*TERMS, *WEIGHTS, *TRANSFORMS} - HAND_FED <= named
    assert any(".py:" in name for name in named) and any(load(recipe).loss.ahead for recipe in RECIPES)


@pytest.mark.parametrize("name", ["plugin", "sources"])  # one that names a file beside it, one with a corpus of its own
def test_a_recipe_runs(name: str, bench):
    bench.train(name, "train.steps=4", "eval.every=4", "save.every=4", config=f"configs/losses/{name}.yaml")
    (row,) = (row for row in bench.rows(name) if "val/nll" in row)
    assert row["val/nll"] < 6


# Documentation.


def anchors() -> set[str]:
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", DOCS, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_part_is_described():
    for name in (*TERMS, *WEIGHTS, *TRANSFORMS):
        assert f"\n### {name}\n" in DOCS, name
        assert f"](#{name})" in DOCS.split("\n## ")[0], f"{name} is not in the chooser"


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", DOCS):
        assert target[1:] in anchors() if target.startswith("#") else (ROOT / "docs" / target).exists(), target
    for recipe in RECIPES:
        assert f"](../configs/losses/{recipe.name})" in DOCS, recipe.name


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_yaml_block_loads_and_builds(text: str, tmp_path: Path, case_file: Path):
    for file in (ROOT / "configs/losses/my_losses.py", ROOT / "configs/losses/classes.json", case_file):
        shutil.copy(file, tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {ROOT}/configs/tiny.yaml\n{text}")
    objective(load(path))


def test_the_python_blocks_run(capsys):
    names = {}
    for text in blocks("python"):
        exec(text, names)
    assert "nan" not in capsys.readouterr().out
    assert torch.isfinite(names["weight"].grad).all()
