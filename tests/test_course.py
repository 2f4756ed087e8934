"""Runs whose data changes on the way: stopped, gone on with in other batches, and made longer."""

import base64
import itertools
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import durable
import train
from configs import load
from configs.auto import FEW
from course import State, order_in_run, starts_in_run
from data import Loader, Step, lookup, prepare
from data.tokens.vocabulary import byte_tokenizer
from scripts.plan import assumed_vocabulary, expected_rows
from trainer.rows import read_metrics
from trainer.signals import StopRequest

RECIPE = """
run: {{name: x, dir: {folder}/runs, device: cpu}}
data:
  dir: {folder}/corpora
  sources:
    a: {{kind: jsonl, files: ['{folder}/a.jsonl']}}
    b: {{kind: jsonl, files: ['{folder}/b.jsonl']}}
  tokenizer: byte
  split: {{val: 0.2}}
  phases: [{{at: 0.5, mixture: {{a: 0.9, b: 0.1}}}}, {{at: 400, mixture: {{a: 0, b: 1}}}}]
  curriculum: {{by: chars, over: 0.4}}
model: {{preset: qwen3, layers: 1, dim: 16, heads: 2, context: 32}}
schedule: {{warmup: 1}}
train: {{steps: 16, batch_tokens: 512, precision: fp32, compile: false}}
eval: {{every: 1000, max_tokens: 64, sample_tokens: 0}}
save: {{every: 1000}}
track: {{every: 4}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    rng = random.Random(0)
    for name in "ab":
        texts = ["".join(rng.choices("abcdef \n", k=rng.randint(5, 200))) for _ in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "x.yaml").write_text(RECIPE.format(folder=tmp_path))
    return str(tmp_path / "x.yaml")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that all runs of a test train on."""
    rows: list[int] = []
    steps = Loader.steps

    def spy(self: Loader, start: int, stop: int) -> Iterator[Step]:
        for step in steps(self, start, stop):
            rows.extend(step.row_ids.tolist())
            yield step

    monkeypatch.setattr(Loader, "steps", spy)
    monkeypatch.setattr("scripts.summary.conclude", lambda *_: "")  # pictures take longer than these runs
    return rows


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The next run is asked to stop once so many steps are done; it looks after each one."""
    count = itertools.count(1)
    monkeypatch.setattr(StopRequest, "__bool__", lambda self: next(count) == steps)


def saved(recipe: str) -> State:
    return State.read(durable.find_checkpoint(Path(load(recipe).run.dir) / "x"))


def test_a_run_goes_on_in_other_batches_and_longer(
    recipe: str, seen: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other batches change no row, a longer run none that has been seen, and no row is lost or comes again."""
    assert train.main([recipe, "run.name=whole"]) == 0
    whole, printed = [*seen], capsys.readouterr().err
    assert "phases: after step 8: a 0.9, b 0.1; after step 400: a 0, b 1" in printed
    assert "curriculum: by chars; all rows after step 6" in printed and "epochs: a " in printed
    seen.clear()
    stop_after(monkeypatch, 6)
    assert train.main([recipe]) == 75
    assert saved(recipe).row == len(seen) == 96
    assert train.main([recipe, "train.batch_tokens=1024", "train.steps=11"]) == 0
    assert seen == whole and saved(recipe).row == 256
    assert saved(recipe).auto["starts"]["phases"][0] == 128
    assert train.main([recipe, "train.batch_tokens=1024", "train.steps=21"]) == 0
    assert seen[:256] == whole and len(seen) == saved(recipe).row == 576
    starts = saved(recipe).auto["starts"]
    assert starts["phases"][0] == 128 and starts["openings"][-1] == 103  # of 256 rows, not of 576
    assert "phases: begun: a 0.9, b 0.1; after step 400: a 0, b 1" in capsys.readouterr().err
    config = load(recipe, ["train.batch_tokens=1024", "train.steps=21"])
    data = lookup(config.data, 32)
    assert data
    order = order_in_run(config, data, saved(recipe), 21)
    assert seen == order.row_ids(np.arange(576)).tolist()
    triples = np.stack(order(np.arange(576)), 1)
    assert len(np.unique(triples, axis=0)) == 576


