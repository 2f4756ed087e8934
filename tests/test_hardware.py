"""What `auto` comes to on a CPU: the rule's choice, or the other where a trial finds it clearly faster; then kept."""

import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

import hardware
import train
from configs import RunConfig, load
from hardware import clearly_faster, pick_attention, pick_precision
from learner import build_learner
from model import Transformer
from trainer import precision
from trainer.distributed import Place, Ranks

CPU = torch.device("cpu")
ALONE = Ranks(Place(), CPU)
SMALL = ("model.dim=128", "model.heads=2", "model.context=128", "train.batch_tokens=128", "train.precision=auto")


def configured(*overrides: str) -> RunConfig:
    return load("configs/tiny.yaml", [*SMALL, *overrides])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that each choice takes, on a clock that goes only while one is tried."""
    seconds: dict[str, float] = {}
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def timed(what: str, rule: str, other: str, act: Any) -> str:
        def slow(name: str) -> None:
            act(name)
            now[0] += seconds[name]

        return clearly_faster(what, rule, other, slow)

    monkeypatch.setattr(hardware, "clearly_faster", timed)
    return seconds


@pytest.mark.parametrize(
    ("has", "fp32", "bf16", "chosen"),
    [
        (True, 1.0, 1.0, "bf16"),
        (True, 1.0, 2.4, "bf16"),  # a narrow lead may be noise
        (True, 1.0, 2.6, "fp32"),  # flags promise what the library does not use
        (False, 1.0, 0.42, "fp32"),
        (False, 1.0, 0.384, "bf16"),  # a CPU whose flags nobody knows
    ],
)
def test_precision(clock, monkeypatch, capsys, has: bool, fp32: float, bf16: float, chosen: str):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has)
    clock |= {"fp32": fp32, "bf16": bf16}
    assert pick_precision(configured(), ALONE, CPU, {}) == chosen
    rule = "bf16" if has else "fp32"
    told = f"train.precision: {chosen}, which is 2.6 times as fast as {rule} here\n"
    assert capsys.readouterr().err == (told if chosen != rule else "")
    for other in ("fp32", "bf16"):
        assert pick_precision(configured(), ALONE, CPU, {"precision": other}) == other, "an earlier start chose"
        assert pick_precision(configured(f"train.precision={other}"), ALONE, CPU, {"precision": chosen}) == other
    strict = configured("run.deterministic=true")
    assert pick_precision(strict, ALONE, CPU, {}) == rule, "time decides nothing in a deterministic run"


@pytest.mark.parametrize(
    ("context", "products", "flash", "chosen", "keys"),
    [
        (128, 1.0, 0.42, "products", 1024),
        (128, 1.0, 0.38, "flash", 0),
        (1024, 1.0, 5.0, "products", 1024),
        (1025, 0.42, 1.0, "flash", 1024),
        (1025, 0.38, 1.0, "products", 1025),
    ],
)
def test_attention(clock, context: int, products: float, flash: float, chosen: str, keys: int):
    clock |= {"products": products, "flash": flash}
    config = configured(f"model.context={context}", f"train.batch_tokens={context}")
    model = Transformer(config.model, 50)
    assert pick_attention(config, model, ALONE, CPU, "bf16", {}) == chosen
    assert [block.attention.products for block in model.blocks] == [keys] * len(model.blocks)  # type: ignore[union-attr]
    again, clock["products"], clock["flash"] = Transformer(config.model, 50), flash, products
    assert pick_attention(config, again, ALONE, CPU, "bf16", {"attention": chosen}) == chosen
    assert again.products == keys, "an earlier start chose"
    assert pick_attention(config, model, ALONE, CPU, "fp32", {}) is None
    assert pick_attention(config, model, ALONE, torch.device("cuda"), "bf16", {}) is None


def test_what_is_too_small_to_time_is_not_tried(clock, monkeypatch):
    """There it is overhead that is timed, and two equal runs chose differently."""
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    config = configured("model.dim=64", "model.context=64")
    assert pick_precision(config, ALONE, CPU, {}) == "bf16"
    assert pick_attention(config, Transformer(config.model, 50), ALONE, CPU, "bf16", {}) == "products"


@pytest.mark.parametrize("kernel", ["products", "flash"])
def test_the_kernel_that_was_chosen_computes(kernel: str):
    config = configured("train.precision=bf16")
    learner = build_learner(config, 50, ALONE, CPU, {"device": "cpu", "attention": kernel})
    assert learner.auto["attention"] == kernel
    kernel_of_torch = patch("torch.nn.functional.scaled_dot_product_attention", wraps=F.scaled_dot_product_attention)
    with kernel_of_torch as flash, learner.precision.autocast():
        learner.model(torch.zeros(1, 32, dtype=torch.long))
    assert flash.called == (kernel == "flash")


def test_a_trial_draws_nothing_from_the_generator_of_the_run():
    before = torch.get_rng_state()
    build_learner(configured("train.precision=auto"), 50, ALONE, CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_one_rank_chooses_for_all(clock, monkeypatch: pytest.MonkeyPatch):
    class Other(Ranks):
        def share(self, value):
            return "fp32"

    clock |= {"fp32": 1.0, "bf16": 0.1}
    assert pick_precision(configured(), Other(Place(), CPU), CPU, {}) == "fp32"


def test_a_run_tells_and_keeps_what_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    """The second start would choose otherwise, and does not."""
    words = [f"run.dir={tmp_path}/runs", f"data.dir={tmp_path}/corpora", "eval.every=2", "save.every=2"]

    def chosen(steps: int) -> tuple[dict[str, Any], str]:
        assert train.main(["configs/tiny.yaml", *SMALL, *words, f"train.steps={steps}"]) == 0
        (env,) = tmp_path.glob("runs/*/env.json")
        return json.loads(env.read_text())["auto"], capfd.readouterr().err

    monkeypatch.setattr(hardware, "clearly_faster", lambda what, rule, other, act: other)
    kept, told = chosen(2)
    unlike_the_rule = "fp32" if precision.cpu_has_bf16() else "bf16"
    assert kept["precision"] == unlike_the_rule and f"precision {unlike_the_rule}" in told
    monkeypatch.setattr(hardware, "clearly_faster", lambda what, rule, other, act: rule)
    assert chosen(4)[0] == kept
