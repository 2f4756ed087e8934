"""The README is true: its commands run, its tree is the tree, its picture comes from numbers in the repository."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.benches import generate, measuring, performance, train_report
from scripts.benches.measuring import Aim
from scripts.doctor import ROOT
from tests.conftest import Bench

README = (ROOT / "README.md").read_text()
METRICS = ROOT / "docs" / "quickstart.metrics.jsonl"
FINAL = ROOT / "docs" / "quickstart.final.json"
TEXT = "First line of a text.\nAnother line, a little longer than the first.\n" * 200


def commands() -> list[str]:
    """Every line of the README's bash blocks that is a command."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = (line.split("  #")[0].strip() for block in blocks for line in block.splitlines())
    return [line for line in lines if line]


COMMANDS = commands()
NOT_RUN = ("make test", "make soak")  # this is them
ELSEWHERE = ("git clone", ". .venv/bin/activate", "cd ")


def adapted(command: str, bench: Bench) -> str:
    """The command on the smallest recipe, with its files in a directory of the tests."""
    command = command.replace("configs/quickstart.yaml", "configs/tiny.yaml").replace("quickstart", "tiny")
    places = f"run.dir={bench.runs} data.dir={bench.corpora}"
    if command.startswith("make train"):
        given = re.search(r'ARGS="(.*?)"', command)
        environment = f"BIN={Path(sys.executable).parent} CONFIG=configs/tiny.yaml"
        return f'make -o .venv/core train {environment} ARGS="{given[1] if given else ""} {places}"'
    if (
        "CONFIG" not in command
        and re.search(r"train\.py|scripts\.(prepare|corpus|launch)", command)
        and "--help" not in command
    ):
        command = re.sub(r"(configs/\S+\.yaml)", rf"\1 {places}", command)
    if "run.name=" in command and "notes" not in command or "configs/losses" in command and "train.py" in command:
        command += " train.steps=12 eval.every=12 save.every=12"  # what is said about it is tested elsewhere
    if "scripts.bench" in command:
        small = {
            "loss": "--rows 64 --vocab 300 --repeats 1 --memory-rows 64 --eps 0.1 --dtype bf16",
            "faults": "--only F3",
            "data": "--megabytes 1 --documents 1000 --only ours",
            "train": "--quick --only ours",
            "speedrun": "--quick --text notes/one.txt",
            "scaling": "--quick --only corpus",
            "generate": "--quick",
            "recipe": "--quick --text notes/one.txt",
        }
        command += f" {small[command.split()[3]]} --out runs/bench"
    return command.replace("runs/", f"{bench.runs}/").replace("notes/", f"{bench.runs.parent}/notes/")


def runnable() -> list[Any]:
    """What a test can run; benchmarks, whose parts have tests of their own, among the long ones."""
    wanted = [command for command in COMMANDS if not command.startswith((*NOT_RUN, *ELSEWHERE))]
    return [pytest.param(c, marks=[pytest.mark.soak] if "scripts.bench" in c else []) for c in wanted]


@pytest.mark.parametrize("command", runnable())
def test_every_command_runs(bench: Bench, command: str):
    notes = bench.runs.parent / "notes"
    notes.mkdir(exist_ok=True)
    (notes / "one.txt").write_text(TEXT)
    if not (bench.runs / "tiny").exists():
        bench.train("tiny")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        adapted(command, bench), shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{adapted(command, bench)}\n{done.stdout}\n{done.stderr}"


