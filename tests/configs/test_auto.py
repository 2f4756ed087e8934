"""`auto`: numbers by a rule in a new run, and those it began with in one that goes on."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import dump, load
from trainer import rules
from trainer.config import Rates

from .helpers import errors

BARE = """\
run: {name: x, dir: DIR}
data: {sources: {a: {kind: text, files: [f.txt]}}, tokenizer: char}
model: {dim: 512, tie: false}
train: {tokens: 1M}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(BARE.replace("DIR", str(tmp_path)))
    return tmp_path / "a.yaml"


def test_a_config_of_size_and_tokens_gets_the_rule(path: Path) -> None:
    config = load(path)
    assert config.optim.rates == rules.rates("muon", 512, False, 128) == Rates(0.04, 0.1, 0.0075, 0.01)
    assert config.train.batch_tokens == rules.batch_tokens(256, 1_000_000, None) == 1536  # 7.3 * 198.6, in rows of 256
    adamw = load(path, ["optim.name=adamw", "model.tie=true", "model.dim=64"]).optim.rates
    assert adamw == Rates(matrix=0.006, embed=0.03, head=0.03, vector=0.01)
    more = [load(path, [f"data.tokenizer={text}"]).optim.rates.embed for text in ("{train: {vocab_size: 1024}}",
            "{file: t.json}")]  # fmt: skip
    assert more == [0.2, 0.63]  # 0.1 times the cube root of 8 and 256


def test_what_is_given_is_kept_and_auto_takes_it_back(path: Path) -> None:
    given = ["optim.rates.embed=0.5", "train.batch_tokens=512"]
    config = load(path, given)
    assert config.optim.rates == Rates(0.04, 0.5, 0.0075, 0.01) and config.train.batch_tokens == 512
    assert load(path, [*given, "optim.rates=auto", "train.batch_tokens=auto"]) == load(path)
    assert load(path, [*given, "optim.rates.embed=auto"]).optim.rates == load(path).optim.rates


def test_a_dumped_config_has_no_auto_of_the_rule_left(path: Path, tmp_path: Path) -> None:
    config = load(path)
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(tmp_path / "dumped.yaml") == config
    assert "matrix: 0.04\n" in dump(config) and "batch_tokens: 1536\n" in dump(config)


def test_a_run_that_goes_on_keeps_what_it_began_with(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "x" / "config.yaml"
    run.parent.mkdir()
    assert load(path, go_on=True) == load(path)
    began = load(path, ["optim.rates.matrix=0.3"])
    run.write_text(dump(began))
    assert load(path, go_on=True) == load(path), "nothing was trained with it"
    (tmp_path / "x" / "checkpoints" / "step_00000005").mkdir(parents=True)
    longer = load(path, ["train.tokens=100M"], go_on=True)
    assert longer.train.batch_tokens == began.train.batch_tokens != load(path, ["train.tokens=100M"]).train.batch_tokens
    assert longer.optim.rates == began.optim.rates
    assert load(path, ["optim.rates.matrix=0.2"], go_on=True).optim.rates.matrix == 0.2
    assert load(path, ["train.tokens=100M"]).optim.rates.matrix == 0.04
    other = ["model.dim=256"]  # is refused later
    assert load(path, other, go_on=True) == load(path, other)
    for damaged in ("optim: {rates: {matrix: x}}", "{", "\x00"):
        run.write_text(damaged)
        assert load(path, go_on=True) == load(path)
    run.unlink()
    os.mkfifo(run)  # which would be waited for
    assert load(path, go_on=True) == load(path)


def test_a_wrong_word_is_told_what_would_do(tmp_path: Path) -> None:
    text = BARE.replace("DIR", "runs")
    assert errors(tmp_path / "a.yaml", text, "optim.rates.matrix=automatic", "train.batch_tokens=0") == [
        "command line: optim.rates.matrix=automatic: optim.rates.matrix: 'automatic' is not a number >= 0 or auto "
        "— did you mean 'auto'?",
        "command line: train.batch_tokens=0: train.batch_tokens: 0 is not an integer >= 1 or auto",
    ]
    assert errors(tmp_path / "a.yaml", text, "optim.cautious=true", "optim.name=adamw") == [
        "command line: optim.cautious=true: optim.cautious: adamw has no cautious decay; muon has"
    ]
    (told,) = errors(tmp_path / "a.yaml", text, "train.tokens=many")
    assert "train.tokens: 'many' is not a number of tokens" in told


@given(st.integers(1, 4096), st.integers(1, 10**13))
def test_a_batch_is_whole_rows_and_grows_with_the_run(context: int, tokens: int) -> None:
    batch = rules.batch_tokens(context, tokens, None)
    assert batch >= context and batch % context == 0
    assert rules.batch_tokens(context, 2 * tokens, None) >= batch


@given(st.integers(1, 10**6))
def test_steps_and_the_tokens_that_they_come_to_give_one_batch(steps: int) -> None:
    batch = rules.batch_tokens(1, None, steps)
    assert rules.batch_tokens(1, batch * steps, None) == pytest.approx(batch, rel=0.02, abs=1)
