"""`python -m scripts.bench loss`: every number is there, a wrong contestant is shown as wrong, peaks are peaks."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from scripts import bench
from scripts.benches import loss, loss_contest, loss_report
from scripts.benches.loss_contest import CONTESTANTS, Case, check, entrants, request
from scripts.doctor import ROOT

TINY = [
    "--rows",
    "40",
    "--width",
    "8",
    "--vocab",
    "20",
    "33",
    "--repeats",
    "2",
    "--memory-rows",
    "48",
    "--device",
    "cpu",
]
CASE = Case(rows=40, width=8, vocab=20, dtype="fp32", eps=0.0, device="cpu")
HAVE = [name for name in CONTESTANTS if name != "liger"]


@pytest.fixture
def in_process(monkeypatch, capsys) -> None:
    """Workers that cost no new process; what they print is their answer."""

    def ask(asked: str) -> dict[str, Any]:
        words = json.loads(asked)
        case = Case(**words["case"])
        if "memory" in words:
            return {"bytes": loss_contest.peak_bytes(case, words["memory"])}
        return loss_contest.time_all(case, words["time"], words["repeats"])

    monkeypatch.setattr(loss, "ask", ask)


def test_every_number_is_there(in_process, tmp_path: Path, capsys):
    assert bench.main(["loss", *TINY, "--out", str(tmp_path / "new" / "place")]) == 0
    report = json.loads((tmp_path / "new" / "place" / "bench_loss.json").read_text())
    shapes = {(row["dtype"], row["vocab"], row["eps"]) for row in report["time"]}
    assert shapes == {(dtype, vocab, eps) for dtype in ("fp32", "bf16") for vocab in (20, 33) for eps in (0.0, 0.1)}
    assert len(report["time"]) == 16 and len(report["memory"]) == 8
    for row in report["time"]:
        assert [*row["ratios"]] == HAVE and row["ratios"]["plain"] == 1
        assert all(len(row["seconds"][row["best"][name]]) == 2 for name in HAVE)
        assert all(0 < row["values"][name] < 60 and math.isfinite(row["ratios"][name]) for name in HAVE)
    for row in report["memory"]:
        assert [*row["ratios"]] == HAVE and all(row["values"][name] >= 0 for name in HAVE)
    assert all(found["wrong"] is None for group in report["checks"] for found in group["entrants"].values())
    assert (tmp_path / "new" / "place" / "bench_loss.png").read_bytes().startswith(b"\x89PNG")
    out, err = capsys.readouterr()
    assert f"torch {torch.__version__}" in out.splitlines()[0] and "thread" in out.splitlines()[0]
    assert all(name in out for name in HAVE) and out.count("default") >= 8 and out.count("kept") >= 8
    assert "wrong" not in out and "failed" not in out and "[24/24] memory, bf16, V 33, eps 0.1" in err


def test_a_wrong_contestant_is_shown_and_not_measured(in_process, tmp_path: Path, monkeypatch, capsys):
    def crooked(case: Case) -> dict[str, Callable]:
        def loss(hidden, weight, targets):  # the right loss with a gradient that is off by a hundredth
            right = CONTESTANTS["plain"](case)[""](hidden, weight, targets)
            return right + 0.01 * (right - right.detach())

        return {"": loss}

    def broken(case: Case) -> dict[str, Callable]:
        return {"": lambda hidden, weight, targets: hidden @ targets}

    monkeypatch.setitem(CONTESTANTS, "crooked", crooked)
    monkeypatch.setitem(CONTESTANTS, "broken", broken)
    argv = [*TINY, "--dtype", "fp32", "--eps", "0", "--no-memory", "--out", str(tmp_path)]
    assert loss.main(argv) == 0
    out = capsys.readouterr().out
    assert "wrong   crooked (fp32, eps 0): hidden gradient off by 1.0e-02, weight gradient off by 1.0e-02" in out
    assert "wrong   broken (fp32, eps 0): RuntimeError: " in out
    report = json.loads((tmp_path / "bench_loss.json").read_text())
    assert report["memory"] == [] and len(report["time"]) == 4
    for row in report["time"]:
        assert row["ratios"]["crooked"] == row["ratios"]["broken"] == "wrong"
        assert "crooked" not in row["values"] and "crooked/" not in row["seconds"] and "plain" in row["values"]


def test_a_worker_that_dies_is_shown(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(loss, "ask", lambda asked: {"failed": "killed, perhaps out of memory"})
    argv = [*TINY, "--dtype", "bf16", "--eps", "0.1", "--out", str(tmp_path)]
    assert loss.main(argv) == 0
    assert "failed  plain (bf16, V 33, eps 0.1): killed" in capsys.readouterr().out
    assert (tmp_path / "bench_loss.png").is_file()


def test_a_worker_is_a_process_of_its_own():
    answer = loss.ask(request(CASE, 1, time=["plain/", "ours fused/"], repeats=2, keep=True))
    assert set(answer["seconds"]) == set(answer["pilot"]) == {"plain/", "ours fused/"}
    assert "KeyError" in loss.ask(request(CASE, 1, memory="nobody/"))["failed"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are reset by Linux")
def test_an_earlier_peak_hides_nothing_and_adds_nothing():
    # In a process of its own: another test may have told the allocator to keep what is freed.
    code = """
