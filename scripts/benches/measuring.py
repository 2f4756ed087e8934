"""What every benchmark needs: strict arguments, the facts of a machine, and answers of processes of their own."""

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from durable import atomic_write

ROOT = Path(__file__).resolve().parents[2]
QUICK = "a quick look: neither times nor losses say anything"


class Parser(argparse.ArgumentParser):
    """Arguments of the benchmark `name`; a mistake is told in one line."""

    def __init__(self, name: str, description: str, **options: Any) -> None:
        defaults = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(
            prog=f"python -m scripts.bench {name}", description=description, allow_abbrev=False,
            **{"formatter_class": defaults} | options,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")

    def add_shape(self) -> None:
        """The model of a contest: by default the one that the aims are about."""
        self.add_argument("--layers", type=positive, default=6, metavar="L")
        self.add_argument("--dim", type=positive, default=384, metavar="D", help="width")
        self.add_argument("--heads", type=positive, default=6, metavar="H")
        self.add_argument("--context", type=positive, default=256, metavar="T", help="tokens of a row")

    def add_seconds(self, default: float) -> None:
        self.add_argument("--seconds", type=above_zero, default=default, metavar="S",
                          help="to time the steps of a process for")  # fmt: skip

    def add_only(self, what: str) -> None:
        """Which of `what` are measured; `asked_for` reads it."""
        self.add_argument(
            "--only", nargs="+", metavar="WORD", help=f"{what} of this name, or else with this in their names"
        )

    def add_rounds(self) -> None:
        self.add_argument("--repeats", type=positive, default=3, metavar="R", help="medians are of so many rounds")

    def add_peers(self) -> None:
        """Where the other tools are."""
        self.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT, which is only read")
        self.add_argument("--python", default=sys.executable, metavar="FILE", help="interpreter of the other tools")

    def add_text(self) -> None:
        self.add_argument("--text", type=Path, metavar="FILE", help="train on another text than the recipe's")

    def add_report(self, files: str) -> None:
        """Where the `files` of the report go, and whether one that is there is gone on with."""
        self.add_argument("--resume", action="store_true", help="go on with the report that is there, and add to it")
        self.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help=f"where {files} go")

    def parse(
        self, argv: Sequence[str], quick: Mapping[str, Any], told: str, on_gpu: Mapping[str, Any] | None = None
    ) -> argparse.Namespace:
        """The arguments, with `--quick`, of which `told` is the help: it makes `quick` the defaults of the others.

        So does `--device cuda` with `on_gpu`.
        """
        self.add_argument("--quick", action="store_true", help=told)
        given = self.parse_args(argv)
        if on_gpu and given.device == "cuda":
            self.set_defaults(**on_gpu)
        if given.quick:
            self.set_defaults(**quick)
        args = self.parse_args(argv)
        if "heads" in args and args.dim % args.heads:
            self.error(f"--heads {args.heads} does not divide --dim {args.dim}")
        return args


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number > 0")
    return number


def asked_for(names: Collection[str], words: Sequence[str] | None) -> list[str]:
    """Of `names` those that `--only` asks for: each word is a name, or else part of names. All, without words.

    Raises ValueError for a word that none has.
    """
    found = {word: [word] if word in names else [name for name in names if word in name] for word in words or names}
    if unknown := [word for word, having in found.items() if not having]:
        raise ValueError(f"--only {shlex.quote(unknown[0])}: there are {'; '.join(names)}")
    return [name for name in names if any(name in having for having in found.values())]


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
    del made["argv"]  # a report is published: `spoken` tells the command without places of this machine
    hardware = f"{made['cpu']}, {usable_cpus()} CPUs, {threads} thread{'s' * (threads > 1)}"
    if device == "cuda":
        hardware = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    told = f"{hardware}; torch {torch.__version__}; load {made['load'][0]:.1f} before the start"
    return {"told": told, "device": device, "threads": threads, "environment": made}


