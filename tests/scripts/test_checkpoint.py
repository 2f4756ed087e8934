"""Looking after checkpoints: what is told of them, their mean, and what may go."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import durable
from model import ModelConfig, Transformer, load_model, save_model
from scripts import checkpoint
from scripts.faults.saves import make_saver, steps

SHAPE = ModelConfig(layers=1, dim=16, heads=2, kv_heads=2, context=8, tie=True)


def models(count: int, shape: ModelConfig = SHAPE) -> list[Transformer]:
    return [Transformer(shape, 16) for _ in range(count)]


def make_run(run: Path, *saved: Transformer, tokenizers: tuple[str, ...] = (), keep_every: int | None = None) -> Path:
    """Checkpoints of steps 10, 20, ... with nll 4.0 and, for the second, 2.0."""
    saver = make_saver(run, keep=99, keep_every=keep_every)
    for number, model in enumerate(saved):

        def write(directory: Path, model: Transformer = model, number: int = number) -> None:
            save_model(model, directory)
            (directory / "tokenizer.json").write_text(tokenizers[number] if tokenizers else "{}")

        saver.save(10 * (number + 1), write, {"nll": 2.0 if number == 1 else 4.0, "tokens": 1000 * number}, 0)
    return run


def mean(*of: Transformer) -> dict[str, Tensor]:
    states = [model.state_dict() for model in of]
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def spoil(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


def test_list_and_verify_tell_what_is_there(tmp_path, capsys):
    run = make_run(tmp_path, *models(3), keep_every=30)
    assert checkpoint.main(["list", str(run)]) == checkpoint.main(["verify", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "step       20" in lines[1] and "1,000 tokens  nll 2.0000  best" in lines[1]
    assert lines[2].endswith("permanent") and "best" not in lines[2]
    assert ["intact" in line for line in lines] == [False] * 3 + [True] * 3
    first = durable.list_checkpoints(run)[0]
    spoil(first)
    assert checkpoint.main(["list", str(run)]) == 0  # reads no weights
    assert checkpoint.main(["verify", str(run)]) == 3
    out, err = capsys.readouterr()
    assert "model.safetensors: sha256 differs" in out and "1 of 3 checkpoints damaged" in err
    (first / "tokenizer.json").unlink()
    first.rename(first.with_suffix(".damaged"))
    assert checkpoint.main(["list", str(run)]) == 0
    assert "step_00000010.damaged" in capsys.readouterr().out
    assert checkpoint.main(["list", str(tmp_path / "absent")]) == 2


def test_the_average_is_the_mean_of_the_weights_and_loads_like_a_checkpoint(tmp_path, capsys):
    a, b, c = models(3)
    run, out = make_run(tmp_path / "run", a, b, c), tmp_path / "out"
    assert checkpoint.main(["average", str(run), str(out), "--last", "2"]) == 0
    made = load_model(out)
    assert made.config == a.config
    for name, value in mean(b, c).items():
        torch.testing.assert_close(made.state_dict()[name], value, rtol=1e-6, atol=1e-8)
    assert durable.verify(out)["average"] == [20, 30] and "steps 20, 30" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["model.json", "model.safetensors", "state.json", "tokenizer.json"]
    assert durable.find_checkpoint(out) == out

    one = tmp_path / "one"
    assert checkpoint.main(["average", str(run), str(one), "--steps", "10, 10"]) == 0
    assert all(torch.equal(value, a.state_dict()[name]) for name, value in load_model(one).state_dict().items())
    assert checkpoint.main(["average", str(run), str(tmp_path / "best"), "--steps", "best,10,30"]) == 0
    assert durable.verify(tmp_path / "best")["average"] == [20, 10, 30]


def test_what_cannot_be_averaged_is_refused_and_nothing_is_left(tmp_path, capsys):
    wide = ModelConfig(layers=1, dim=32, heads=2, kv_heads=2, context=8, tie=True)
    mixed = make_run(tmp_path / "mixed", *models(1), *models(1, wide))
    worded = make_run(tmp_path / "worded", *models(2), tokenizers=("{}", "{ }"))
    run = make_run(tmp_path / "run", *models(3))
    spoil(durable.list_checkpoints(run)[2])
    out = tmp_path / "out"
    for path, which, code, why in (
        (mixed, ["--last", "2"], 2, "another shape"),
        (worded, ["--steps", "10,20"], 2, "another tokenizer"),
        (run, ["--last", "3"], 2, "has 2 intact checkpoints"),
        (run, ["--last", "0"], 2, "1 or more"),
        (run, ["--steps", "10,7"], 2, "steps 10, 20, 30"),
        (run, ["--steps", "10,30"], 3, "sha256 differs"),
        (run, ["--last", "2"], 0, "damaged checkpoint passed over"),
        (run, ["--last", "2"], 2, "exists"),
    ):
        assert checkpoint.main(["average", str(path), str(out), *which]) == code
        assert why in capsys.readouterr().err
    assert durable.verify(out)["average"] == [10, 20]
    assert {path.name for path in tmp_path.iterdir()} == {"mixed", "worded", "run", "out"}


def test_prune_keeps_the_newest_the_best_and_the_permanent(tmp_path, capsys):
    run = make_run(tmp_path, *models(6), keep_every=30)
    assert checkpoint.main(["prune", str(run), "--keep", "1", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "would remove step 10" in told and "3 checkpoints would stay" in told
    assert steps(run) == [10, 20, 30, 40, 50, 60]
    assert checkpoint.main(["prune", str(run), "--keep", "2"]) == 0
    assert "removed step 40" in capsys.readouterr().out and steps(run) == [20, 30, 50, 60]
    spoil(durable.list_checkpoints(run)[0])
    spoil(durable.list_checkpoints(run)[3])
    assert checkpoint.main(["prune", str(run), "--keep", "1"]) == 0
    assert steps(run) == [30, 50, 60]  # the newest intact one is 50, and the best is one that can be read
    assert durable.step_of(durable.find_checkpoint(run, "best")) == 30
    with durable.file_lock(run / "run.lock", wait=False):
        assert checkpoint.main(["prune", str(run), "--keep", "1"]) == 2
    assert checkpoint.main(["prune", str(run), "--keep", "0"]) == 2
    assert checkpoint.main(["prune", str(run)]) == 2  # no config that says how many
    assert "config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["list"], ["verify"], ["average"], ["prune"]])
def test_help_says_what_a_verb_does(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        checkpoint.main([*verb, "--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: python -m scripts.checkpoint" in told and len(told) > 200
