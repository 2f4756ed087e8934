"""Losses in whole runs: both heads, moving coefficients over a resume, plugins, a teacher, and the detail."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import durable
import train
from configs import load
from data import Loader, prepare
from scripts import check_loss, evaluate, summary
from tests.conftest import Bench, exact, read_lines

SHORT = ("train.steps=12", "eval.every=6", "save.every=6", "track.every=3", "eval.max_tokens=2048",
         "eval.sample_tokens=0")  # fmt: skip
Run = Callable[..., int]


@pytest.fixture(scope="module")
def run(bench: Bench) -> Run:
    """Train in this process; returns the exit code."""

    def start(name: str, *overrides: str, config: str = "configs/tiny.yaml") -> int:
        return train.main(bench.arguments(name, *SHORT, *overrides, config=config)[1:])

    return start


def nll(bench: Bench, name: str) -> list[float]:
    return [row[key] for row in bench.rows(name) for key in ("train/nll", "val/nll") if key in row]


def test_both_heads_follow_one_curve(bench: Bench, run: Run):
    loss = "loss.base={smooth: {eps: 0.1}}"
    for fused in ("on", "off"):
        assert run(fused, loss, "loss.add=[z]", f"loss.fused={fused}", "loss.chunk=700") == 0
    assert nll(bench, "on") == pytest.approx(nll(bench, "off"), rel=1e-4)
    assert len(nll(bench, "on")) == 6


def test_moving_coefficients_go_on_exactly(bench: Bench, run: Run):
    moving = ("loss.base={smooth: {eps: {linear: [0.4, 0.0]}}}", "loss.ahead=[{cosine: [0.5, 0]}]")
    assert run("moving", *moving) == 0
    assert run("broken", *moving, "save.every=4", "train.steps=12") == 0
    checkpoints = durable.list_checkpoints(bench.runs / "broken")
    for path in (checkpoints[-1], bench.runs / "broken" / "status.json"):  # as if killed before the last save
        path.rename(bench.runs / f"gone-{path.name}")
    assert run("broken", *moving, "save.every=4") == 0
    by_step = [{r["step"]: r for r in exact(bench.rows(name))} for name in ("moving", "broken")]
    assert by_step[0][12]["train/loss"] == by_step[1][12]["train/loss"]
    assert by_step[0][12]["val/nll"] == by_step[1][12]["val/nll"]
    assert len({round(r["train/loss"] - r["train/nll"], 6) for r in bench.rows("moving") if "train/loss" in r}) == 4


def test_nll_is_comparable_between_losses(bench: Bench, run: Run):
    """At the first step every loss sees the same model: the same nll, whatever train/loss says."""
    first = []
    for i, loss in enumerate(("ce", "focal", "{base: ce, logits: [softcap], weights: [{position: {tokens: 8}}]}")):
        assert run(f"first-{i}", f"loss={loss}", "track.every=1", "train.steps=1") == 0
        first.append(bench.rows(f"first-{i}")[0])
    assert [row["train/nll"] for row in first] == pytest.approx([first[0]["train/nll"]] * 3, rel=1e-6)
    assert len({row["train/loss"] for row in first}) == 3


def test_weights_by_source_are_those_of_the_config(bench: Bench, run: Run):
    assert run("sourced", "loss={base: ce, weights: [{sources: {by: {stdlib: 0.5}}}]}", "train.steps=3") == 0
    row = bench.rows("sourced")[0]
    assert row["train/loss"] == pytest.approx(row["train/nll"] / 2, rel=1e-6)


PLUGIN = "def mine(lp, *, power=1.0):\n    return (-lp) ** power\n"


def test_a_loss_of_ones_own(bench: Bench, run: Run, tmp_path: Path, capsys):
    (tmp_path / "mine.py").write_text(PLUGIN)
    config = tmp_path / "own.yaml"
    config.write_text(
        f"extends: {Path('configs/tiny.yaml').resolve()}\nloss: {{base: {{'mine.py:mine': {{power: 1.5}}}}}}\n"
    )
    assert check_loss.main([str(config)]) == 0
    assert "Every check holds." in capsys.readouterr().out
    assert run("own", "train.steps=6", config=str(config)) == 0
    path = bench.runs / "own"
    (kept,) = (path / "files").iterdir()
    assert kept.read_text() == PLUGIN and kept.name.endswith("_mine.py")
    assert "term/mine" in "".join(bench.rows("own")[0])
    assert run("own", "train.steps=8", config=str(config)) == 0
    assert [line["key"] for line in read_lines(path / "changes.jsonl")] == ["train.steps"]

    # Another content under the same name is another loss: the run goes on, and both are on record.
    (tmp_path / "mine.py").write_text(PLUGIN.replace("(-lp) ** power", "-lp * power"))
    assert run("own", config=str(config)) == 0
    (change,) = (line for line in read_lines(path / "changes.jsonl") if line["key"] == "loss.base")
    assert f"files/{kept.name}:mine" in change["old"] and change["old"] != change["new"]
    assert len(list((path / "files").iterdir())) == 2

    # The run's directory alone holds its loss: it can be moved, scored and repeated without the file.
    (tmp_path / "mine.py").unlink()
    moved = path.rename(bench.runs / "moved")
    assert evaluate.main([str(moved)]) == 0 and summary.main([str(moved)]) == 0
    assert train.main([str(moved / "config.yaml"), "run.name=own-again", *SHORT]) == 0
    again = bench.runs / "own-again"
    assert [f.name for f in (again / "files").iterdir()][0] in [f.name for f in (moved / "files").iterdir()]


def test_a_table_that_a_loss_reads_is_kept_too(bench: Bench, run: Run, tmp_path: Path):
    np.save(tmp_path / "prior.npy", np.ones(257))
    assert run("tabled", f"loss.base={{smooth: {{prior: {tmp_path}/prior.npy}}}}", "train.steps=2") == 0
    (tmp_path / "prior.npy").unlink()
    assert train.main([str(bench.runs / "tabled" / "config.yaml"), "run.name=tabled-again"]) == 0
    assert exact(bench.rows("tabled")) == exact(bench.rows("tabled-again"))


@pytest.mark.parametrize(
    "source, told",
    [
        ("def mine(lp):\n    return lp.mean() - 2 * lp", "fails a check (no target depends on another"),
        ("def mine(lp, *, power=1.0):\n    return lp.detach()", "fails a check (no target depends on another"),
        ("import no_such_module\ndef mine(lp):\n    return -lp", "No module named 'no_such_module'"),
        ("def mine(lp, nothing):\n    return -lp", "mine reads nothing, which training does not have"),
        ("def mine(*lp):\n    return -lp", "*lp says neither"),
        ("def mine(lp:\n", "is not Python"),
        ("def other(lp):\n    return -lp", "has no function 'mine'"),
    ],
)
def test_a_wrong_loss_of_ones_own_is_bad_input(run: Run, tmp_path: Path, capsys, source: str, told: str):
    (tmp_path / "mine.py").write_text(source + "\n")
    assert run("wrong", f"loss.base={{'{tmp_path}/mine.py:mine': {{}}}}") == 2
    shown = capsys.readouterr().err
    assert told in shown and "Traceback" not in shown


def test_looking_at_a_config_runs_no_plugin(tmp_path: Path):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{PLUGIN}")
    load("configs/tiny.yaml", [f"loss.base={{'{tmp_path}/mine.py:mine': {{power: 2}}}}"])
    assert not (tmp_path / "ran").exists()


def test_a_teacher(bench: Bench, run: Run, capsys):
    assert run("teacher") == 0
    distill = "loss={base: {ce: {coef: 0.5}}, add: [{kl: {coef: 0.5, temperature: 2}}], teacher: "
    assert run("student", f"{distill}{bench.runs / 'teacher'}}}", "model.dim=32", "train.steps=6") == 0
    row = bench.rows("student")[-1]
    assert row["train/loss"] == pytest.approx(row["train/term/ce"] + row["train/term/kl"], rel=1e-6)
    assert row["train/term/ce"] == pytest.approx(row["train/nll"] / 2, rel=1e-6) and row["train/term/kl"] > 0
    # Another teacher under the same name is noticed, and scores do not need one.
    shutil.rmtree(bench.runs / "teacher")
    assert run("teacher", "train.steps=6") == 0
    assert run("student", f"{distill}{bench.runs / 'teacher'}}}", "model.dim=32") == 0
    assert read_lines(bench.runs / "student" / "changes.jsonl")[-1]["key"] == "loss.teacher's weights"
    aside = (bench.runs / "teacher").rename(bench.runs / "aside")
    assert evaluate.main([str(bench.runs / "student")]) == 0
    aside.rename(bench.runs / "teacher")
    for wrong, told in (
        (f"{distill}{bench.runs / 'absent'}}}", "no such run"),
        (f"loss={{base: ce, teacher: {bench.runs / 'teacher'}}}", "no term reads a teacher's logits"),
        ("loss=kl", "name a run"),
    ):
        assert run("refused", wrong) == 2
        assert told in capsys.readouterr().err
    longer = (f"{distill}{bench.runs / 'teacher'}}}", "model.context=128", "train.batch_tokens=2048")
    assert run("refused", *longer) == 2
    assert "has a context of 64, this run's 128" in capsys.readouterr().err
    other = (f"{distill}{bench.runs / 'teacher'}}}", "data.tokenizer={train: {vocab_size: 257}}")
    assert run("refused", *other) == 2
    assert "another tokenizer" in capsys.readouterr().err
    other = (other[0], "data.tokenizer={train: {vocab_size: 300}}")
    assert train.main([*bench.arguments("refused", *other)[1:], "data.dir=/nowhere", "--dry-run"]) == 2
    assert "predicts 257 ids, this run 300" in capsys.readouterr().err


@pytest.mark.parametrize(
    "loss, told",
    [
        ("soft", "soft reads soft_labels, which training does not have"),
        ("unlikelihood", "teaches nothing"),
        ("{base: {ce: {coef: 0}}}", "teaches nothing"),
        ("{base: confidence, ahead: [0.5]}", "no term reads lp"),
        ("{base: ce, weights: [{sources: {by: {web: 2}}}]}", "no source 'web'; there are: stdlib"),
        ("{base: {transition: {file: nowhere.npy}}}", "nowhere.npy cannot be read"),
        ("{base: {unlikelihood: {ids: [257]}}}", "257 is no id of a vocabulary of 257"),
    ],
)
def test_a_loss_that_training_cannot_feed_is_bad_input(run: Run, capsys, loss: str, told: str):
    assert run("unfed", f"loss={loss}") == 2
    assert told in capsys.readouterr().err


def test_targets_ahead_need_to_know_where_documents_end(run: Run, capsys):
    assert run("unmasked", "loss.ahead=[0.5]", "data.pack.document_mask=false") == 2
    assert "loss.ahead: needs data.pack.document_mask" in capsys.readouterr().err


def test_evaluate_shows_the_detail(bench: Bench, run: Run, tmp_path: Path, capsys):
    assert run("shown") == 0
    out = tmp_path / "out.json"
    assert evaluate.main([str(bench.runs / "shown"), "--detail", "--json", str(out)]) == 0
    text, result = capsys.readouterr().out, json.loads(out.read_text())
    means = result["detail"]["means"]
    assert means["nll"] == pytest.approx(result["nll"]) and means["accuracy"] == pytest.approx(result["accuracy"])
    assert means["accuracy"] < means["top5"] < 1 and 0 < means["ece"] < 1 and f"{means['ece']:.4f}" in text
    assert means["nll/decile_0"] > means["nll/decile_6"], "rare ids are harder"
    assert sum(row[2] for row in result["detail"]["reliability"]) == result["tokens"]
    worst = result["detail"]["worst"]
    assert len(worst) == 10 and worst[0]["nll"] == max(row["nll"] for row in worst) > means["nll"]
    assert all(repr(row["target"]) in text for row in worst)


def test_corpus_counts_are_those_of_the_training_targets(bench: Bench):
    config = load("configs/tiny.yaml", [f"data.dir={bench.corpora}"])
    data = prepare(config.data, config.model.context, progress=False)
    loader = Loader(data, batch_rows=data.train.rows, micro_rows=data.train.rows, seed=0)
    (step,) = loader.steps(0, 1)
    targets = np.concatenate([batch.targets.numpy().ravel() for batch in step.micro])
    assert np.array_equal(np.bincount(targets[targets >= 0], minlength=257), data.token_counts())
    assert data.token_counts().sum() == data.train.targets
