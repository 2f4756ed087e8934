"""Whole runs, started as a user starts them: the main job, interruptions, many processes, and bad input."""

import contextlib
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

import durable
from scripts.faults.runs import SHORT
from tests.conftest import Bench


@pytest.fixture(scope="module")
def whole(bench: Bench) -> str:
    """An uninterrupted run in fp32."""
    bench.train("whole", *SHORT)
    return "whole"


def test_a_run_leaves_what_it_promises(bench: Bench, whole: str):
    path = bench.runs / whole
    for name in ("config.yaml", "env.json", "status.json", "metrics.jsonl", "curves.png", "samples.jsonl",
                 "tokenizer.json", "checkpoints/best", "eval/final.json"):  # fmt: skip
        assert (path / name).is_file(), name
    assert bench.status(whole)["state"] == "done" and bench.status(whole)["exit"] == 0
    rows = bench.rows(whole)
    assert [row["step"] for row in rows] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    assert {"train/loss", "train/nll", "train/ppl", "train/grad_norm", "train/lr", "train/tokens_per_s", "train/mfu",
            "train/memory", "train/data_wait", "train/skipped"} <= rows[0].keys()  # fmt: skip
    assert {"val/nll", "val/ppl", "val/bpb", "val/accuracy", "val/stdlib/nll"} <= rows[-1].keys()
    assert rows[0]["train/nll"] > rows[-1]["train/nll"]
    assert rows[-1]["train/ppl"] == pytest.approx(math.exp(rows[-1]["train/nll"]))
    assert rows[-1]["val/bpb"] < math.log2(257)
    assert [s["step"] for s in map(json.loads, (path / "samples.jsonl").open())] == [6, 8, 12, 16, 18, 24]


def test_tokens_count_valid_targets_only(bench: Bench, whole: str):
    rows = bench.rows(whole)
    assert all(0 < row["tokens"] <= row["step"] * 2048 for row in rows)


def test_a_finished_run_prints_its_summary_again_and_changes_nothing(bench: Bench, whole: str):
    path = bench.runs / whole
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name not in ("status.json", "run.lock")}
    told = bench.train(whole, *SHORT)
    assert "nothing was trained" in told and "bits/byte" in told and "gzip -9" in told and "xz -9" in told
    assert {p: p.read_bytes() for p in before} == before


def test_asked_to_stop_it_saves_exits_75_and_goes_on(bench: Bench, whole: str):
    name = "stopped"
    assert bench.kill_at(name, 7, signal.SIGTERM, *SHORT) == 75
    status = bench.status(name)
    assert status["state"] == "stopped" and status["exit"] == 75 and 8 <= status["step"] < 24
    bench.train(name, *SHORT)
    bench.check_same(whole, name)


@pytest.mark.soak
def test_with_compiled_blocks_a_resume_is_exact_too(bench: Bench):
    compiled = (*SHORT, "train.compile=true", "train.precision=bf16", "model.preset=gpt2", "model.dropout=0.1")
    told = bench.train("compiled", *compiled)
    assert "blocks are compiled at their first use" in told and "attention under dropout goes by torch" in told
    assert bench.kill_at("compiled-killed", 7, signal.SIGKILL, *compiled) == -signal.SIGKILL
    bench.train("compiled-killed", *compiled)
    bench.check_same("compiled", "compiled-killed")


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the compiler in /proc")
def test_ctrl_c_while_blocks_are_compiled_saves_the_run(bench: Bench, tmp_path: Path):
    """A terminal sends it to all of a process group, and a compiler that it ended would end the run as a failure."""
    command = bench.arguments("compiling", *SHORT, "train.compile=true")
    process = bench.start(*command, env={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}, start_new_session=True)
    until = time.monotonic() + 120
    while not compiles(process.pid) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert bench.status("compiling")["state"] == "stopped" and bench.status("compiling")["step"] > 0


