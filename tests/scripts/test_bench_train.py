"""`python -m scripts.bench train`: who takes part, what is asked of whom, and that ratios are those of the medians."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import bench
from scripts.benches import measuring, train, train_ours, train_peers
from scripts.benches.train_pace import LEAST, WARM, Pace, Request, Shape, batches
from scripts.benches.train_report import aims, share, speeds, table, tables

TINY = Shape(layers=1, dim=16, heads=2, context=8, rows=3, vocab=11)
MIB = 1 << 20
NANOGPT = """
from dataclasses import dataclass
import torch


@dataclass
class GPTConfig:
    n_layer: int; n_head: int; n_embd: int; block_size: int; bias: bool; vocab_size: int; dropout: float


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = torch.nn.Embedding(config.vocab_size, config.n_embd)
        torch.nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, tokens, targets=None):
        logits = torch.nn.functional.linear(self.wte(tokens), self.wte.weight)
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, decay, rate, betas, device_type):
        assert (decay, betas, device_type) == (0.1, (0.9, 0.95), "cpu")
        return torch.optim.AdamW(self.parameters(), lr=rate, betas=betas)
"""


@pytest.fixture
def nanogpt(tmp_path: Path) -> Path:
    """What looks like a checkout."""
    (tmp_path / "nanogpt").mkdir()
    (tmp_path / "nanogpt" / "model.py").write_text(NANOGPT)
    return tmp_path / "nanogpt"


def answer(speed: float, above: int = 100, precision: str = "bf16", loss: float = math.log(65)) -> dict[str, Any]:
    return {"tokens_per_s": speed, "above": above * MIB, "whole": 2 * above * MIB, "loss": loss, "precision": precision}


@pytest.fixture
def stub(monkeypatch) -> list[tuple[str, str]]:
    """Answers at once, and a list of who was asked, with which interpreter."""
    asked: list[tuple[str, str]] = []

    def ask(module: str, words: str, python: str = sys.executable) -> dict[str, Any]:
        request = Request.read(words)
        asked.append((request.who, python))
        if request.who == "peak":
            return {"fp32": 1e9, "bf16": 4e9, "flops": 1000}
        if request.who == "litgpt" and request.precision == "fp32":
            return {"failed": "RuntimeError: no"}
        return answer(100.0 if request.who == "ours" else 50.0, precision=request.precision.replace("auto", "bf16"))

    monkeypatch.setattr(measuring, "ask", ask)
    monkeypatch.setattr(measuring, "lacking", lambda python, *modules: [])
    return asked


@pytest.mark.parametrize("options", [{"model.preset": "gpt2", "optim.name": "adamw"}, {"model.preset": "qwen3"}])
def test_our_step_trains_on_the_tokens_of_everyone(options: dict[str, str]):
    request = Request("ours", "fp32", TINY, 0.0, options)
    found = train_ours.ours(Request.read(request.words()))
    assert found["precision"] == "fp32" and found["steps"] == LEAST and found["tokens_per_s"] > 0
    assert abs(found["loss"] / math.log(TINY.vocab) - 1) < 0.1
    assert found["whole"] >= found["above"] >= 0


def test_our_step_is_that_of_plain_adamw():
    """One step in micro-batches moves the weights as torch's AdamW does on the whole batch."""
    config = train_ours.config_of(TINY, "fp32", {"model.preset": "gpt2", "optim.name": "adamw",
                                                 "schedule.warmup": 0, "train.micro_rows": 2})  # fmt: skip
    place, device = train_ours.Place(), torch.device("cpu")
    learner = train_ours.build_learner(config, TINY.vocab, train_ours.Ranks(place, device), device)
    plain = train_ours.build_learner(config, TINY.vocab, train_ours.Ranks(place, device), device).model
    micro = next(train_ours.feed(TINY, learner.micro_rows, learner.ranks))
    loss = train_ours.Step(learner)(micro, TINY.tokens)
    tokens, targets = next(batches(TINY))
    wanted = torch.nn.functional.cross_entropy(plain(tokens).flatten(0, 1), targets.flatten())
    wanted.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optim = config.optim
    torch.optim.AdamW(plain.parameters(), lr=train_ours.RATE, betas=optim.betas, eps=optim.eps, weight_decay=0.0).step()
    assert [len(batch.tokens) for batch in micro] == [2, 1] and loss == pytest.approx(wanted.item(), rel=1e-5)
    for ours, theirs in zip(learner.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


def test_the_page_on_gpus_shows_what_was_measured_there():
    page = (measuring.ROOT / "docs" / "gpu.md").read_text()
    for report in json.loads((measuring.ROOT / "docs" / "gpu.json").read_text()).values():
        (shape,) = report["settings"]["shapes"]
        assert "\n".join(measuring.columns(table(report, shape))) in page
        assert report["told"].startswith("NVIDIA H100 80GB HBM3") and report["settings"]["device"] == "cuda"


def test_flops_of_a_gpt2_shape_are_those_of_its_matrices():
    found = train_ours.peak(Request("peak", "fp32", TINY, 0.0, {}))
    assert found["flops"] == 6 * (12 * 16 * 16 + 11 * 16) + 12 * 1 * 16 * 8
    assert found["fp32"] > 0 and found["bf16"] > 0


def test_nanogpt_is_trained_from_its_checkout(nanogpt: Path):
    found = train_peers.nanogpt(Request("nanoGPT", "bf16", TINY, 0.0, {"path": str(nanogpt)}))
    assert found["steps"] == LEAST and found["parameters"] == 11 * 16
    assert found["loss"] == pytest.approx(math.log(11), rel=0.05)


def test_the_clock_starts_after_the_first_steps(monkeypatch):
    times = iter([50.0, 60.0, 61.0, 62.0, 64.0])
    monkeypatch.setattr("scripts.benches.train_pace.time.perf_counter", lambda: next(times))
    pace = Pace(3.0)
    assert [pace.done() for _ in range(WARM["cpu"] + LEAST)] == [False, False, False, False, True]
    assert pace.answer(TINY, [1.0, 2.0], 7)["tokens_per_s"] == 24 * 3 / 4
    assert pace.answer(TINY, [1.0, 2.0], 7)["loss"] == 1.5


def test_ratios_are_those_of_the_medians():
    size = {"layers": 6, "dim": 384, "heads": 6, "context": 256}
    each: dict[str, list[dict[str, Any]]] = {
        "ours bf16": [answer(300.0), answer(1.0), answer(310.0)],
        "ours fp32": [answer(60.0, 150, "fp32")],
        "nanoGPT fp32": [answer(100.0, 120, "fp32")] * 3,
        "nanoGPT bf16": [answer(200.0, 100)],
        "Trainer bf16": [answer(150.0)], "Trainer fp32": [answer(250.0, precision="fp32")],
        "litgpt fp32": [{"failed": "RuntimeError: no"}],
        "litgpt bf16-true": [answer(9999.0, loss=0.1)],
        "GEMM": [{"fp32": 1e6, "bf16": 2e6, "flops": 3000}, {"fp32": 1e6, "bf16": 3e6, "flops": 3000}],
    }  # fmt: skip
    report = {"settings": {**size, "shapes": ["16x65"]}, "answers": {"16x65": each}}
    assert speeds(report, "16x65")["ours bf16"] == 300 and "litgpt bf16-true" not in speeds(report, "16x65")
    assert share(report, "16x65", "ours bf16") == 300 * 3000 / 3e6
    found = {aim.what.partition(": ")[2]: (aim.wanted, aim.found, aim.met) for aim in aims(report)}
    assert found == {
        "tokens/s / nanoGPT fp32": (2.5, 3.0, True),
        "tokens/s / nanoGPT bf16": (1.3, 1.5, True),
        "tokens/s / Trainer fp32, its best": (1.5, 1.2, False),
        "share of the bf16 GEMM peak": (0.55, 0.3, False),
        "memory of a step / nanoGPT bf16": (1.0, 1.0, True),
        "memory of a step / nanoGPT fp32": (1.0, 1.25, False),
    }
    assert table(report, "16x65")[1] == ("ours bf16", "300", "103%", "1.00x", "30%", "all", "100", "200")
    told = "\n".join(tables(report))
    assert "failed  litgpt fp32 (16x65): RuntimeError: no" in told
    assert "wrong   litgpt bf16-true (16x65): a loss of 0.100, not about ln 65" in told
    assert "fp32 0 to 0 GFLOP/s" in told


def test_a_measurement_that_was_cut_off_goes_on(stub: list, nanogpt: Path, tmp_path: Path, capsys):
    command = ["train", "--quick", "--repeats", "2", "--out", str(tmp_path), "--python", "other"]
    assert bench.main([*command, "--only", "ours bf16", "Trainer"]) == 0
    assert stub.count(("ours", sys.executable)) == 2 and stub.count(("Trainer", "other")) == 6
    out, err = capsys.readouterr()
    assert "left out  nanoGPT: git clone" in out and "[2/2] 4x65 Trainer bf16: 50 tokens/s" in err
    stub.clear()
    assert bench.main([*command, "--resume", "--nanogpt", str(nanogpt)]) == 0
    assert {who for who, _ in stub} == {"ours", "nanoGPT", "litgpt"}, "only those that were not asked before"
    assert stub.count(("litgpt", "other")) == 9, "who failed is not asked again"
    report = json.loads((tmp_path / "bench_train.json").read_text())
    assert report["answers"]["4x65"]["litgpt fp32"] == [{"failed": "RuntimeError: no"}]
    assert all(len(found) == 2 for name, found in report["answers"]["4x65"].items() if name != "litgpt fp32")
    assert report["command"] == "python -m scripts.bench train --quick --repeats 2 --python PYTHON --nanogpt NANOGPT"
    assert (tmp_path / "bench_train.png").read_bytes().startswith(b"\x89PNG")
    assert "tokens/s / nanoGPT fp32" in capsys.readouterr().out
    assert bench.main([*command[:-4], "--seconds", "9", "--out", str(tmp_path), "--resume"]) == 2
    assert "measured with another --seconds" in capsys.readouterr().err
    report["environment"]["git"] = {"commit": "0123456789abcdef", "modified": False}
    (tmp_path / "bench_train.json").write_text(json.dumps(report))
    assert bench.main([*command, "--resume"]) == 2
    assert "measured at commit 0123456789ab" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "ours bf16", "nobody"], "--only nobody: there are ours bf16; ours bf16, compiled; "),
        (["--heads", "5"], "--heads 5 does not divide --dim 384"),
        (["--seconds", "-1"], "--seconds: '-1' is not a number > 0"),
        (["--seconds", "nan"], "--seconds: 'nan' is not a number > 0"),
        (["--nanogpt", "/nowhere"], "--nanogpt /nowhere: must be a checkout"),
        (["--python", "/nowhere/python"], "--python /nowhere/python: does not run"),
        (["--shapes", "16by65"], "--shapes: '16by65' is not rows and ids of a vocabulary, such as 16x65"),
        (["--shapes", "16x0"], "--shapes: '0' is not an integer >= 1"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(words: list[str], told: str, tmp_path: Path, capsys):
    assert bench.main(["train", *words, "--out", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_tools_that_are_all_left_out_are_no_measurement(tmp_path: Path, capsys):
    assert bench.main(["train", "--only", "nanoGPT", "--out", str(tmp_path)]) == 2
    assert "left out  nanoGPT: git clone https://github.com" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "layers", "shapes"),
    [
        ([], 6, ["16x65", "4x50304"]),
        (["--device", "cuda"], 12, ["32x50304"]),
        (["--quick"], 2, ["4x65"]),
        (["--quick", "--device", "cuda", "--layers", "3"], 3, ["4x65"]),
    ],
)
def test_defaults_are_of_the_device_and_of_a_quick_look(words: list[str], layers: int, shapes: list[str]):
    args = train.arguments(words)
    assert args.layers == layers and args.shapes == shapes


def test_every_option_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        train.arguments(["--help"])
    assert {"--quick", "--only", "--seconds", "--device"} <= {
        word.strip("[],") for word in capsys.readouterr().out.split()
    }


def test_a_tool_that_is_not_installed_is_left_out(monkeypatch, nanogpt: Path):
    assert measuring.lacking(sys.executable, "json", "no_such_module") == ["no_such_module"]
    monkeypatch.setattr(measuring, "lacking", lambda python, *modules: ["accelerate", "lightning"])
    told = measuring.missing(nanogpt, sys.executable, train.MODULES)
    assert told.keys() == {"Trainer", "litgpt"}
    assert told["Trainer"] == (
        "left out  Trainer: python -m pip install accelerate, or --python FILE that has it"
    )  # fmt: skip