class Notebook:
    """What a benchmark has measured, on disk after each answer, so that one which was cut off can go on.

    `report["answers"][case][name]` are the answers of an entrant to a case, one a round; one that failed is not asked
    again before the next start. `report["finished"]` is whether all that was asked for has been.
    """

    def __init__(self, path: Path, command: str, settings: Mapping[str, Any], *, resume: bool, **facts: Any) -> None:
        """Raises ValueError when it is to go on with a report of other settings, another commit or another machine."""
        self.path, settings = path, json.loads(json.dumps(settings, default=str))
        date = time.strftime("%Y-%m-%d")
        self.report: dict[str, Any] = {"command": command, "date": date, "settings": settings, **facts}
        self.report |= {"finished": False, "answers": {}}
        self._failed_before = set[tuple[str, str]]()
        if resume and path.exists():
            old = json.loads(path.read_text())
            changed = sorted(name for name in settings if old["settings"].get(name) != settings[name])
            if changed:
                raise ValueError(f"--resume: {path} was measured with another --{changed[0].replace('_', '-')}")
            before, now = (commit_of(report) for report in (old, self.report))
            if before != now:
                raise ValueError(f"--resume: {path} was measured at commit {before}, and this is {now}")
            before, now = (hardware_of(report) for report in (old, self.report))
            if before != now:
                raise ValueError(f"--resume: {path} was measured on {before}, and this is {now}")
            self.report["answers"] = old["answers"]
            self._failed_before = {
                (case, name) for case, each in old["answers"].items() for name, found in each.items() if failed(found)
            }

    def of(self, case: str, name: str) -> list[dict[str, Any]]:
        return self.report["answers"].setdefault(case, {}).setdefault(name, [])

    def wants(self, case: str, name: str, turn: int) -> bool:
        """Whether round `turn`, from 0, of an entrant is still to come."""
        answers = self.report["answers"].get(case, {}).get(name, [])
        if (case, name) in self._failed_before:
            return len(answers) - len(failed(answers)) <= turn
        return len(answers) <= turn and not failed(answers)

    def add(self, case: str, name: str, answer: dict[str, Any]) -> None:
        answers = self.of(case, name)
        if (case, name) in self._failed_before:
            answers[:] = [each for each in answers if "failed" not in each]
            self._failed_before.remove((case, name))
        answers.append(answer)
        self.write()

    def finish(self) -> None:
        """All that was asked for has been measured; nobody is left out who has answers of an earlier start."""
        there = {name for each in self.report["answers"].values() for name, found in each.items() if found}
        self.report["left_out"] = {
            who: line for who, line in self.report.get("left_out", {}).items()
            if not any(name.startswith(who) for name in there)
        }  # fmt: skip
        self.report["finished"] = True
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, json.dumps(self.report, indent=1) + "\n")


def failed(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why rounds of an entrant failed."""
    return [answer["failed"] for answer in answers if "failed" in answer]


def hardware_of(report: Mapping[str, Any]) -> str | None:
    """The machine, its threads and torch's version, without how busy it was."""
    return report["told"].rpartition("; ")[0] if "told" in report else None


def commit_of(report: Mapping[str, Any]) -> str | None:
    """The start of the commit that a report was measured at; None outside of git."""
    git = report.get("environment", {}).get("git")
    return git and git["commit"][:12]


def open_book(
    name: str,
    argv: Sequence[str],
    args: argparse.Namespace,
    settings: Sequence[str],
    left_out: Mapping[str, str],
    file: str | None = None,
) -> Notebook:
    """The notebook of the benchmark `name`, in bench_NAME.json or bench_FILE.json; says where and without whom it
    measures.

    `settings` are the arguments that a report which is gone on with must share, `left_out` lines about tools.
    """
    facts = surroundings(getattr(args, "device", "cpu")) | {"left_out": dict(left_out)}
    shared = {key: getattr(args, key) for key in settings}
    book = Notebook(args.out / f"bench_{file or name}.json", spoken(name, argv), shared, resume=args.resume, **facts)
    print(facts["told"], *left_out.values(), sep="\n", flush=True)
    return book


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


def aim_lines(aims: Sequence[Aim]) -> list[str]:
    """A table of them below an empty line; nothing without any."""
    return ["", *columns(aim_rows(aims))] if aims else []


def spoken(name: str, argv: Sequence[str]) -> str:
    """The command of a benchmark, without paths of this machine and, where it goes on, without what divided it."""
    words, option = [f"python -m scripts.bench {name}"], ""
    left_out = ("--out", "--only", "--resume") if "--resume" in argv else ("--out",)
    apart = (part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word]))
    for word in apart:
        option = word if word.startswith("--") else option
        if option in ("--python", "--nanogpt", "--text"):
            words += [word] if word == option else [option[2:].upper()]
        elif option not in left_out:
            words.append(shlex.quote(word))
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


def subtitle(report: Mapping[str, Any], *told: str) -> str:
    """What is told below the title of a picture: that it was a quick look, if so, and on which hardware."""
    quick = [QUICK] if report["settings"].get("quick") else []
    return "; ".join([*quick, *told, hardware_of(report) or ""])


def without(nanogpt: Path | None) -> dict[str, str]:
    """That nanoGPT is left out, and what would bring it in; nothing when it is there.

    Raises ValueError for a DIR that is no checkout of it.
    """
    if nanogpt is None:
        return {"nanoGPT": "left out  nanoGPT: git clone https://github.com/karpathy/nanoGPT, and --nanogpt DIR"}
    if not (nanogpt / "model.py").is_file():
        raise ValueError(f"--nanogpt {nanogpt}: must be a checkout of https://github.com/karpathy/nanoGPT")
    return {}


def missing(nanogpt: Path | None, python: str, needed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Why a tool is left out, and what would bring it in, by its name; modules `needed` are by their tool."""
    told, absent = without(nanogpt), lacking(python, *(module for modules in needed.values() for module in modules))
    for who, modules in needed.items():
        if gone := [module for module in modules if module in absent]:
            told[who] = f"left out  {who}: python -m pip install {' '.join(gone)}, or --python FILE that has it"
    return told


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
    lines = [line for line in stderr.strip().splitlines() if not line.endswith("nothing was run.")]  # what configs adds
    return (lines or [f"exit code {code}"])[-1][:200]
