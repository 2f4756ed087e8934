"""extends, overrides and what replaces what."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import dump, load, to_tree
from tests.configs.helpers import BASE, errors

LOSS: dict[str, Any] = {
    "base": {"ce": {}}, "add": [], "weights": [], "logits": [], "ahead": [], "teacher": None, "fused": "auto",
    "chunk": "auto",
}  # fmt: skip


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_chain_merges_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, a=BASE + "optim: {rates: {matrix: 0.5, head: 0.25}}\n")
    write(tmp_path / "sub", b="extends: ../a.yaml\noptim: {rates: {matrix: 0.125}}\nmodel: {layers: 7}\n")
    write(tmp_path / "sub", c="extends: b.yaml\nmodel: {dim: 64}\n")
    config = load(tmp_path / "sub" / "c.yaml", ["optim.rates.vector=1", "--model.tie=false"])
    assert (config.optim.rates.matrix, config.optim.rates.head, config.optim.rates.vector) == (0.125, 0.25, 1.0)
    assert (config.model.layers, config.model.dim, config.model.tie) == (7, 64, False)


def test_an_error_names_the_file_and_line_that_said_it(tmp_path: Path) -> None:
    write(tmp_path, a=BASE + "model:\n  heads: 6\n")
    found = errors(tmp_path / "b.yaml", "extends: a.yaml\nmodel: {dim: 128}\nx: 1\n")
    assert found == [
        "a.yaml:5: model.heads: 6 does not divide model.dim 128; nearest heads 4 or 8, nearest dim 120 or 132",
        "b.yaml:3: unknown key 'x'; there are run, data, model, loss, optim, schedule, train, eval, save, track",
    ]


def test_what_a_layer_replaces_leaves_no_place_behind(tmp_path: Path) -> None:
    base = """\
run: {name: x}
data:
  sources:
    a:
      kind: text
      files: [f.txt]
train: {steps: 1}
loss:
  base:
    smooth: {}
  add:
    - z
"""
    write(tmp_path, a=base)
    top = tmp_path / "b.yaml"
    assert errors(top, "extends: a.yaml\n\ndata: {sources: {a: {files: [g.txt]}}}\n") == [
        "b.yaml:3: data.sources.a.kind is missing (python, code, text, jsonl, csv, parquet, hf)"
    ]
    (found,) = errors(top, "extends: a.yaml\n\nloss: {base: smoth}\n")
    assert found.startswith("b.yaml:3: loss.base.smoth: unknown loss term")
    (found,) = errors(top, "extends: a.yaml\n\nloss: smoth\n")
    assert found.startswith("b.yaml:3: loss.base.smoth: unknown loss term")
    (found,) = errors(top, "extends: a.yaml\n\nloss: {add: [zz]}\n")
    assert found.startswith("b.yaml:3: loss.add[0].zz: unknown loss term")
    (found,) = errors(top, "extends: a.yaml\n", "loss=smoth")
    assert found.startswith("command line: loss=smoth: loss.base.smoth: unknown loss term")
    assert not [line for line in errors(top, "run: {name: x}\n", "model.dim=64") if "command" in line]


def test_a_bad_item_does_not_shift_the_places_of_later_ones(tmp_path: Path) -> None:
    text = """\
loss:
  add:
    - .inf
    - z
    - zz: {}
    - .nan