import torch
from scripts.benches.loss_contest import Case, peak_bytes
case = Case(rows=2048, width=16, vocab=4000, dtype="fp32", eps=0.0, device="cpu")
torch.ones(20 * case.rows * case.vocab)  # larger than anything that follows, and gone
print(peak_bytes(case, "plain/") / (4 * case.rows * case.vocab), peak_bytes(case, "ours fused/"))
print(peak_bytes(case, "plain/"))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    logits, fused, whole = map(float, done.stdout.split())
    assert 2 < logits < 4  # log-probabilities beside the logits or their gradient
    assert fused < 0.7 * whole


def test_older_torch_has_no_linear_cross_entropy(monkeypatch):
    assert any(name.startswith("linear_cross_entropy/") for name in entrants(CASE)) == hasattr(
        F, "linear_cross_entropy"
    )
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    assert set(entrants(CASE)) == {"plain/", "ours fused/", "ours reference/"} == set(check(CASE))


def test_the_aim_is_told_where_it_was_set():
    row = {"device": "cpu", "rows": 2048, "width": 512, "vocab": 50304, "dtype": "bf16", "eps": 0.1}
    assert loss_report.aim(row, "time") == "0.5x" and loss_report.aim(row, "memory") == ""
    assert loss_report.aim({**row, "rows": 8192}, "memory") == "0.125x"
    assert loss_report.aim({**row, "device": "cuda"}, "time") == ""


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--vocab", "0"], "--vocab: '0' is not an integer >= 1"),
        (["--repeats", "0"], "--repeats"),
        (["--rows", "-3"], "--rows"),
        (["--dtype", "fp8"], "'fp8'"),
        (["--eps", "1"], "[0, 1)"),
        (["--eps", "nan"], "[0, 1)"),
        (["--what"], "--what"),
        (["--device", "cuda"], "--device cuda"),
    ],
)
def test_bad_input_is_one_line(argv: list[str], told: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main(["loss", "--out", str(tmp_path), *argv]) == 2
    out, err = capsys.readouterr()
    assert told in err and err.count("\n") == 1 and not out and not list(tmp_path.iterdir())


def test_bench_lists_what_there_is(tmp_path: Path, capsys):
    assert bench.main([]) == bench.main(["--help"]) == 0
    assert capsys.readouterr().out.count("  loss ") == 2
    assert bench.main(["los"]) == 2
    assert capsys.readouterr().err == f"no benchmark 'los'; there are: {', '.join(bench.BENCHES)}\n"
    (tmp_path / "file").write_text("")
    assert bench.main(["loss", "--out", str(tmp_path / "file")]) == 2
