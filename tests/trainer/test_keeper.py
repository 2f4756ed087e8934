"""What is copied for a save, and that a poisoned value never gets into a checkpoint."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import durable
from scripts.faults.saves import make_saver, steps
from trainer.distributed import Place, Ranks
from trainer.keeper import Keeper
from trainer.payload import snapshot

ALONE = Ranks(Place(), torch.device("cpu"))
STATE = {"nll": None}


def tensors():
    return {"w": torch.arange(6.0).view(2, 3)}, {"optim.w.step": torch.tensor(3.0), "optim.w.exp_avg": torch.ones(2, 3)}


def others(directory):
    (directory / "model.json").write_text("{}")


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_holds_what_the_tensors_were(tmp_path, background):
    model, optimizer = tensors()
    keeper = Keeper(make_saver(tmp_path, keep=9, background=background), sharded=False)
    places = set()
    for step in (1, 2, 3):
        assert keeper.save(step, model, optimizer, others, STATE, last=False)
        places |= {keeper._copy.parts["model"].rows["w"].data_ptr()} if keeper._copy else set()
        model["w"].add_(10)  # training goes on at once
    keeper.saver.wait()
    for number, path in enumerate(durable.list_checkpoints(tmp_path)):
        durable.verify(path)
        assert torch.equal(load_file(path / "model.safetensors")["w"], torch.arange(6.0).view(2, 3) + 10 * number)
        assert (path / "model.json").is_file()
    assert steps(tmp_path) == [1, 2, 3] and len(places) == background, "copies go to one place"


def test_copies_use_the_same_memory_again_and_foreground_saves_need_none():
    model, optimizer = tensors()
    first = snapshot(model, optimizer, ALONE, sharded=False)
    second = snapshot(model, optimizer, ALONE, sharded=False, into=first)
    place = {key: rows.data_ptr() for part in first.parts.values() for key, rows in part.rows.items()}
    assert place == {key: rows.data_ptr() for part in second.parts.values() for key, rows in part.rows.items()}
    assert place["w"] != model["w"].data_ptr()
    model["w"] = torch.zeros(5, 3)  # of another shape, as after a change of ranks
    assert snapshot(model, optimizer, ALONE, sharded=False, into=first).parts["model"].rows["w"].shape == (5, 3)
    bare = snapshot(model, optimizer, ALONE, sharded=False, copy=False)
    assert bare.parts["model"].rows["w"].data_ptr() == model["w"].data_ptr()


@pytest.mark.parametrize("where", ["w", "optim.w.exp_avg"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_poisoned_is_saved(tmp_path, where, value):
    model, optimizer = tensors()
    keeper = Keeper(make_saver(tmp_path), sharded=False)
    assert keeper.save(1, model, optimizer, others, STATE, last=False)
    (model | optimizer)[where][1, 1] = value
    assert not keeper.save(2, model, optimizer, others, STATE, last=False)
    assert not keeper.save(2, model, optimizer, others, STATE, last=True)
    assert steps(tmp_path) == [1] and (tmp_path / "events.jsonl").read_text().count("\n") == 1


def test_in_the_background_it_is_a_save_that_failed(tmp_path):
    model, optimizer = tensors()
    told: list[str] = []
    keeper = Keeper(make_saver(tmp_path, background=True, warn=told.append), sharded=False)
    model["w"][0, 0] = math.nan
    assert keeper.save(1, model, optimizer, others, STATE, last=False)
    keeper.saver.wait()
    assert len(told) == 1 and "is not finite" in told[0] and steps(tmp_path) == []
    assert [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").open()] == ["save_failed"]
    assert not keeper.save(2, model, optimizer, others, STATE, last=False)  # as in the foreground: the run goes back
    assert not (tmp_path / "checkpoints" / "step_00000001.tmp").exists()