def test_the_first_screen_trains_and_tests():
    assert COMMANDS.index("make train") < 4 and "make test" in [c.split("  ")[0] for c in COMMANDS[:5]]


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("train", "test", "soak", "clean"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_tree_is_the_tree():
    block = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert block is not None
    named = {word.rstrip("/") for line in block[1].splitlines() for word in re.findall(r"^(\S+)", line)}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {Path(name).parts[0] for name in listed.splitlines()}
    assert named == {name for name in tracked if not name.startswith(".")}


def test_every_file_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\(([^)#]+?)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_picture_is_drawn_from_the_committed_metrics(tmp_path: Path):
    from matplotlib.image import imread

    from eval import draw

    rows = [json.loads(line) for line in METRICS.read_text().splitlines()]
    draw(rows, tmp_path / "curves.png", "quickstart", json.loads(FINAL.read_text())["compression"])
    drawn, shown = imread(tmp_path / "curves.png"), imread(ROOT / "docs" / "curves.png")
    assert drawn.shape == shown.shape
    # Another version of matplotlib or of its fonts moves edges by a pixel; another curve moves far more.
    assert np.abs(drawn - shown).mean() < 0.01


def test_figures_are_those_of_the_committed_run():
    rows = [json.loads(line) for line in METRICS.read_text().splitlines()]
    assert f"{rows[-1]['val/bpb']:.3f}" in README
    assert f"{rows[-1]['step']} steps" in README and f"{rows[-1]['tokens'] / 1e6:.2f}M tokens" in README
    for size in json.loads(FINAL.read_text())["compression"].values():
        assert f"{size:.3f}" in README and rows[-1]["val/bpb"] < size


PEERS = ("ours", "nanoGPT", "Trainer")


def test_figures_of_speed_are_those_of_the_committed_reports():
    reports = json.loads((ROOT / "docs" / "performance.json").read_text())
    waited = ["ours, corpus prepared", "ours, first start", "nanoGPT, README", "nanoGPT, bf16, best rate"]
    found = measuring.medians(reports["speedrun"]["answers"]["wall"], "seconds")
    wanted = [[f"{found[name]:.2f} s" for name in waited]]
    for shape, dtype in (("16x65", "bf16"), ("16x65", "fp32"), ("4x50304", "bf16")):
        found = measuring.medians(reports["train"]["answers"][shape], "tokens_per_s")
        best = max(speed for name, speed in found.items() if name.startswith(f"litgpt {dtype}"))
        wanted += [[f"{speed:,.0f}" for speed in (*(found[f"{who} {dtype}"] for who in PEERS), best)]]
        if (shape, dtype) == ("16x65", "bf16"):
            wanted += [[f"{found['ours bf16, Muon, qwen3']:,.0f}"]]
    for preset in ("qwen3", "gpt2"):
        found = generate.speeds(reports["generate"], preset, 1)
        best = max(speed for name, speed in found.items() if name.startswith("transformers fp32"))
        names = ("ours fp32", "ours int8", "transformers bf16")
        wanted += [[f"{speed:,.0f}" for speed in (*(found[name] for name in names), best)]]
    rows = [line for line in README.partition("## Speed")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    for told in wanted:
        assert any(all(text in row for text in told) for row in rows), told


def aims_of(folder: str) -> dict[str, tuple[Aim, dict[str, Any]]]:
    """Every aim of a folder's reports by what it is about, with its report."""
    found = {}
    for name, report in json.loads((ROOT / folder / "performance.json").read_text()).items():
        module = performance.module_of(name)
        presets = [(preset,) for preset in report["settings"]["presets"]] if name == "generate" else [()]
        for aim in (aim for preset in presets for aim in module.aims(report, *preset)):
            found[re.sub(r"(, compiled)?, its best$", "", aim.what)] = aim, report
    return found


def test_aims_are_told_as_they_were_missed():
    later = aims_of("docs/compiled")
    told = [
        f"| {what} | {aim.wanted:g} | {aim.found:.2f} | {f'{later[what][0].found:.2f} ' if what in later else ''}|"
        for what, (aim, _) in aims_of("docs").items()
        if not aim.met
    ]
    assert README.partition("| aim | wanted |")[2].partition("\n\n")[0].splitlines()[2:] == told
    what = "batch 16, vocabulary 65: tokens/s / litgpt bf16-true"
    aim, report = aims_of("docs")[what]
    share = train_report.share(report, "16x65", "ours bf16")
    assert share is not None and f"{share:.0%}".replace("%", " %") in README
    assert f"{share * aim.wanted / aim.found:.0%}".replace("%", " %") in README
    speeds = train_report.speeds(later[what][1], "16x65")
    assert f"{1 - speeds['ours bf16, compiled'] / speeds['ours bf16']:.0%}".replace("%", " %") in README
    slowest = max(a["seconds"] for a in aims_of("docs")["worst nll of ours, corpus prepared"][1]["answers"]["wall"][
        "ours, corpus prepared"])  # fmt: skip
    assert f"{slowest:.1f} s" in README


def test_recipes_say_how_they_were_measured():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        header = path.read_text().split("\nrun:")[0]
        for fact in ("command", "hardware", "time", "expect"):
            assert re.search(rf"^# +{fact} ", header, re.MULTILINE), (path.name, fact)


def test_commands_can_be_split_by_a_shell():
    assert all(shlex.split(command) for command in COMMANDS)
