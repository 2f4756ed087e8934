"""Several formats and languages in one corpus: it trains, and validation is reported by each label."""

import csv
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from configs import load
from data import DataError, held_out_labels, lookup
from model import load_model
from scripts import evaluate, summary
from tests.conftest import read_lines
from tests.data.helpers import random_texts, write_files

LANGUAGES = ("de", "en", "fr")
Labels = dict[str, dict[str, str]]


def corpus(folder: Path) -> Labels:
    """One source of each format below `folder`; gives the labels of each text."""
    labels: Labels = {}
    texts = {
        kind: list(random_texts(24, seed, 60).values()) for seed, kind in enumerate(("text", "jsonl", "csv", "table"))
    }
    write_files(folder / "notes", {f"{i:02d}.txt": text for i, text in enumerate(texts["text"])})
    labels |= {text: {"language": "en", "domain": "notes"} for text in texts["text"]}
    rows = defaultdict(list)
    for kind in ("jsonl", "csv", "table"):
        for i, text in enumerate(texts[kind]):
            rows[kind].append({"body": text, "lang": LANGUAGES[i % 3], "site": f"site/{i % 2}", "page": f"{kind}{i}"})
            labels[text] = {"language": LANGUAGES[i % 3], "domain": f"site/{i % 2}"}
    del rows["jsonl"][5]["site"]  # a document without the label
    del labels[texts["jsonl"][5]]["domain"]
    (folder / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows["jsonl"]))
    with open(folder / "sheet.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["body", "lang", "site", "page"])
        writer.writeheader()
        writer.writerows(rows["csv"])
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(rows["table"]), folder / "table.parquet")
    return labels


