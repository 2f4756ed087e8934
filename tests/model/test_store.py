"""Models on disk: bit-equal, a tied weight once, and damage is always an error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from durable import Damaged, commit_directory
from model import Transformer, load_model, save_model

from .conftest import PRESETS, Make


def same(a: Transformer, b: Transformer) -> bool:
    """Whether config and all weights are equal, bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return a.config == b.config and list(left) == list(right) and all(torch.equal(left[n], right[n]) for n in left)


def checkpoint(model: Transformer, run: Path, step: int) -> Path:
    """A committed checkpoint that holds only the model."""
    tmp, final = run / "checkpoints" / f"step_{step:08d}.tmp", run / "checkpoints" / f"step_{step:08d}"
    save_model(model, tmp)
    commit_directory(tmp, final, {"step": step})
    return final


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tie", [True, False])
def test_a_saved_model_comes_back(make: Make, tmp_path: Path, preset: str, tie: bool) -> None:
    model = make(preset=preset, tie=tie, dropout=0.1).train()
    save_model(model, tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["model.json", "model.safetensors"]
    before = torch.get_rng_state()
    back = load_model(tmp_path / "here")
    assert torch.equal(before, torch.get_rng_state())
    assert same(model, back) and not back.training
    with safe_open(tmp_path / "here" / "model.safetensors", "pt") as file:
        assert ("head.weight" in file.keys()) is not tie  # noqa: SIM118 (a safetensors file is no dict)
        assert sum(file.get_tensor(name).numel() for name in file.keys()) == model.parameter_count()  # noqa: SIM118


def test_gathered_weights_take_the_place_of_the_module_s(make: Make, tmp_path: Path) -> None:
    model, other = make(seed=1), make(seed=2)
    save_model(model, tmp_path, other.state_dict())
    assert same(load_model(tmp_path), other)


def test_runs_and_checkpoints(make: Make, tmp_path: Path) -> None:
    models = {step: make(seed=step) for step in (1, 2, 3)}
    folders = {step: checkpoint(model, tmp_path, step) for step, model in models.items()}
    (tmp_path / "checkpoints" / "best").write_text("step_00000001")
    assert same(load_model(tmp_path), models[3])
    assert same(load_model(tmp_path, which="best"), models[1])
    assert same(load_model(tmp_path, which="2"), models[2])
    assert same(load_model(folders[2]), models[2])
    with pytest.raises(ValueError, match="no checkpoint '9'"):
        load_model(tmp_path, which="9")
    with pytest.raises(ValueError, match="no such run"):
        load_model(tmp_path / "elsewhere")


def test_a_damaged_checkpoint_is_never_loaded(make: Make, tmp_path: Path) -> None:
    models = {step: make(seed=step) for step in (1, 2)}
    folders = {step: checkpoint(model, tmp_path, step) for step, model in models.items()}
    weights = folders[2] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    assert same(load_model(tmp_path), models[1])
    with pytest.raises(Damaged, match="sha256"):
        load_model(folders[2])


def test_damaged_files_without_a_hash_list(make: Make, tmp_path: Path) -> None:
    model = make()
    weights, shape = tmp_path / "model.safetensors", tmp_path / "model.json"
    save_model(model, tmp_path)
    whole = weights.read_bytes()
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=r"model\.safetensors"):
            load_model(tmp_path)
    weights.unlink()
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        load_model(tmp_path)
    save_model(model, tmp_path, {"embed.weight": model.embed.weight})
    with pytest.raises(Damaged, match="is missing"):
        load_model(tmp_path)
    weights.write_bytes(whole)
    about = json.loads(shape.read_text())
    for broken in ("{", "[]", json.dumps({"format": 1}), json.dumps(about | {"config": {"depth": 3}})):
        shape.write_text(broken)
        with pytest.raises(Damaged, match=r"model\.json"):
            load_model(tmp_path)
    shape.write_text(json.dumps(about | {"vocab_size": 7}))
    with pytest.raises(Damaged, match="shape"):
        load_model(tmp_path)
    shape.write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(ValueError, match="format 2"):
        load_model(tmp_path)


def test_configs_import_without_torch() -> None:
    code = "import sys, model.config; from model import ModelConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
