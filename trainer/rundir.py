"""The directory of a run: who may write to it, what state it is in, and where it was made."""

import contextlib
import datetime
import errno
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from durable import atomic_write, file_lock, sha256

RunState = Literal["running", "done", "stopped", "bad_input", "damaged", "diverged", "failed"]
EXIT_CODES: dict[RunState, int] = {
    "done": 0, "failed": 1, "bad_input": 2, "damaged": 3, "diverged": 4, "stopped": 75,
}  # fmt: skip


LOCK, STATUS = "run.lock", "status.json"
EVENTS = "events.jsonl"
_APPENDED = ("metrics.jsonl", "samples.jsonl", "changes.jsonl", EVENTS)
_REPLACED = ("config.yaml", "env.json", STATUS, "tokenizer.json", "checkpoints/best", "curves.png", "eval/final.json")
_FOLDERS = ("checkpoints", "eval", "files")
_REFUSED = ("bad_input", "damaged")


@contextlib.contextmanager
def hold(path: Path, *, restart: bool) -> Iterator[None]:
    """Own the run directory `path`, made when missing, for the length of a `with` block.

    `restart` moves what is there aside, under the lock. Raises ValueError when the path cannot be a directory,
    cannot be written, or another process holds it. A block that fails with `status.json` calling it bad input or
    damage, before the run has begun with a `config.yaml`, leaves no directory behind that was not there, and what was
    moved aside is back in its place.
    """
    made: list[Path] = []  # innermost first
    aside: Path | None = None
    with contextlib.ExitStack() as held:
        try:
            made += [each for each in (path, *path.parents) if not each.exists()]
            path.mkdir(parents=True, exist_ok=True)
            if restart and path not in made:
                with file_lock(path / LOCK, wait=False):
                    aside = path.rename(_free_name(path))
                print(f"the old run is now {aside}", file=sys.stderr)
                path.mkdir()
            held.enter_context(file_lock(path / LOCK, wait=False))
            _probe(path)
        except OSError as error:
            _undo(path, made, aside)
            raise ValueError(f"cannot write the run to {error.filename or path}: {error.strerror}") from None
        try:
            yield
        except Exception:
            if (made or aside) and _refused(path) and not (path / "config.yaml").exists():
                _undo(path, made, aside)
            raise


def _probe(path: Path) -> None:
    """Raise an OSError, naming the place, unless a run can keep its files in the directory `path`."""
    for folder in (path, *(path / name for name in _FOLDERS if os.path.lexists(path / name))):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            error.filename = str(folder)
            raise
    for file in (path / name for name in (*_APPENDED, *_REPLACED) if os.path.lexists(path / name)):
        if not file.is_file():
            raise OSError(errno.EINVAL, "is not a file", str(file))
        if file.name in _APPENDED:
            with open(file, "ab"):
                pass


def _refused(path: Path) -> bool:
    """Whether this process has written that there is nothing to train."""
    try:
        status = json.loads((path / STATUS).read_text())
        return status["pid"] == os.getpid() and status["state"] in _REFUSED
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _undo(path: Path, made: list[Path], aside: Path | None) -> None:
    """Remove the directories that `hold` made, as far as there is nothing in them, and move `aside` back."""
    with contextlib.suppress(OSError):
        if path in made or aside:
            for name in (STATUS, LOCK):
                (path / name).unlink(missing_ok=True)
        for folder in made:
            if folder.exists():
                folder.rmdir()
        if aside:
            path.rmdir()
            aside.rename(path)
            print(f"the old run is {path} again", file=sys.stderr)


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return aside


def write_status(path: Path, state: RunState, step: int, exit_code: int | None) -> None:
    """Replace `status.json`: torchrun and make hide exit codes."""
    status = {"state": state, "exit": exit_code, "step": step, "pid": os.getpid(), "host": socket.gethostname()}
    atomic_write(path / STATUS, json.dumps(status) + "\n")


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add one JSON line, durably."""
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def note(path: Path, event: str, step: int, **facts: Any) -> None:
    """Add a line to the run's `events.jsonl`: what happened, at which step, when (UTC)."""
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    append_line(path / EVENTS, {"event": event, "step": step, "time": when, **facts})


def environment(device: str, threads: int, extra: dict[str, Any]) -> dict[str, Any]:
    """What a run was made with: code, versions, hardware. No variable of the environment is recorded."""
    packages = ("torch", "numpy", "tokenizers", "tiktoken", "datasets", "safetensors", "wandb", "tensorboard")
    return {
        "git": git_state(Path(__file__).resolve().parent.parent),
        "python": platform.python_version(),
        "packages": {name: found for name in packages if (found := _version(name))},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "device": device,
        "threads": threads,
        "argv": sys.argv[1:],
        **extra,
    }


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root` and whether files differ from it; None outside of git."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    try:
        ask = [git, "-C", str(root)]
        commit = subprocess.run([*ask, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        dirty = subprocess.run([*ask, "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "modified": bool(dirty.stdout.strip())}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """The CPU, with the numbers of its generation where it has any: a virtual machine may call it a mere "AMD EPYC"."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        facts = {key.strip(): value.strip() for key, _, value in lines}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if {"cpu family", "model"} <= facts.keys():
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    return name


def kept_name(file: str) -> str:
    """The name, inside a run's directory, of a copy of a file: by content, so that another content is another name."""
    name, digest = Path(file).name, sha256(Path(file))[:12]
    return f"files/{name if name.startswith(digest) else f'{digest}_{name}'}"


def keep_copy(run: Path, file: str) -> str:
    """Copy a file into a run that has none of its content; returns the copy's name inside the run."""
    kept = run / kept_name(file)
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        atomic_write(kept, Path(file).read_bytes())
    return str(kept.relative_to(run))
