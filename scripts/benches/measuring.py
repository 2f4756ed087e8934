"""What every benchmark needs: strict arguments, the facts of a machine, and answers of processes of their own."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from durable import atomic_write

ROOT = Path(__file__).resolve().parents[2]


class Parser(argparse.ArgumentParser):
    """One that tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def surroundings(device: str = "auto", threads: int | None = None) -> dict[str, Any]:
    """Hardware and versions, and one line, `told`, that tells them. Sets the threads of this process.

    Raises ValueError for a `device`, "auto", "cpu" or "cuda", that is not there.
    """
    import torch

    from assemble import usable_cpus
    from trainer.rundir import environment

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: there is none here; --device cpu works")
    device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if threads:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    made = environment(device, threads, {"load": list(os.getloadavg())})
    hardware = f"{made['cpu']}, {usable_cpus()} CPUs, {threads} thread{'s' * (threads > 1)}"
    if device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    told = f"{hardware}; torch {torch.__version__}; load {made['load'][0]:.1f} before the start"
    return {"told": told, "device": device, "threads": threads, "environment": made}


class Notebook:
    """What a benchmark has measured, on disk after each answer, so that one which was cut off can go on.

    `report["answers"][case][name]` are the answers of an entrant to a case, one a round; one that failed is not asked
    again.
    """

    def __init__(self, path: Path, command: str, settings: Mapping[str, Any], *, resume: bool, **facts: Any) -> None:
        """Raises ValueError when it is to go on with a report that is not there or has other settings."""
        self.path, settings = path, json.loads(json.dumps(settings, default=str))
        date = time.strftime("%Y-%m-%d")
        self.report: dict[str, Any] = {"command": command, "date": date, "settings": settings, **facts, "answers": {}}
        if resume and path.exists():
            old = json.loads(path.read_text())
            changed = sorted(name for name in settings if old["settings"].get(name) != settings[name])
            if changed:
                raise ValueError(f"--resume: {path} was measured with another --{changed[0].replace('_', '-')}")
            self.report["answers"] = {
                case: {name: kept for name, found in each.items() if (kept := [a for a in found if "failed" not in a])}
                for case, each in old["answers"].items()
            }

    def of(self, case: str, name: str) -> list[dict[str, Any]]:
        return self.report["answers"].setdefault(case, {}).setdefault(name, [])

    def wants(self, case: str, name: str, turn: int) -> bool:
        """Whether round `turn`, from 0, of an entrant is still to come."""
        answers = self.of(case, name)
        return len(answers) <= turn and not any("failed" in answer for answer in answers)

    def add(self, case: str, name: str, answer: dict[str, Any]) -> None:
        self.of(case, name).append(answer)
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, json.dumps(self.report, indent=1) + "\n")


def medians(answers: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> dict[str, float]:
    """The median of a number over the rounds of each entrant that never failed and has it."""
    good = {name: found for name, found in answers.items() if found and not any("failed" in each for each in found)}
    return {name: statistics.median(each[key] for each in found) for name, found in good.items() if key in found[0]}


class Aim(NamedTuple):
    """What this project aims at, and what was found."""

    what: str
    wanted: float
    found: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted


def aim_rows(aims: Sequence[Aim]) -> list[tuple[str, ...]]:
    """Each aim, what it came to, and whether it was met."""
    rows: list[tuple[str, ...]] = [("aim", "wanted", "found", "")]
    for aim in aims:
        sign, met = "<=" if aim.at_most else ">=", "met" if aim.met else "missed"
        rows.append((aim.what, f"{sign} {aim.wanted:g}", f"{aim.found:.2f}", met))
    return rows


def spoken(name: str, argv: Sequence[str]) -> str:
    """The command of a benchmark, without paths of this machine and without what only divides it into parts."""
    words, option = [f"python -m scripts.bench {name}"], ""
    for word in argv:
        option = word if word.startswith("--") else option
        if option in ("--python", "--nanogpt"):
            words += [word] if word == option else [option[2:].upper()]
        elif option not in ("--out", "--only", "--resume"):
            words.append(word)
    return " ".join(words)


def failures(report: Mapping[str, Any]) -> list[str]:
    """A line for each entrant that failed."""
    return [
        f"failed  {name} ({case}): {answer['failed']}"
        for case, each in report["answers"].items()
        for name, answers in each.items()
        for answer in answers
        if "failed" in answer
    ]


def lacking(python: str, *modules: str) -> list[str]:
    """Those of `modules` that an interpreter does not have. Raises ValueError when it does not run."""
    code = f"import importlib.util as u; print(*(m for m in {modules} if u.find_spec(m) is None))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"--python {python}: does not run") from error
    return done.stdout.split()


def ask(
    module: str, *words: str, environment: Mapping[str, str] | None = None, python: str = sys.executable
) -> dict[str, Any]:
    """The JSON object that `python -m module words` prints last; `failed` says why there is none."""
    command = [python, "-m", module, *words]
    added = os.environ | dict(environment or {})
    done = subprocess.run(command, cwd=ROOT, env=added, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"failed": last_words(done.returncode, done.stderr)}


def rounds(names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """(round from 0, name), each name once a round: interleaved, and each round beginning with another one.

    A machine that slows down for a while then slows all of them down.
    """
    for i in range(repeats):
        turn = i % max(len(names), 1)
        yield from ((i, name) for name in (*names[turn:], *names[:turn]))


def spread(values: Sequence[float]) -> float:
    """(max - min) / median: a few percent on a quiet machine."""
    return (max(values) - min(values)) / statistics.median(values)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in plain text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    pairs = [list(zip(row, widths, strict=True)) for row in rows]
    return ["  ".join([f"{a:<{w}}", *(f"{c:>{v}}" for c, v in rest)]).rstrip() for (a, w), *rest in pairs]


def last_words(code: int, stderr: str) -> str:
    """Why a process ended with a code, in a line."""
    if code == -9:
        return "killed, perhaps out of memory"
    return (stderr.strip().splitlines() or [f"exit code {code}"])[-1][:200]