"""
    assert [line.split(": ")[0] for line in errors(tmp_path / "a.yaml", BASE + text)] == [
        "a.yaml:6", "a.yaml:8", "a.yaml:9"
    ]  # fmt: skip


def test_text_is_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(BASE.replace("f.txt", "é.txt"), encoding="utf-8")
    code = (
        "import sys, pathlib\nfrom configs import dump, load, read_tree\n"
        "for path in sys.argv[1:]:\n"
        "    assert ascii(read_tree(pathlib.Path(path))['data']['sources']['a']['files'][0]) == ascii('\\xe9.txt')\n"
        "    assert '\\xe9.txt' in dump(load(path))\n"
    )
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cycles_and_missing_files(tmp_path: Path) -> None:
    write(tmp_path, a="extends: b.yaml\n", b="extends: c.yaml\n")
    assert errors(tmp_path / "c.yaml", "run: {}\nextends: a.yaml\n") == [
        "b.yaml:1: extends: goes round in a circle: c.yaml -> a.yaml -> b.yaml -> c.yaml"
    ]
    assert errors(tmp_path / "c.yaml", "extends: c.yaml\n")[0].startswith("c.yaml:1: extends: goes round in a circle")
    (found,) = errors(tmp_path / "c.yaml", "model: {dim: off}\nextends: tinny.yaml\n")
    assert found.startswith("c.yaml:2: extends: tinny.yaml: no such file — did you mean 'configs/tiny.yaml'?")


def test_a_broken_base_is_reported_alone(tmp_path: Path) -> None:
    write(tmp_path, a="run: {name: x\n")
    (found,) = errors(tmp_path / "b.yaml", "extends: a.yaml\n")
    assert found.startswith("a.yaml:2: while parsing a flow mapping")


def test_another_member_of_a_one_of_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        BASE.replace("data: {", "data: {tokenizer: {train: {vocab_size: 300, sample_bytes: 9}}, ")
        + "loss: {base: {smooth: {eps: 0.2}}, add: [z], fused: off}\n"
    )

    def tree(*overrides: str) -> dict:
        return to_tree(load(path, overrides))

    assert tree("train.tokens=5M")["train"]["steps"] is None
    assert tree("train.epochs=2", "train.steps=99")["train"]["epochs"] is None
    trained = tree("data.tokenizer.train.vocab_size=400")["data"]["tokenizer"]["train"]
    assert (trained["vocab_size"], trained["sample_bytes"]) == (400, 9)
    byte: dict[str, object] = {"train": None, "file": None, "level": "byte", "tiktoken": None, "specials": []}
    assert tree("data.tokenizer.level=byte")["data"]["tokenizer"] == byte
    assert tree("data.tokenizer=byte")["data"]["tokenizer"] == byte
    assert tree("loss.base=ce")["loss"] == LOSS | {"add": [{"z": {}}], "fused": "off"}
    assert tree("loss.base.smooth.eps=0.3")["loss"]["base"] == {"smooth": {"eps": 0.3}}
    assert tree("loss=ce")["loss"] == LOSS | {"fused": "off"}
    assert tree("loss.weights=[position]", "loss.ahead=[0.5]", "loss=ce")["loss"] == LOSS | {"fused": "off"}


def test_files_of_a_loss_are_looked_for_beside_the_config_that_names_them(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sub" / "mine.py").write_text("def poly(lp, *, e1=1.0):\n    return -lp\n")
    (tmp_path / "elsewhere" / "two.py").write_text("def two(lp):\n    return -lp\n")
    loss = "loss: {base: {'mine.py:poly': {e1: 2}}, weights: [{classes: {file: w.json}}]}\n"
    (tmp_path / "sub" / "base.yaml").write_text(BASE + loss)
    (tmp_path / "a.yaml").write_text(
        "extends: sub/base.yaml\nloss: {add: [{smooth: {prior: unigram}}, {noise: {prior: p.npy}}]}\n"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load(tmp_path / "a.yaml", ["loss.logits=[{adjust: {prior: q.npy}}]"])
    here = tmp_path.resolve()
    assert config.loss.base == {f"{here}/sub/mine.py:poly": {"e1": 2}}
    assert config.loss.weights == ({"classes": {"file": f"{here}/sub/w.json"}},)
    assert config.loss.add == ({"smooth": {"prior": "unigram"}}, {"noise": {"prior": f"{here}/p.npy"}})
    assert config.loss.logits == ({"adjust": {"prior": f"{here}/elsewhere/q.npy"}},)
    assert load(tmp_path / "a.yaml", ["loss.base={'two.py:two': {}}"]).loss.base == {f"{here}/elsewhere/two.py:two": {}}
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml") == config


def test_two_members_in_one_layer_are_an_error(tmp_path: Path) -> None:
    (found,) = errors(tmp_path / "a.yaml", BASE.replace("steps: 100", "steps: 100, epochs: 1"))
    assert found == "a.yaml:3: train: takes exactly one of steps, tokens and epochs, not steps and epochs"


def test_sources_and_mixture_are_replaced_whole_but_reached_into_by_dots(tmp_path: Path) -> None:
    write(tmp_path, a=BASE)
    (tmp_path / "b.yaml").write_text("extends: a.yaml\ndata: {sources: {b: {kind: python, packages: [json]}}}\n")
    assert list(load(tmp_path / "b.yaml").data.sources) == ["b"]
    config = load(tmp_path / "b.yaml", ["data.sources.b.exclude=['*/x.py']", "data.mixture.b=2"])
    assert config.data.sources["b"].packages == ("json",) and config.data.mixture == {"b": 2.0}
    config = load(tmp_path / "b.yaml", ["data.sources={c: {kind: text, files: [x]}}"])
    assert list(config.data.sources) == ["c"]
    config = load(tmp_path / "b.yaml", ["data={sources: {c: {kind: text, files: [x]}}}"])
    assert list(config.data.sources) == ["c"]


@pytest.mark.parametrize("short", ["loss: ce", "loss: {base: ce}", "loss: {base: {ce: }}", "loss:", "loss: {add: []}"])
def test_short_forms(tmp_path: Path, short: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(BASE + short + "\n")
    assert to_tree(load(path))["loss"] == LOSS


def test_values_of_overrides_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(BASE)
    given = [
        "track.tags=[a, 'b c']",
        "optim.rates={matrix: 3e-4}",
        "run.name='7'",
        "track.group=a=b",
        "track.wandb=off",
    ]
    config = load(path, given)
    assert config.track.tags == ("a", "b c") and config.track.group == "a=b" and config.track.wandb == "off"
    assert config.optim.rates.matrix == 3e-4 and config.optim.rates.vector == 0.01 and config.run.name == "7"
    assert load(path, ["model.kv_heads=2", "model.kv_heads="]).model.kv_heads is None
