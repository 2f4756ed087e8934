"""What checkpoints hold comes back bit for bit, on any number of ranks, or is refused by name.

A rank is played by a number here; `payload_ranks.py` has real ones, with DTensors.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from durable import Damaged
from model import ModelConfig, Transformer, load_model, save_shape
from scripts.doctor import ROOT
from trainer.payload import read, snapshot

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64)


def rank(number: int, of: int) -> Any:
    return SimpleNamespace(rank=number, world_size=of)


def save(directory: Path, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], of: int, sharded: bool) -> None:
    directory.mkdir()
    for number in range(of):
        snapshot(model, optimizer, rank(number, of), sharded=sharded).write(directory)


def blank(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, 77) for name, tensor in tensors.items()}


def assert_comes_back(directory: Path, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
    weights, state = blank(model), blank(optimizer)
    read(directory, weights, state)
    for want, have in ((model, weights), (optimizer, state)):
        assert all(torch.equal(want[name], have[name]) for name in want)


@pytest.fixture
def tensors() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(3)
    model = {"embed.weight": torch.randn(7, 3), "norm.weight": torch.randn(2)}
    state = {f"optim.{name}.exp_avg": torch.randn_like(weight) for name, weight in model.items()}
    return model, state | {f"optim.{name}.step": torch.tensor(12.0) for name in model}


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES), of=st.integers(1, 5), sharded=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_tensors_in_any_number_of_parts(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype, of: int, sharded: bool,
    seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("payload")
    generator = torch.Generator().manual_seed(seed)
    model = {f"w{k}": torch.randn(shape, generator=generator).mul(9).to(dtype) for k, shape in enumerate(shapes)}
    state = {f"optim.{name}.exp_avg": -weight for name, weight in model.items()}
    save(folder / "here", model, state, of, sharded)
    parts = of if sharded else 1
    assert len(list((folder / "here").iterdir())) == 2 * parts
    assert_comes_back(folder / "here", model, state)


def test_a_full_payload_is_two_plain_safetensors_files(tensors: Any, tmp_path: Path) -> None:
    model, state = tensors
    save(tmp_path / "full", model, state, 3, False)
    for name, want in (("model", model), ("optimizer", state)):
        have = load_file(tmp_path / "full" / f"{name}.safetensors")
        assert have.keys() == want.keys() and all(torch.equal(have[key], want[key]) for key in want)
    with safe_open(tmp_path / "full" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_training_does_not_change_a_snapshot(tensors: Any, tmp_path: Path) -> None:
    model, state = tensors
    before = {name: tensor.clone() for name, tensor in model.items()}
    taken = [snapshot(model, state, rank(number, 2), sharded=True) for number in range(2)]
    for tensor in (*model.values(), *state.values()):
        tensor.add_(1)
    for payload in taken:
        payload.write(tmp_path)
    for tensor in state.values():
        tensor.sub_(1)
    weights = blank(model)
    read(tmp_path, weights, blank(state))
    assert all(torch.equal(weights[name], before[name]) for name in before)


def test_sizes_are_known_before_the_files_are(tensors: Any, tmp_path: Path) -> None:
    model, state = tensors
    exact = sum(tensor.nbytes for tensor in (*model.values(), *state.values()))
    for sharded in (False, True):
        assert {snapshot(model, state, rank(k, 2), sharded=sharded).nbytes for k in range(2)} == {exact}


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_each_rank_knows_whether_its_part_is_finite(tensors: Any, poison: float) -> None:
    model, state = tensors

    def verdicts(sharded: bool) -> list[bool]:
        return [snapshot(model, state, rank(k, 3), sharded=sharded).finite() for k in range(3)]

    assert verdicts(True) == verdicts(False) == [True] * 3
    state["optim.embed.weight.exp_avg"][4, 1] = poison  # row 4 of 7, in parts of 3, 3 and 1
    assert verdicts(True) == [True, False, True] and verdicts(False) == [False, True, True]


def test_a_checkpoint_of_before_the_first_step_has_no_optimizer_state(tensors: Any, tmp_path: Path) -> None:
    model, state = tensors
    for of in (1, 2):
        save(tmp_path / str(of), model, {}, of, True)
        filled = blank(state)
        read(tmp_path / str(of), blank(model), filled)
        assert not any(tensor.any() for tensor in filled.values())


def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(tensors: Any, tmp_path: Path) -> None:
    model, state = tensors
    save(tmp_path / "full", model, state, 1, False)
    save(tmp_path / "parts", model, state, 3, True)
    cases: list[tuple[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Any]]] = [
        ("norm.bias is missing", lambda m, s: m.update({"norm.bias": torch.zeros(2)})),
        ("norm.weight does not belong", lambda m, s: m.pop("norm.weight")),
        ("optim.norm.weight.step does not belong", lambda m, s: s.pop("optim.norm.weight.step")),
        ("optim.new is missing", lambda m, s: s.update({"optim.new": torch.zeros(())})),
        (r"embed.weight is torch.float32 of shape \(7, 3\), not .* of shape \(7, 4\)",
         lambda m, s: m.update({"embed.weight": torch.zeros(7, 4)})),
        (r"norm.weight is torch.float32 .* not torch.bfloat16",
         lambda m, s: m.update({"norm.weight": torch.zeros(2).bfloat16()})),
    ]  # fmt: skip
    for folder in ("full", "parts"):
        for reason, change in cases:
            weights, filled = blank(model), blank(state)
            change(weights, filled)
            before = {name: tensor.clone() for name, tensor in (weights | filled).items()}
            with pytest.raises(Damaged, match=reason):
                read(tmp_path / folder, weights, filled)
            assert all(torch.equal(tensor, before[name]) for name, tensor in (weights | filled).items())


def _other_start(path: Path, start: int) -> None:
    """Let the file claim that its rows of `embed.weight` begin elsewhere."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    offsets = json.loads(metadata["DCP_SHARDING_INFO"])
    offsets["embed.weight"]["saved_offsets"][0] = start
    save_file(load_file(path), path, metadata | {"DCP_SHARDING_INFO": json.dumps(offsets)})


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        ("part2of3.safetensors is missing", lambda d: (d / "model.part2of3.safetensors").unlink()),
        ("part3of3.safetensors is missing", lambda d: (d / "optimizer.part3of3.safetensors").unlink()),
        ("part2of2.safetensors is superfluous",
         lambda d: (d / "model.part2of3.safetensors").rename(d / "model.part2of2.safetensors")),
        ("both model.safetensors and model.part1of3", lambda d: (d / "model.safetensors").touch()),
        ("row 2 where row 3 was due", lambda d: _other_start(d / "model.part2of3.safetensors", 2)),
        ("row 4 where row 3 was due", lambda d: _other_start(d / "model.part2of3.safetensors", 4)),
        ("part2of3.safetensors: cannot be read", lambda d: os.truncate(d / "model.part2of3.safetensors", 50)),
        ("part2of3.safetensors: cannot be read", lambda d: (d / "model.part2of3.safetensors").write_bytes(b"")),
        ("cannot be read", lambda d: save_file({"embed.weight": torch.ones(9, 9)}, d / "model.part3of3.safetensors",
                                               {"DCP_SHARDING_INFO": "{}"})),
        ("embed.weight ends with row 6 of 7", lambda d: save_file({}, d / "model.part3of3.safetensors")),
        ("model.safetensors: cannot be read", lambda d: [p.unlink() for p in d.glob("model.*")]),
    ],
)  # fmt: skip
def test_parts_that_do_not_make_a_whole_are_refused(
    tensors: Any, tmp_path: Path, reason: str, damage: Callable[[Path], Any]
) -> None:
    model, state = tensors
    save(tmp_path / "here", model, state, 3, True)
    damage(tmp_path / "here")
    with pytest.raises(Damaged, match=reason):
        read(tmp_path / "here", blank(model), blank(state))


