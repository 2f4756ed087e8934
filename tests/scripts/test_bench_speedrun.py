"""`python -m scripts.bench speedrun`: what is run, whose loss counts, and that ratios are those of the medians."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts import bench
from scripts.benches import measuring, speedrun
from scripts.benches.speedrun import AS_WRITTEN, BF16, FIRST, PREPARED, SWEEP, TUNED, WALL, chosen
from scripts.benches.speedrun_nanogpt import DATA, ON_CPU, OUT, command, copied, full_nll, windows, write_data
from scripts.benches.speedrun_report import aims, table, tables, worst

TRAIN = f"ctx = {ON_CPU}torch.amp.autocast(device_type=device_type, dtype=ptdtype)\n"
MODEL = """
from dataclasses import dataclass
import torch


@dataclass
class GPTConfig:
    block_size: int = 4
    vocab_size: int = 3


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bias = torch.nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, tokens, targets=None):
        return self.bias.expand(*tokens.shape, -1), None
"""
TEXT = "abcab" * 10


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "nanoGPT"
    (folder / ".git").mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN)
    (folder / "model.py").write_text(MODEL)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_a_checkout_is_copied_and_not_changed(checkout: Path, text: Path, tmp_path: Path):
    plain = copied(checkout, tmp_path / "plain", text, autocast=False)
    mixed = copied(checkout, tmp_path / "mixed", text, autocast=True)
    assert (plain / "train.py").read_text() == (checkout / "train.py").read_text() == TRAIN
    assert (mixed / "train.py").read_text() == "ctx = torch.amp.autocast(device_type=device_type, dtype=ptdtype)\n"
    assert not (checkout / "data").exists() and not (plain / ".git").exists()
    (checkout / "train.py").write_text("ctx = something else")
    with pytest.raises(ValueError, match="another line for autocast"):
        copied(checkout, tmp_path / "other", text, autocast=True)
    with pytest.raises(ValueError, match="must be a checkout"):
        copied(tmp_path, tmp_path / "none", text, autocast=False)


def test_data_are_those_of_its_prepare(tmp_path: Path):
    write_data(TEXT, tmp_path)
    train, val = (np.fromfile(tmp_path / f"{side}.bin", dtype=np.uint16) for side in ("train", "val"))
    assert train.tolist() == [0, 1, 2, 0, 1] * 9 and val.tolist() == [0, 1, 2, 0, 1]
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    assert meta == {"vocab_size": 3, "itos": {0: "a", 1: "b", 2: "c"}, "stoi": {"a": 0, "b": 1, "c": 2}}


def test_the_command_is_that_of_its_readme():
    assert " ".join(command("python")) == (
        "python train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
        "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
        "--lr_decay_iters=2000 --dropout=0.0"
    )
    assert {"--max_iters=500", "--learning_rate=0.004"} <= {*command("python", max_iters=500, learning_rate=4e-3)}


@pytest.mark.parametrize("length", [2, 5, 9, 12, 13, 2059])
def test_every_target_is_scored_once(length: int):
    text = torch.arange(length)
    inputs, targets = (torch.cat([part.flatten() for part in side]) for side in zip(*windows(text, 4), strict=True))
    assert inputs.tolist() == list(range(length - 1)) and targets.tolist() == list(range(1, length))
    assert all(part.shape[1] <= 4 and len(part) <= 256 for part, _ in windows(text, 4))


def test_the_loss_is_over_the_whole_validation_text(checkout: Path, text: Path, tmp_path: Path):
    folder = copied(checkout, tmp_path / "copy", text, autocast=False)
    (folder / OUT).mkdir()
    saved = {"model_args": {"block_size": 3, "vocab_size": 3}, "iter_num": 9, "optimizer": {}}
    torch.save({"model": {"bias": torch.tensor([0.0, math.log(2), 0.0])}, **saved}, folder / OUT / "ckpt.pt")
    assert (folder / DATA / "val.bin").stat().st_size == 10
    # a bcab -> targets b, c, a, b of probabilities 1/2, 1/4, 1/4, 1/2
    assert full_nll(folder) == {"nll": pytest.approx(1.5 * math.log(2)), "targets": 4, "step": 9}


def answer(seconds: float, nll: float, **more: Any) -> dict[str, Any]:
    return {"seconds": seconds, "nll": nll, "steps": 10, **more}


def test_ratios_are_those_of_the_medians():
    walls = {
        PREPARED: [answer(9.0, 1.90), answer(10.0, 1.91), answer(99.0, 1.80)],
        FIRST: [answer(12.5, 1.8)],
        AS_WRITTEN: [answer(100.0, 1.903)],
        BF16: [{"failed": "no"}],
    }
    report: dict[str, Any] = {"settings": {"quick": False, "text": None}, "answers": {WALL: walls}}
    assert table(report)[1:] == [
        (PREPARED, "10.00 s", "900%", "1.9100", "10", "1.00x", "0.80x"),
        (FIRST, "12.50 s", "0%", "1.8000", "10", "1.25x", "1.00x"),
        (AS_WRITTEN, "100.00 s", "0%", "1.9030", "10", "10.00x", "8.00x"),
    ]
    assert [(aim.found, aim.met) for aim in aims(report)] == [(8, True), (1.91, False), (1.8, True)]
    assert f"failed  {BF16} (wall): no" in tables(report)
    del walls[PREPARED][0]["nll"]
    assert math.isnan(worst(report, PREPARED)) and not aims(report)[1].met


def test_the_sweep_takes_the_fewest_iterations_and_then_the_best_rate(tmp_path: Path):
    book = measuring.Notebook(tmp_path / "x.json", "x", {"quick": False, "text": None}, resume=False)
    asked = []

    def tuned(iterations: int, rate: float) -> dict[str, Any]:
        asked.append((iterations, rate))
        return {"failed": "nan"} if rate == 8e-3 else answer(1.0, 2.6 - iterations / 1000 - 10 * rate)

    speedrun.sweep(tuned, book, speedrun.ITERATIONS)
    assert chosen(book.report) == (750, 4e-3) and asked == [(n, r) for n in (500, 750) for r in speedrun.RATES]
    speedrun.sweep(tuned, book, speedrun.ITERATIONS)
    assert len(asked) == 8, "what was tried is not tried again"
    told = "\n".join(tables(book.report))
    assert "1.8100" in told and f"{TUNED}: 750 iterations at 0.004" in told
    book.report["answers"][SWEEP] = {"a": [answer(1.0, 1.95, iterations=500, rate=1e-3)]}
    assert chosen(book.report) is None and "no rate reaches 1.903" in "\n".join(tables(book.report))


@pytest.fixture
def stub(monkeypatch, text: Path) -> list[list[str]]:
    """Processes that end at once, leaving metrics behind, and a list of their commands."""
    ran: list[list[str]] = []

    def timed(words: list[str], folder: Path) -> dict[str, Any]:
        ran.append([*words])
        options = dict(word.partition("=")[::2] for word in words)
        if "run.dir" in options:
            run = Path(options["run.dir"], options["run.name"])
            run.mkdir(parents=True, exist_ok=True)
            rows = [{"step": 5, "val/nll": 9.0}, {"step": 9, "val/nll": 1.9, "time/elapsed": 3.0}, {"step": 10}]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif "data.dir" in options:
            Path(options["data.dir"]).mkdir()
        return {"seconds": 80.0 if "--device" in options else 8.0}

    monkeypatch.setattr(speedrun, "timed", timed)
    monkeypatch.setattr(measuring, "ask", lambda *words, python: {"nll": 1.902})
    monkeypatch.setattr(speedrun, "corpus", lambda _: text)
    return ran


def test_every_entrant_is_run(stub: list[list[str]], checkout: Path, tmp_path: Path, capsys):
    words = ["speedrun", "--nanogpt", str(checkout), "--sweep", "--repeats", "2", "--out", str(tmp_path)]
    assert bench.main(words) == 0
    report = json.loads((tmp_path / "bench_speedrun.json").read_text())
    assert {name: len(found) for name, found in report["answers"][WALL].items()} == dict.fromkeys(
        (PREPARED, FIRST, AS_WRITTEN, BF16, TUNED), 2
    )
    ours = [words for words in stub if "--restart" in words]
    assert sorted(word for words in ours for word in words if word.startswith("run.seed")) == [
        "run.seed=1337", "run.seed=1337", "run.seed=1338", "run.seed=1338"
    ]  # fmt: skip
    corpora = [word for words in ours for word in words if word.startswith("data.dir")]
    assert len(set(corpora)) == 3, "one that is prepared, and an empty one for each first start"
    assert sum("scripts.prepare" in words for words in stub) == 1
    assert report["answers"][WALL][PREPARED][0]["nll"] == 1.9
    assert report["answers"][WALL][TUNED][0]["rate"] == 1e-3
    out, err = capsys.readouterr()
    assert "10.00x" in out and f"[2/2] {AS_WRITTEN}: 80.00 s, nll 1.9020" in err
    assert (tmp_path / "bench_speedrun.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_checkout_ours_is_run_alone(stub: list[list[str]], tmp_path: Path, capsys):
    assert bench.main(["speedrun", "--quick", "--out", str(tmp_path)]) == 0
    assert {*json.loads((tmp_path / "bench_speedrun.json").read_text())["answers"][WALL]} == {PREPARED, FIRST}
    out = capsys.readouterr().out
    assert "left out  nanoGPT: git clone" in out and "neither times nor losses" in out
    assert all("train.steps=4" in words for words in stub if "--restart" in words)


def test_who_is_asked_for_is_known_before_anything_runs(stub: list[list[str]], checkout: Path, tmp_path: Path, capsys):
    words = ["speedrun", "--sweep", "--out", str(tmp_path / "out")]
    assert bench.main([*words, "--nanogpt", str(checkout), "--only", "ours", "nobody"]) == 2
    assert capsys.readouterr().err.startswith(f"--only nobody: there are {PREPARED}; {FIRST}; {AS_WRITTEN}; ")
    assert bench.main([*words, "--only", "nanoGPT"]) == 2
    assert capsys.readouterr().err.startswith("left out  nanoGPT: git clone")
    assert not stub and not (tmp_path / "out").exists()
    assert bench.main([*words, "--nanogpt", str(checkout), "--repeats", "1", "--only", FIRST]) == 0
    assert len(stub) == 1, "no sweep for an entrant that is not asked for"


def test_a_missing_text_is_told_in_a_line(monkeypatch, tmp_path: Path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "run: {name: x}\ntrain: {steps: 1}\ndata: {sources: {s: {kind: text, files: [corpora/none.txt], origin: 'https://example.org/x'}}}\n"
    )
    monkeypatch.setattr(speedrun, "RECIPE", str(recipe))
    assert bench.main(["speedrun", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert (
        "corpora/none.txt is missing: curl --create-dirs -o corpora/none.txt https://example.org/x" in err
        and len(err.splitlines()) == 1
    )
    assert bench.main(["speedrun", "--text", "no/text.txt"]) == 2
    assert capsys.readouterr().err.strip().endswith("--text no/text.txt: there is no such file")
    assert not (tmp_path / "out").exists()


def test_a_process_that_fails_is_told_with_its_last_words(tmp_path: Path):
    found = speedrun.timed(["python3", "-c", "raise SystemExit('no such thing')"], tmp_path)
    assert found == {"failed": "no such thing"}
    assert speedrun.timed(["true"], tmp_path)["seconds"] > 0 and speedrun.final(tmp_path) == {}
