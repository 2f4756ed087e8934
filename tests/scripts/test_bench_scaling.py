"""`python -m scripts.bench scaling` and `performance`: shapes, corpora of a size, tables, and the page of them all."""

import json
from pathlib import Path
from typing import Any

import pytest

from data import lookup
from scripts import bench
from scripts.benches import measuring, performance, scaling_corpus
from scripts.benches.scaling import AXES, MIDDLE, ONE, TWO, line, name_of
from scripts.benches.scaling_report import aims, axis, corpus_table, tables
from scripts.doctor import ROOT

MIB = 1 << 20


def trained(speed: float, above: int = 10) -> dict[str, Any]:
    return {"tokens_per_s": speed, "above": above * MIB, "precision": "bf16", "flops": 1000}


CORPUS = {"tokens": 500, "planned": 0.5, "opened": 0.25, "ordered": 2e-9, "loaded": 3e-8, "trained": 4e-6,
          "memory": 5 * MIB}  # fmt: skip


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", AXES)
def test_an_axis_goes_through_the_middle(name: str, quick: bool):
    shapes = list(line(name, quick).values())
    middle = [shape for shape in shapes if shape in line("rows" if name != "rows" else "vocab", quick).values()]
    assert len(middle) == 1 and (quick or middle == [MIDDLE])
    values = [getattr(shape, name) for shape in shapes]
    assert values == sorted(set(values)) and len(values) >= 2
    for shape in shapes:
        assert shape.dim % shape.heads == 0 and (quick or shape.dim // shape.heads == 64)


def test_a_corpus_of_a_size_is_a_whole_one(tmp_path: Path):
    folder = str(tmp_path / "corpus")
    made = scaling_corpus.make(folder, 200_000)
    prepared = lookup(scaling_corpus.data_config(folder), scaling_corpus.CONTEXT)
    assert prepared is not None
    prepared.store.verify(content=True)
    size = sum(shard.sizes["bin"] for shard in prepared.store.shards)
    documents = sum(shard.documents for shard in prepared.store.shards)
    assert 190_000 < size < 210_000 and size == 2 * (made["tokens"] + documents + len(prepared.store.shards))
    assert prepared.val.rows > 0 and prepared.train.targets > 80_000
    shape = {"layers": 1, "dim": 16, "heads": 1, "context": 256, "rows": 16, "vocab": 257}
    found = scaling_corpus.measure(folder, 0.01, shape)
    assert found["rows"] == prepared.train.rows
    assert all(0 < found[key] < 1 for key in ("ordered", "loaded", "trained")) and found["opened"] > 0


def test_tables_are_of_the_medians():
    small, big = (name_of(shape) for shape in list(line("rows", False).values())[:2])
    answers = {
        "shapes": {small: [trained(100.0), trained(300.0), trained(200.0)], big: [{"failed": "out of memory"}],
                   "GEMM": [{"bf16": 4e5}, {"bf16": 1e5}]},
        "ranks": {ONE: [trained(100.0)], TWO: [trained(90.0, 20)]},
        "corpus": {"1 MB": [CORPUS]},
    }  # fmt: skip
    report: dict[str, Any] = {"settings": {"quick": False}, "answers": answers}
    assert axis(report, "rows") == [(1, 200.0, 10 * MIB, 0.5)]
    assert axis(report, "dim") == []
    assert [(aim.wanted, aim.found, aim.met) for aim in aims(report)] == [(0.95, 0.9, False)]
    assert corpus_table(report)[1] == ("1 MB", "500", "0.50 s", "0.25 s", "2.0 ns", "30.0 ns", "4.00 us", "5")
    told = "\n".join(tables(report))
    assert f"failed  {big} (shapes): out of memory" in told and "2 ranks x 1 thread" in told


@pytest.fixture
def stub(monkeypatch) -> list[tuple[str, ...]]:
    asked: list[tuple[str, ...]] = []

    def ask(module: str, *words: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
        asked.append((module, *words, (environment or {}).get("OMP_NUM_THREADS", "")))
        what = json.loads(words[-1])
        if "part" in what:
            return {"tokens": 500, "planned": 0.5} if what["part"] == "make" else CORPUS
        return {"fp32": 1e5, "bf16": 4e5} if what["who"] == "peak" else trained(100.0)

    monkeypatch.setattr(measuring, "ask", ask)
    return asked


def test_every_part_is_measured_and_what_was_cut_off_goes_on(stub: list, tmp_path: Path, capsys):
    command = ["scaling", "--quick", "--out", str(tmp_path)]
    assert bench.main([*command, "--only", "ranks"]) == 0
    assert [(words[0], words[-1]) for words in stub] == [
        ("scripts.benches.train_ours", "2"), ("torch.distributed.run", "1")
    ]  # fmt: skip
    assert bench.main([*command, "--resume"]) == 0
    report = json.loads((tmp_path / "bench_scaling.json").read_text())
    assert {part: len(found) for part, found in report["answers"].items()} == {"ranks": 2, "shapes": 7, "corpus": 1}
    assert len(stub) == 2 + 7 + 2, "nothing twice"
    assert (tmp_path / "bench_scaling.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert "rows of a step" in out and "[1/1] corpus, 1 MB: done" in err


def test_the_page_has_every_report(tmp_path: Path, capsys):
    reports, out = tmp_path / "reports", tmp_path / "docs"
    assert bench.main(["performance", "--reports", str(reports), "--out", str(out)]) == 2
    assert "has no report; python -m scripts.bench train" in capsys.readouterr().err
    facts = {"command": "python -m scripts.bench scaling", "date": "2026-01-02", "told": "some CPU; load 0.1"}
    settings = {"quick": False}
    report: dict[str, Any] = {
        **facts,
        "settings": settings,
        "answers": {"corpus": {"1 MB": [CORPUS]}},
        "left_out": {"x": "left out  x"},
    }
    reports.mkdir()
    (reports / "bench_scaling.json").write_text(json.dumps(report))
    assert bench.main(["performance", "--reports", str(reports), "--out", str(out)]) == 0
    page = (out / "performance.md").read_text()
    assert "`python -m scripts.bench scaling` on 2026-01-02: some CPU; load 0.1." in page and "Left out: x" in page
    assert "30.0 ns" in page and "![Scaling](performance_scaling.png)" in page
    assert (out / "performance_scaling.png").is_file()
    assert json.loads((out / "performance.json").read_text()) == {"scaling": report}
    assert "missing  python -m scripts.bench generate" in capsys.readouterr().err
    git = {"environment": {"git": {"commit": "0123456789abcdef", "modified": False}}}
    (reports / "bench_scaling.json").write_text(json.dumps(report | git))
    assert bench.main(["performance", "--reports", str(reports), "--out", str(out)]) == 0
    page = (out / "performance.md").read_text()
    assert "`python -m scripts.bench scaling` at commit 0123456789ab on 2026-01-02: some CPU" in page
    (reports / "bench_scaling.json").write_text(json.dumps(report | {"finished": False}))
    assert bench.main(["performance", "--reports", str(reports), "--out", str(out)]) == 2
    assert "bench_scaling.json: cut off; the same command with --resume goes on" in capsys.readouterr().err
    settings["quick"] = True
    (reports / "bench_scaling.json").write_text(json.dumps(report))
    assert bench.main(["performance", "--reports", str(reports), "--out", str(out)]) == 2
    assert "measured with --quick" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["docs", "docs/compiled", "docs/zen5"])
def test_a_published_page_is_that_of_its_numbers(folder: str):
    text = (ROOT / folder / "performance.json").read_text()
    assert (ROOT / folder / "performance.md").read_text() == performance.page(json.loads(text), ROOT / folder)


def test_no_published_number_tells_a_place_of_some_machine():
    published = list(ROOT.glob("docs/**/*.json"))
    assert len(published) > 4
    assert not [path for path in published if '"/' in path.read_text()]
