"""`python -m scripts.bench data`: every number is there, and an encoder that gives other tokens gets no number."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import bench
from scripts.benches import data, data_contest
from scripts.benches.data_contest import ENCODERS, OURS, RAW, RECIPE, Place
from scripts.benches.data_report import speeds, tables

QUICK = ["--megabytes", "1", "--repeats", "2", "--documents", "300", "--only", "ours, 1", "alone", "fast"]


@pytest.fixture
def in_process(monkeypatch) -> None:
    """A small corpus, and workers that cost no new process; what they print is their answer."""

    def ask(words: str) -> dict[str, Any]:
        asked = json.loads(words)
        if not asked["place"]:
            answer = data_contest.PARTS[asked["part"]](**asked["options"])
        elif "fast" in asked["part"]:
            answer = {"seconds": 0.001, "tokens": 17}
        else:
            answer = ENCODERS[asked["part"]](Place(**asked["place"]))
        return answer | {"peak": 1 << 20}

    monkeypatch.setattr(data, "ask", ask)
    monkeypatch.setattr(data, "RECIPE", "configs/tiny.yaml")
    monkeypatch.setattr(data, "LOADED", 50_000)
    monkeypatch.setattr(data, "PACKED", 2000)


def test_every_number_is_there(in_process, tmp_path: Path, capsys):
    assert bench.main(["data", *QUICK, "--out", str(tmp_path / "new")]) == 0
    report = json.loads((tmp_path / "new" / "bench_data.json").read_text())
    assert (tmp_path / "new" / "bench_data.png").stat().st_size > 10_000
    told = capsys.readouterr().out
    assert [*speeds(report)] == ["ours, 1 process", RAW]
    assert "wrong   tokenizers encode_batch_fast: 17 tokens" in told
    assert all(len(answers) == 2 for answers in report["encode"].values())
    assert report["corpus"]["bytes"] > 200_000 and report["startup"]["documents"] == 300
    packing = report["packing"]["modes"]
    assert list(packing) == ["bfd", "truncate", "concat", "pad"]
    assert (
        packing["bfd"]["lost"] == packing["concat"]["lost"] == packing["pad"]["lost"] == 0 < packing["truncate"]["lost"]
    )
    for words in ("loading / the quickstart's consumption", "start-up with 300 documents", "32 x 2048"):
        assert words in told


def test_aims_are_those_of_the_medians():
    def answers(*seconds: float) -> list[dict[str, Any]]:
        return [{"seconds": each, "tokens": 5, "peak": None} for each in seconds]

    report: dict[str, Any] = {
        "settings": {"repeats": 3}, "corpus": {"documents": 2, "bytes": 8_000_000}, "consumption": 10.0,
        "encode": {OURS: answers(9.0, 1.0, 1.0), RAW: answers(1.5, 1.5, 1.5), RECIPE: answers(6.0, 2.0, 6.0)},
        "packing": {"modes": {}}, "loading": {"a": {"tokens": 400, "seconds": 1.0, "rows": 1, "context": 1}},
        "startup": {"seconds": 2.0, "opened": 1.0, "documents": 7, "peak": None},
        "many": {"documents": 7, "seconds": 1.0, "peak": None}, "preparing": {"seconds": 1.0, "peak": None},
    }  # fmt: skip
    told = "\n".join(" ".join(line.split()) for line in tables(report))
    assert "the datasets.map recipe >= 5 6.00 met" in told
    assert "2 x tiktoken alone >= 0.8 0.75 missed" in told
    assert "the quickstart's consumption >= 50 40.00 missed" in told
    assert "start-up with 7 documents, s <= 1 2.00 missed" in told
    assert f"{OURS} 8.00 5 - 800%" in told


def test_who_cannot_be_measured_is_named(tmp_path: Path, capsys):
    assert bench.main(["data", "--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "--only nothing: there are ours" in capsys.readouterr().err
    assert "failed" in data.ask(data_contest.request("absent", Place("", "", "")))