CONFIG = """
extends: CONFIGS/tiny.yaml
run: {name: mixed, dir: HERE/runs}
data:
  dir: HERE/corpora
  sources:
    notes: {kind: text, files: ["HERE/notes/*.txt"], constants: {language: en, domain: notes}}
    web: {kind: jsonl, files: [HERE/web.jsonl], text: body, labels: {language: lang, domain: site, page: page}}
    sheet: {kind: csv, files: [HERE/sheet.csv], text: body, labels: {language: lang, domain: site, page: page}}
    table: {kind: parquet, files: [HERE/table.parquet], text: body, labels: {language: lang, domain: site, page: page}}
  split: {val: 0.4}
model: {layers: 1, dim: 32}
train: {steps: 4, batch_tokens: 512}
eval: {every: 4, sample_tokens: 0}
save: {every: 4}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Labels]:
    """The run directory of a short run, and the labels of each text."""
    folder = tmp_path_factory.mktemp("mixed")
    labels = corpus(folder)
    recipes = Path(__file__).resolve().parent.parent / "configs"
    (folder / "mixed.yaml").write_text(CONFIG.replace("HERE", str(folder)).replace("CONFIGS", str(recipes)))
    assert train.main([str(folder / "mixed.yaml")]) == 0
    return folder / "runs" / "mixed", labels


def by_hand(run: Path, labels: Labels) -> dict[str, tuple[float, int]]:
    """`label=value` -> (nll, targets), of each piece of a held-out document fed to the model alone."""
    config = load(run / "config.yaml")
    data = lookup(config.data, config.model.context)
    assert data is not None
    model, offsets = load_model(run).eval(), data.store.column("offsets")
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for shard, start, length in zip(
        *(x.tolist() for x in (data.val.shard, data.val.start, data.val.length)), strict=True
    ):
        tokens = torch.from_numpy(data.store.tokens(shard).astype(np.int64))
        ids = tokens[start : start + length + 1]
        with torch.no_grad():
            nll = F.cross_entropy(model(ids[None, :-1])[0].double(), ids[1:], reduction="sum").item()
        place = int(np.searchsorted(offsets[shard], start, side="right")) - 1
        first, last = offsets[shard][place : place + 2]
        text = data.tokenizer.decode(tokens[first + 1 : last].tolist())
        for group in ("", *(f"{label}={value}" for label, value in labels[text].items())):
            sums[group][0] += nll
            sums[group][1] += length
    return {group: (nll / count, int(count)) for group, (nll, count) in sums.items()}


def test_validation_is_reported_by_each_label(trained):
    run, labels = trained
    row, want = read_lines(run / "metrics.jsonl")[-1], by_hand(run, labels)
    reported = {key.removeprefix("val/").rpartition("/")[0] for key in row if key.startswith("val/") and "=" in key}
    assert reported == {name.replace("/", "_") for name in want if name}
    for name, (nll, _) in want.items():
        prefix = f"val/{name.replace('/', '_')}/" if name else "val/"
        assert row[f"{prefix}nll"] == pytest.approx(nll, rel=1e-5)
        assert row[f"{prefix}ppl"] == pytest.approx(math.exp(nll), rel=1e-4)
    assert {"language=de", "language=en", "language=fr", "domain=notes", "domain=site_0"} <= reported
    languages = [count for name, (_, count) in want.items() if name.startswith("language=")]
    assert sum(languages) == want[""][1]  # each document has one
    assert {f"val/{source}/nll" for source in ("notes", "web", "sheet", "table")} <= row.keys()
    told = summary.describe(run, load(run / "config.yaml"))
    assert "  language=de" in told and told.index("  web") < told.index("  domain=notes")


def test_evaluate_by_label(trained, tmp_path, capsys):
    run, labels = trained
    want = by_hand(run, labels)
    assert evaluate.main([str(run), "--by", "domain", "--json", str(tmp_path / "one.json")]) == 0
    one = json.loads((tmp_path / "one.json").read_text())
    assert set(one["labels"]) == {"notes", "site/0", "site/1"}
    for value, row in one["labels"].items():
        assert (row["nll"], row["tokens"]) == (
            pytest.approx(want[f"domain={value}"][0], rel=1e-5),
            want[f"domain={value}"][1],
        )
    assert one["tokens"] == want[""][1]
    assert evaluate.main([str(run), "--by", "domain", "--by", "language", "--json", str(tmp_path / "two.json")]) == 0
    two = json.loads((tmp_path / "two.json").read_text())
    assert set(two["labels"]) == {name for name in want if name}
    assert evaluate.main([str(run), "--by", "absent"]) == 2
    assert "there are domain, language, page" in capsys.readouterr().err


def test_evaluate_takes_other_text(trained, tmp_path, capsys):
    """The run's own held-out text, given as a file, has the run's own score; duplicates count."""
    run, labels = trained
    config = load(run / "config.yaml")
    data = lookup(config.data, config.model.context)
    assert data is not None
    texts = [raw.decode() for raw in data.val_documents()]
    topics = ("a", "b", "\x1b[31mc\n")
    known = [{"text": text, "lang": labels[text]["language"], "topic": topics[i % 3]} for i, text in enumerate(texts)]
    file = tmp_path / "other.jsonl"
    before = sorted(Path(config.data.dir).iterdir())
    scores = {}
    for copies in (1, 2):
        file.write_text("".join(json.dumps({**row, "body": row["text"]}) + "\n" for row in known * copies))
        assert evaluate.main([str(run), "--data", str(file), "--by", "topic", "--json", str(tmp_path / "o.json")]) == 0
        scores[copies] = json.loads((tmp_path / "o.json").read_text())
    last = read_lines(run / "metrics.jsonl")[-1]
    assert scores[1]["nll"] == pytest.approx(last["val/nll"], rel=1e-6)
    assert scores[2]["tokens"] == 2 * scores[1]["tokens"] and scores[2]["bpb"] == pytest.approx(scores[1]["bpb"])
    assert set(scores[1]["labels"]) == {"a", "b", "\x1b[31mc\n"}
    told = capsys.readouterr().out
    assert "\n\\x1b[31mc\\n " in told and "\x1b" not in told  # a terminal is told what a label is, not what to do
    assert sum(row["tokens"] for row in scores[1]["labels"].values()) == scores[1]["tokens"]
    assert sorted(Path(config.data.dir).iterdir()) == before  # nothing was left behind
    capsys.readouterr()
    assert evaluate.main([str(run), "--data", str(tmp_path / "none.jsonl")]) == 2
    assert evaluate.main([str(run), "--data", str(file), "--like", "absent"]) == 2
    assert "no source 'absent' with fields; there are " in capsys.readouterr().err
    assert evaluate.main([str(run), "--data", str(file), "--by", "absent"]) == 2
    assert "absent" in capsys.readouterr().err
    file.write_text('{"body": " "}\n')
    assert evaluate.main([str(run), "--data", str(file)]) == 2


def test_which_labels_are_reported(trained):
    run, _ = trained
    config = load(run / "config.yaml")
    data = lookup(config.data, config.model.context)
    assert data is not None
    assert list(held_out_labels(data, None)) == ["language", "domain"]  # over 20 pages
    assert len(held_out_labels(data, ("page",))["page"][1]) > 20
    assert held_out_labels(data, ()) == {}
    assert list(held_out_labels(data, ("domain", "domain"))) == ["domain"]
    with pytest.raises(DataError, match="there are domain, language, page"):
        held_out_labels(data, ("languages",))


def test_an_unknown_label_is_refused_before_training(trained, capsys):
    run, _ = trained
    capsys.readouterr()
    assert train.main([str(run.parent.parent / "mixed.yaml"), "run.name=other", "eval.by=[topic]"]) == 2
    told = capsys.readouterr().err
    assert "eval.by: no document has a label 'topic'; there are domain, language, page" in told
    assert not (run.parent / "other" / "metrics.jsonl").exists()
