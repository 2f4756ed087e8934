"""Runs whose data changes on the way: stopped, gone on with in other batches, and made longer."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import durable
import train
from configs import load
from course import State, order_in_run, starts_in_run
from data import Loader, Step, lookup
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