@pytest.mark.parametrize("of", [1, 3])
def test_the_same_tensors_are_the_same_files(tensors: Any, tmp_path: Path, of: int) -> None:
    for number in range(9):
        save(tmp_path / str(number), tensors[0], tensors[1], of, of > 1)
    for path in (tmp_path / "0").iterdir():
        assert {(tmp_path / str(number) / path.name).read_bytes() for number in range(9)} == {path.read_bytes()}


@pytest.mark.parametrize("tie", [True, False])
def test_a_sharded_model_opens_without_ranks(tmp_path: Path, tie: bool) -> None:
    config = ModelConfig(context=8, dim=16, layers=1, heads=2, tie=tie)
    model = Transformer(config, 11)
    save(tmp_path / "here", model.state_dict(), {}, 3, True)
    save_shape(model, tmp_path / "here")
    back = load_model(tmp_path / "here").state_dict()
    assert all(torch.equal(weight, back[name]) for name, weight in model.state_dict().items())
    assert snapshot(model.state_dict(), {}, rank(0, 1), sharded=False).nbytes == 4 * model.parameter_count()


def test_pytorch_s_own_reader_reads_the_parts(tensors: Any, tmp_path: Path) -> None:
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    model, state = tensors
    save(tmp_path / "here", model, state, 3, True)
    filled = blank(model | state)
    with warnings.catch_warnings(action="ignore"):  # that there is one process
        dcp.load(filled, storage_reader=HuggingFaceStorageReader(str(tmp_path / "here")), no_dist=True)
    assert all(torch.equal(tensor, filled[name]) for name, tensor in (model | state).items())


def test_on_ranks(tmp_path: Path) -> None:
    """Everything of `payload_ranks.py`, in one start of three."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*command, "-m", "tests.trainer.payload_ranks", str(tmp_path)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert all(f"rank {number} is content" in done.stdout for number in range(3))