def compiles(group: int) -> bool:
    """Whether a C++ compiler is at work on a graph in a process group; before, it is asked what the CPU can do."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            if name == "cc1plus" and int(rest.split()[2]) == group:
                return ".main.cpp" in stat.with_name("cmdline").read_text()
    return False


def test_with_dropout_accumulation_and_adamw_a_resume_is_exact_too(bench: Bench):
    odd = (*SHORT, "model.dropout=0.1", "train.micro_rows=5", "optim.name=adamw", "train.steps=12", "schedule.decay=4")
    bench.train("odd", *odd)
    assert bench.kill_at("odd-killed", 7, signal.SIGKILL, *odd) == -signal.SIGKILL
    bench.train("odd-killed", *odd)
    bench.check_same("odd", "odd-killed")


FIFTY = ("train.steps=50", "eval.every=25", "save.every=50", "track.every=1", "eval.sample_tokens=0",
         "model.context=32", "train.batch_tokens=1024", "loss={base: {smooth: {eps: 0.1}}, add: [z]}",
         # At the default rates of tiny.yaml training amplifies a last-bit difference tenfold every few steps.
         "optim.rates={matrix: 0.01, embed: 0.005, head: 0.004, vector: 0.004}")  # fmt: skip


@pytest.fixture(scope="module")
def fifty(bench: Bench) -> tuple[str, ...]:
    """Overrides of a run over rows with uneven numbers of valid targets, done by one process as `fifty`."""
    rng, file = random.Random(0), bench.runs.parent / "uneven.jsonl"
    lengths = [rng.choice((rng.randrange(18, 31), rng.randrange(18, 31), rng.randrange(2, 12))) for _ in range(3000)]
    texts = ["".join(rng.choices("abcde ", k=n)) for n in lengths]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    overrides = (*FIFTY, f"data.sources={{uneven: {{kind: jsonl, files: [{file}]}}}}")
    bench.train("fifty", *overrides)
    return overrides


@pytest.fixture(scope="module", params=[2, 3])
def together(bench: Bench, fifty: tuple[str, ...], request: pytest.FixtureRequest) -> str:
    """The same run by 2 processes, and by 3, which divide nothing."""
    bench.torchrun(request.param, f"ranks-{request.param}", *fifty)
    return f"ranks-{request.param}"


def test_many_processes_see_the_losses_of_one(bench: Bench, together: str):
    """Rows hold uneven numbers of valid targets."""
    name = together
    theirs, ours = bench.rows(name), bench.rows("fifty")
    assert [row["tokens"] for row in theirs] == [row["tokens"] for row in ours]
    assert len({row["tokens"] - before["tokens"] for before, row in zip(ours, ours[1:], strict=False)}) > 10
    for key, rel in (("train/loss", 1e-4), ("train/nll", 1e-4), ("train/grad_norm", 1e-3)):
        assert [row[key] for row in theirs] == pytest.approx([row[key] for row in ours], rel=rel), key
    for key in ("val/nll", "val/bpb", "val/accuracy"):
        assert theirs[-1][key] == pytest.approx(ours[-1][key], rel=1e-4), key
    assert bench.status(name)["state"] == "done"


def test_two_processes_stop_together_and_go_on_exactly(bench: Bench, fifty: tuple[str, ...]):
    """A signal to one of them, as a scheduler may send it: both save, and the resumed pair is the unbroken one."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = bench.start(*launcher, *bench.arguments("pair", *fifty))
    file, deadline = bench.runs / "pair" / "metrics.jsonl", time.monotonic() + 120
    while not (file.exists() and file.read_text().count("\n") >= 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(bench.status("pair")["pid"], signal.SIGTERM)
    process.communicate(timeout=60)
    status = bench.status("pair")
    assert status["state"] == "stopped" and status["exit"] == 75 and status["step"] >= 10
    bench.torchrun(2, "pair", *fifty)
    bench.torchrun(2, "unbroken", *fifty)
    bench.check_same("pair", "unbroken", samples=False)
    bench.torchrun(2, "pair", *fifty)  # finished: says so again
    assert bench.status("pair")["state"] == "done"
    bench.torchrun(2, "pair", *fifty, "train.steps=3", "model.dim=32", "--restart")
    assert bench.rows("pair")[-1]["step"] == 3 and len(bench.rows("pair.old1")) == 50


def test_a_run_of_one_process_goes_on_with_two(bench: Bench, fifty: tuple[str, ...]):
    assert bench.kill_at("grown", 10, signal.SIGTERM, *fifty) == 75
    bench.torchrun(2, "grown", *fifty)
    grown, whole = ([row["train/nll"] for row in bench.rows(name)] for name in ("grown", "fifty"))
    assert grown == pytest.approx(whole, rel=1e-4)


BAD = {
    "an unknown key": (("optim.lrr=1",), 2, "unknown key"),
    "a missing corpus": (("data.sources={x: {kind: text, files: [absent/*.txt]}}",), 2, "absent/*.txt"),
    "a missing package": (("data.sources={x: {kind: python, packages: [no_such_package]}}",), 2, "no_such_package"),
    "a validation split without documents": (("data.split.val=0.000001",), 2, "data.split.val"),
    "a value out of range": (("model.dropout=1.5",), 2, "model.dropout"),
    "heads that do not divide the width": (("model.heads=3",), 2, "heads"),
    "a prompt that cannot be spelled": (("data.tokenizer=char", "eval.prompts=['\u2603']"), 2, "\u2603"),
    "a loss that does not exist": (("loss=crossentropy",), 2, "crossentropy"),
    "a run under a file": (("run.dir=Makefile/runs",), 2, "cannot write the run"),
    "a corpus under a file": (("data.dir=Makefile/corpora",), 2, "Makefile"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(bench: Bench, case: str):
    overrides, code, told = BAD[case]
    name = f"bad-{list(BAD).index(case)}"
    printed = bench.train(name, *SHORT, *overrides, exits=code)
    lines = [line for line in printed.splitlines() if line and "B/s]" not in line and "error" not in line]
    assert told in printed and "Traceback" not in printed and len(lines) == 1, printed
    assert not (bench.runs / name / "metrics.jsonl").exists()


def test_another_shape_or_corpus_is_refused_and_nothing_is_lost(bench: Bench, whole: str):
    before = {p: p.read_bytes() for p in (bench.runs / whole).rglob("*") if p.is_file() and p.suffix != ".json"}
    printed = bench.train(whole, *SHORT, "model.dim=32", "run.seed=7", exits=2)
    assert "model.dim: 64 -> 32" in printed and "run.seed: 1234 -> 7" in printed and "--restart" in printed
    assert {p: p.read_bytes() for p in before if p.name != "run.lock"} == {
        p: b for p, b in before.items() if p.name != "run.lock"
    }
    assert bench.status(whole)["state"] == "bad_input" and bench.status(whole)["step"] == 24


def test_changed_rates_are_accepted_and_recorded(bench: Bench, whole: str):
    assert bench.kill_at("changed", 7, signal.SIGTERM, *SHORT) == 75
    told = bench.train("changed", *SHORT, "optim.rates.matrix=0.01", "train.steps=26")
    assert "goes on from step" in told and "changed: optim.rates.matrix: 0.02 -> 0.01" in told
    changes = [json.loads(line) for line in (bench.runs / "changed" / "changes.jsonl").open()]
    assert [(c["key"], c["old"], c["new"]) for c in changes] == [
        ("optim.rates.matrix", 0.02, 0.01),
        ("train.steps", 24, 26),
    ]
    assert bench.rows("changed")[-1]["step"] == 26


def test_a_corpus_with_other_bytes_is_refused(bench: Bench):
    short = ("train.steps=2", "eval.every=2", "save.every=2", "eval.max_tokens=256", "eval.sample_tokens=1",
             f"data.dir={bench.corpora}-other-bytes")  # fmt: skip
    bench.train("other-bytes", *short)
    shard = sorted(bench.corpora.with_name("corpora-other-bytes").glob("*/shards/*.bin"))[0]
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    printed = bench.train("other-bytes", *short, "train.steps=4", exits=3)
    assert f"{shard.name}: sha256 differs" in printed and "--repair" in printed and "Traceback" not in printed


def test_restart_moves_the_old_run_aside(bench: Bench, whole: str):
    bench.train("again", "train.steps=2", "schedule.name=constant", "schedule.warmup=0")
    bench.run(
        *bench.arguments("again", "train.steps=3", "model.dim=32", "schedule.name=constant", "schedule.warmup=0"),
        "--restart",
    )
    assert bench.rows("again")[-1]["step"] == 3
    assert bench.rows("again.old1")[-1]["step"] == 2


def test_a_rate_that_destroys_the_weights_ends_the_run_and_is_never_saved(bench: Bench):
    printed = bench.train("diverged", *SHORT, "train.steps=60", "optim.name=adamw", "optim.grad_clip=null",
                          "optim.rates={matrix: 1e30, embed: 1e30, head: 1e30, vector: 1e30}", exits=4)  # fmt: skip
    assert printed.count("goes back") == 3 and "diverged" in printed and "Traceback" not in printed
    assert bench.status("diverged")["state"] == "diverged" and not durable.list_checkpoints(bench.runs / "diverged")


def test_a_batch_of_another_size_goes_on_with_the_next_row(bench: Bench):
    assert bench.kill_at("resized", 7, signal.SIGTERM, *SHORT) == 75
    step = bench.status("resized")["step"]
    bench.train("resized", *SHORT, "train.batch_tokens=1024")
    state = durable.verify(durable.find_checkpoint(bench.runs / "resized"))
    assert state["row"] == step * 32 + (24 - step) * 16
    assert state["tokens"] == pytest.approx(state["row"] * 64, rel=0.01)


def test_an_early_stop_says_so_and_another_config_is_refused_before_the_first_save(bench: Bench):
    assert bench.kill_at("early", 3, signal.SIGKILL, *SHORT, "save.every=20", "eval.every=20") == -signal.SIGKILL
    rows = bench.rows("early")
    printed = bench.train("early", *SHORT, "model.dim=32", exits=2)
    assert "model.dim: 64 -> 32" in printed and bench.rows("early") == rows
    process = bench.start(*bench.arguments("elsewhere", *SHORT, f"data.dir={bench.runs.parent}/fresh"))
    while not (bench.runs / "elsewhere" / "status.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75 and bench.status("elsewhere")["state"] == "stopped"


def test_a_profile_is_written(bench: Bench):
    printed = bench.run(*bench.arguments("profiled", *SHORT), "--profile")
    assert "aten::" in printed and json.loads((bench.runs / "profiled" / "profile.json").read_text())["traceEvents"]


def test_print_config_and_dry_run_write_nothing(bench: Bench):
    printed = bench.run(*bench.arguments("nothing"), "--print-config")
    assert "name: nothing" in printed
    planned = bench.run(*bench.arguments("nothing"), "--dry-run")
    for fact in ("parameters", "loss           ce", "FLOPs", "memory", "epochs", "tokens/s", "time"):
        assert fact in planned
    elsewhere = bench.run(*bench.arguments("nothing", "run.device=cuda"), "--dry-run")
    assert "no cuda here" in elsewhere and "parameters" in elsewhere
    assert not (bench.runs / "nothing").exists()