def test_other_difficulties_of_the_same_texts_are_another_corpus(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would be another order, in which rows already seen come again."""
    given = [recipe, "data.curriculum.by=hard", *(f"data.sources.{name}.labels={{hard: hard}}" for name in "ab")]
    for name in "ab":
        path = tmp_path / f"{name}.jsonl"
        rows = [json.loads(line) | {"hard": i} for i, line in enumerate(path.read_text().splitlines())]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stop_after(monkeypatch, 6)
    assert train.main(given) == 75
    path.write_text("".join(json.dumps(row | {"hard": -row["hard"]}) + "\n" for row in rows))
    shutil.rmtree(tmp_path / "corpora")
    assert train.main(given) == 2
    assert "was trained on another corpus" in capsys.readouterr().err


def test_too_many_epochs_are_refused_at_once(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    limit = "data.max_epochs=0.1"
    assert train.main([recipe, limit, "--dry-run"]) == 0  # from sizes alone nothing is refused
    assert "(data.max_epochs 0.1) (from the size of the sources)" in capsys.readouterr().out
    for flags in ([], ["--dry-run"]):
        assert train.main([recipe, limit, *flags]) == 2
        lines = capsys.readouterr().err.splitlines()[-2:]
        assert [line.partition(" times")[0].partition("would")[0] for line in lines] == [
            "data.max_epochs: source 'a' ", "data.max_epochs: source 'b' "
        ]  # fmt: skip
        assert all("what would fit: train.steps of at most " in line for line in lines)
    fitting = min(int(line.partition("at most ")[2].partition(",")[0]) for line in lines)
    assert train.main([recipe, limit, f"train.steps={fitting}", "--dry-run"]) == 0
    assert train.main([recipe, limit, f"train.steps={fitting + 1}", "--dry-run"]) == 2


def test_lengths_are_rows_of_the_run(recipe: str) -> None:
    """A fraction and tokens do not depend on the size of a step, and what has begun depends on nothing."""
    given = ["data.phases=[{at: 0.3, mixture: {a: 1, b: 1}}, {at: 6000 tokens, mixture: {a: 1, b: 2}}]",
             "data.curriculum.over=1.0"]  # fmt: skip
    starts = starts_in_run(load(recipe, given), State(), 16)
    assert starts == {"phases": [77, 188], "openings": [42, 85, 128, 170, 213, 256]}
    larger = load(recipe, [*given, "train.batch_tokens=1024"])
    assert starts_in_run(larger, State(step=2, row=32), 9) == starts
    longer = starts_in_run(larger, State(step=8, row=128, auto={"starts": starts}), 100)
    assert longer == {"phases": [77, 188], "openings": [42, 85, 1536, 2048, 2560, 3072]}
    steps = load(recipe, ["data.phases=[{at: 10, mixture: {a: 1, b: 1}}]", "data.curriculum=null"])
    assert starts_in_run(steps, State(step=4, row=20), 16) == {"phases": [20 + 6 * 16]}


def test_what_a_dry_run_assumes_of_a_corpus_that_is_not_prepared(recipe: str, tmp_path: Path) -> None:
    """Held-out sources are not trained on, and `split.val` says nothing beside them."""
    size = {name: (tmp_path / f"{name}.jsonl").stat().st_size for name in "ab"}
    rows = {name: int(size[name] * 0.8) // 32 for name in "ab"}
    assert expected_rows(load(recipe), None) == (sum(rows.values()), rows)
    held_out = f"data.split.sources={{v: {{kind: jsonl, files: ['{tmp_path}/b.jsonl']}}}}"
    rows = {name: size[name] // 32 for name in "ab"}
    assert expected_rows(load(recipe, [held_out]), None) == (sum(rows.values()), rows)


def test_the_vocabulary_that_a_dry_run_assumes_is_the_one_that_is_made(recipe: str, tmp_path: Path) -> None:
    ranks = [bytes([i]) for i in range(256)] + [b"ab", b"cd"]
    lines = (base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(ranks))
    (tmp_path / "v.tiktoken").write_bytes(b"".join(lines))
    own = str(tmp_path / "own.json")
    (tmp_path / "made").mkdir()
    byte_tokenizer(["<|fim_prefix|>"]).save(tmp_path / "made")
    (tmp_path / "made" / "tokenizer.json").rename(own)
    fim = "data.pack={fim: {rate: 0.5}}"
    for tokenizer in ("byte", f"{{tiktoken: {tmp_path}/v.tiktoken}}", f"{{file: {own}}}", "{train: {vocab_size: 270}}"):
        for more in ([], [fim]):
            config = load(recipe, [f"data.tokenizer={tokenizer}", *more])
            made = prepare(config.data, 32, progress=False).tokenizer
            assert assumed_vocabulary(config) == made.vocab_size, (tokenizer, more)
    characters = load(recipe, ["data.tokenizer=char", fim])
    assert assumed_vocabulary(characters) == FEW + assumed_vocabulary(load(recipe, ["data.tokenizer=byte", fim])) - 257


def test_a_validation_without_targets_is_refused_before_training(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most rows of these conversations are questions, of which nothing is learned."""
    asked = [[("user", f"{i} " + "long question " * 20), ("assistant", f"ok{i}")] for i in range(30)]
    rows = [{"m": [{"role": role, "content": text} for role, text in turns]} for turns in asked]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"{{kind: jsonl, files: ['{tmp_path}/chat.jsonl'], messages: m}}"
    given = [recipe, f"data.sources={{c: {source}}}", "data.phases=[]", "data.curriculum=null", "train.steps=2"]
    assert train.main([*given, "eval.max_tokens=32"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("eval.max_tokens: the first 32 held-out tokens hold no target; at least ")
    least = told.split()[-1]
    assert train.main([*given, f"eval.max_tokens={int(least) - 32}"]) == 2
    assert train.main([*given, f"eval.max_tokens={least}"]) == 0


def test_weights_scale_the_loss_and_nothing_else(recipe: str, tmp_path: Path) -> None:
    """Every document counts twice: so does the loss, and neither the nll nor what is held out."""
    for name in "ab":
        rows = [json.loads(line) | {"w": 2} for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [recipe, "train.steps=4", "eval.every=4", "track.every=1", "train.micro_rows=5"]
    weighted = [f"data.sources.{name}.weight=w" for name in "ab"]
    assert train.main([*given, "run.name=plain"]) == 0 and train.main([*given, *weighted]) == 0
    plain, twice = (read_metrics(tmp_path / "runs" / name) for name in ("plain", "x"))
    assert plain[0]["train/loss"] == pytest.approx(plain[0]["train/nll"])
    assert twice[0]["train/nll"] == plain[0]["train/nll"] and twice[0]["tokens"] == plain[0]["tokens"]
    assert all(row["train/loss"] == pytest.approx(2 * row["train/nll"]) for row in twice)
    assert twice[0]["train/grad_norm"] == pytest.approx(2 * plain[0]["train/grad_norm"], rel=1e-4)
    assert twice[-1]["val/nll"] < 6
