"""The verbs, in-process: what they print, what they write, how they fail."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import durable
import train
from scripts import check_loss, checkpoint, doctor, evaluate, generate, losses, prepare, summary
from scripts.benches import loss
from tests.conftest import Bench


@pytest.fixture(scope="module")
def run(bench: Bench) -> Path:
    bench.train("verbs", "train.steps=30", "eval.every=10", "save.every=10", "eval.prompts=['import ', '']")
    return bench.runs / "verbs"


def test_evaluate_gives_the_numbers_that_training_logged(run: Path, tmp_path: Path, capsys):
    assert evaluate.main([str(run), "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for key in ("nll", "ppl", "bpb", "accuracy"):
        assert result[key] == pytest.approx(last[f"val/{key}"], rel=1e-9)
        assert result["labels"]["stdlib"][key] == pytest.approx(last[f"val/stdlib/{key}"], rel=1e-9)
    assert result["tokens"] == result["labels"]["stdlib"]["tokens"] > 1000
    assert f"{result['bpb']:.4f}" in capsys.readouterr().out


def test_evaluate_takes_an_older_checkpoint(run: Path, capsys):
    step = durable.step_of(durable.list_checkpoints(run)[0])
    assert evaluate.main([str(run), "--checkpoint", str(step)]) == 0
    assert evaluate.main([str(run), "--checkpoint", "7"]) == 2
    assert "there are last, best and steps" in capsys.readouterr().err


def test_generate_repeats_with_a_seed_and_starts_with_the_prompt(run: Path, capsys):
    texts = []
    for seed in ("1", "1", "2"):
        assert generate.main([str(run), "--prompt", "import é", "--max-new-tokens", "40", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("import é")
    both = ["--prompt", "import é", "--prompt", "a", "--max-new-tokens", "40", "--seed", "1"]
    assert generate.main([str(run), *both]) == 0
    first, second = capsys.readouterr().out.removeprefix("[1/2]\n").split("\n\n[2/2]\n")
    assert generate.main([str(run), "--prompt", "a", "--max-new-tokens", "40", "--seed", "2"]) == 0
    assert [first + "\n", second] == [texts[0], capsys.readouterr().out]
    for weights in ("bf16", "int8"):
        assert generate.main([str(run), "--weights", weights, "--max-new-tokens", "40"]) == 0
        assert re.fullmatch(r"\d+ tokens in \d+\.\d s: [\d,]+ tokens/s\n", capsys.readouterr().err)
    assert generate.main([str(run), "--weights", "int8", "--beams", "2"]) == 2
    assert capsys.readouterr().err == "--weights int8 does not go with --beams\n"
    searched = []
    for beams, seed in (("2", "1"), ("2", "9"), ("0", "1")):
        code = generate.main([str(run), "--beams", beams, "--max-new-tokens", "6", "--seed", seed])
        searched.append((code, capsys.readouterr().out))
    assert searched[0] == searched[1] and [code for code, _ in searched] == [0, 0, 2]
    assert generate.main([str(run), "--temperature", "-1"]) == 2
    assert generate.main([str(run), "--max-new-tokens", "0"]) == 2
    assert generate.main([str(run), "--device", "cuda"]) == 2
    assert "no cuda here" in capsys.readouterr().err
    assert generate.main([str(run / "absent")]) == 2
    assert "no such run" in capsys.readouterr().err


def test_a_chat_model_answers_and_stops(tmp_path: Path, capsys):
    """Trained on one question, with loss on the answer alone, it gives the answer and ends its turn."""
    talk = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}]
    lines = [{"messages": [*talk, {"role": "user", "content": str(i)}]} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = f"data.sources={{a: {{kind: jsonl, files: [{tmp_path}/a.jsonl], messages: messages}}}}"
    places = [f"run.dir={tmp_path}", "run.name=chat", f"data.dir={tmp_path}/corpora", "data.split.val=0.1"]
    size = [
        "model.context=64",
        "train.batch_tokens=256",
        "train.steps=60",
        "eval.sample_tokens=0",
        "data.tokenizer=byte",
    ]
    assert train.main(["configs/tiny.yaml", sources, *places, *size]) == 0
    capsys.readouterr()
    assert generate.main([str(tmp_path / "chat"), "--chat", "--prompt", "Well?", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "Yes.\n"
    assert (
        generate.main([str(tmp_path / "chat"), "--prompt", "Well?", "--temperature", "0", "--max-new-tokens", "9"]) == 0
    )
    assert capsys.readouterr().out.startswith("Well?")


def test_streamed_text_never_cuts_a_character():
    text = "naïve 😀 text\n" * 20
    data = list(text.encode())
    pieces = list(generate.whole_characters(iter(data), lambda ids: bytes(ids).decode(errors="replace")))
    assert "".join(pieces) == text and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    cut = list(generate.whole_characters(iter(data[:-2]), lambda ids: bytes(ids).decode(errors="replace")))
    assert "".join(cut) == bytes(data[:-2]).decode(errors="replace")


def test_checkpoint_lists_and_finds_damage(run: Path, tmp_path: Path, capsys):
    assert checkpoint.main(["verify", str(run)]) == 0
    listed = capsys.readouterr().out
    assert listed.count("intact") == len(durable.list_checkpoints(run)) and listed.count("best") == 1
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    weights = durable.list_checkpoints(copy)[0] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    assert checkpoint.main(["verify", str(copy)]) == 3
    out, err = capsys.readouterr()
    assert "sha256 differs" in out and "1 of" in err
    assert checkpoint.main(["list", str(tmp_path)]) == 2
    data[1000] ^= 1
    weights.write_bytes(data)
    (durable.list_checkpoints(copy)[-1] / "model.safetensors").write_bytes(b"")
    capsys.readouterr()
    assert evaluate.main([str(copy)]) == 0  # goes back to an intact one, and says so
    out, err = capsys.readouterr()
    assert "damaged checkpoint passed over" in err and durable.list_checkpoints(copy)[-2].name in out
    assert generate.main([str(copy), "--checkpoint", "best"]) == 3
    assert "`--checkpoint last` takes the newest intact one" in capsys.readouterr().err


def test_prepare_says_what_it_made(bench: Bench, capsys):
    argv = ["configs/tiny.yaml", f"data.dir={bench.corpora}"]
    assert prepare.main(argv) == 0
    assert "bytes/token" in capsys.readouterr().out
    assert prepare.main([*argv, "data.sources.stdlib.packages=[nothing_here]"]) == 2
    assert "nothing_here" in capsys.readouterr().err


def test_summary_redraws_and_tells(run: Path, capsys):
    (run / "curves.png").unlink()
    assert summary.main([str(run)]) == 0
    told = capsys.readouterr().out
    assert (run / "curves.png").is_file() and "gzip -9" in told and "best saved checkpoint" in told
    assert "sample at step 30" in told and f"samples  {run}/samples.jsonl" in told
    (run / "samples.jsonl").write_text("")
    assert summary.main([str(run)]) == 0
    told = capsys.readouterr().out
    assert "samples.jsonl" not in told and f"metrics  {run}/metrics.jsonl" in told


def test_doctor_is_ready_here_and_names_what_is_missing(monkeypatch, capsys):
    assert doctor.main([]) == 0
    told = capsys.readouterr().out
    assert "ready" in told and "from this checkout" in told and "GFLOP/s" in told
    monkeypatch.setattr(doctor, "dependencies", lambda: ["torch", "no-such-package"])
    assert doctor.main([]) == 1
    assert "missing: no-such-package" in capsys.readouterr().out


def test_trackers_hold_every_row_of_a_run(bench: Bench, monkeypatch):
    """wandb offline and tensorboard over an interruption: one wandb run, the same values as metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ("train.steps=20", "eval.every=10", "save.every=10", "track.wandb=offline", "track.tensorboard=true",
               "eval.sample_tokens=4")  # fmt: skip
    bench.train("trackers", *options)
    bench.train("trackers", *options, "train.steps=30")
    path, rows = bench.runs / "trackers", bench.rows("trackers")
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    ids = {json.loads((c / "state.json").read_text())["wandb_id"] for c in durable.list_checkpoints(path)}
    runs = sorted((path / "wandb").glob("offline-run-*"))
    assert len(ids) == 1 and len(runs) == 2 and all(r.name.endswith(next(iter(ids))) for r in runs)
    listed = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--dry-run", *map(str, runs)],
        cwd=path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert next(iter(ids)) in listed.stdout + listed.stderr
    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    for key in ("train/nll", "val/nll"):
        logged = [(row["step"], row[key]) for row in rows if key in row]
        read = [(event.step, event.value) for event in events.Scalars(key)]
        assert read == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged]


def test_verbs_help_in_words(capsys):
    for main in (v.main for v in (loss, check_loss, checkpoint, evaluate, generate, losses, prepare, summary)):
        with pytest.raises(SystemExit) as stop:
            main(["--help"])
        assert stop.value.code == 0 and "usage: python -m scripts." in capsys.readouterr().out
