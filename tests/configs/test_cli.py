"""The command line: arguments, help without heavy imports, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import ConfigError, entry, explain, parse
from durable import Damaged, Locked

FLAGS = {"dry-run": "print the plan", "restart": "start again"}


def arguments(*argv: str) -> dict:
    return vars(parse(argv, prog="train.py", description="Train.", flags=FLAGS))


def test_arguments() -> None:
    found = arguments("model.dim=3", "--dry-run", "c.yaml", "--run.name=x=y")
    want = {"config": "c.yaml", "overrides": ("model.dim=3", "--run.name=x=y"), "dry_run": True, "restart": False}
    assert found == want


VALUES = FLAGS | {"slice=I/N": "do a part", "at=PLACE": "where"}


@pytest.mark.parametrize("given", [["--slice", "0/4"], ["--slice=0/4"]])
def test_flags_with_values(given: list[str]) -> None:
    found = vars(parse([*given, "c.yaml", "a.b=c"], prog="x", description="X.", flags=VALUES))
    want = {"config": "c.yaml", "overrides": ("a.b=c",), "dry_run": False, "restart": False, "slice": "0/4", "at": None}
    assert found == want


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["c.yaml", "--slice"], "--slice needs a value: --slice I/N"),
        (["c.yaml", "--slice", "--restart"], "--slice needs a value: --slice I/N"),
        (["c.yaml", "--slice="], "--slice needs a value: --slice I/N"),
        (["c.yaml", "--restart=1"], "--restart takes no value"),
        (["c.yaml", "--slicer"], "unknown option --slicer — did you mean '--slice'?"),
    ],
)
def test_values_that_are_missing(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv, prog="x", description="X.", flags=VALUES)
    assert caught.value.code == 2 and capsys.readouterr().err == f"x: {message}\n"


def test_help_shows_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], prog="x", description="X.", flags=VALUES)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: x CONFIG [key.sub=value ...] [--dry-run] [--restart] [--slice I/N] [--at PLACE]"
    assert "  --slice I/N  do a part" in lines and "  --help       this text" in lines


def test_a_file_may_have_an_equals_sign(tmp_path: Path) -> None:
    path = tmp_path / "lr=3.yaml"
    path.write_text("")
    assert arguments(str(path))["config"] == str(path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["c.yaml", "--dryrun"], "train.py: unknown option --dryrun — did you mean '--dry-run'?"),
        (["c.yaml", "--model.dim", "3"], "train.py: unknown option --model.dim; a value is given as model.dim=VALUE"),
        (["c.yaml", "-q"], "train.py: unknown option -q"),
        ([], "train.py: no config; try configs/quickstart.yaml (--help shows the options)"),
        (["a", "b"], "train.py: one config, not a, b (--help shows the options)"),
    ],
)
def test_mistakes_exit_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments(*argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines() == [message]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, json\n"
        "from configs import load, parse\n"
        "load('configs/quickstart.yaml')\n"
        "try: parse(['--help'], prog='train.py', description='Train.')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, modules = done.stdout.splitlines()
    assert text[0] == "usage: train.py CONFIG [key.sub=value ...]" and any(line.startswith(" *heads") for line in text)
    heavy = {
        "torch",
        "numpy",
        "datasets",
        "transformers",
        "tokenizers",
        "tiktoken",
        "wandb",
        "matplotlib",
        "safetensors",
    }
    assert not heavy & set(json.loads(modules))


def test_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def failing(error: BaseException) -> int:
        @entry
        def main() -> None:
            raise error

        return main()

    assert entry(lambda: None)() == 0 and entry(lambda: 75)() == 75
    assert failing(ConfigError(["a", "b"])) == 2
    assert capsys.readouterr().err == "a\nb\n2 errors; nothing was run.\n"
    assert failing(Locked("in use")) == 2
    assert failing(Damaged("sha256 differs")) == 3
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "in use\nsha256 differs\ninterrupted\n"
    assert failing(OSError(28, "No space left on device", "runs/x")) == 1
    assert capsys.readouterr().err == "runs/x: No space left on device\n"
    (tmp_path / "file").write_text("")
    assert entry((tmp_path / "file" / "under").mkdir)() == 2
    assert capsys.readouterr().err == f"{tmp_path}/file/under: Not a directory\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(json.JSONDecodeError):
        entry(lambda: json.loads("{") and None)()
    with pytest.raises(KeyError):
        entry(lambda: dict[str, int]()["x"])()
    assert explain(RuntimeError("x")) is None
