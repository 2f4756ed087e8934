"""Time to a stated validation loss, beside nanoGPT: `python -m scripts.bench speedrun`.

The wall time of whole processes, from start to exit. Ours: `train.py configs/speedrun.yaml`, each round with another
seed, on a prepared corpus and from the bare text. Against it nanoGPT's README recipe for a CPU as written, on data that
was prepared before; the same under bf16; and, with `--sweep`, under bf16 with the rate that needs the fewest
iterations. Their loss is then measured over the whole validation text in a process that is not timed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs import entry, load

from . import measuring
from .measuring import ROOT, Notebook, Parser
from .speedrun_nanogpt import OUT, README, command, copied

RECIPE = "configs/speedrun.yaml"
TARGET = 1.903
"""Nats per character over the whole validation split: what nanoGPT's README recipe ends with."""
SEED = 1337
WALL, SWEEP = "wall", "sweep"
PREPARED, FIRST = "ours, corpus prepared", "ours, first start"
AS_WRITTEN, BF16, TUNED = "nanoGPT, README", "nanoGPT, README, bf16", "nanoGPT, bf16, best rate"
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
ITERATIONS = (500, 750, 1000, 1500, 2000)
QUICK_OURS = ("train.steps=4", "eval.every=4", "save.every=4", "schedule.warmup=1")
QUICK_THEIRS = {"max_iters": 4, "lr_decay_iters": 4, "eval_interval": 4, "eval_iters": 1}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("speedrun", f"Wall time of whole processes to a validation nll of {TARGET}, beside nanoGPT.")
    parser.add_rounds()
    parser.add_peers()
    parser.add_argument("--sweep", action="store_true", help="look for nanoGPT's best rate first; up to 10 minutes")
    parser.add_only("entrants")
    parser.add_text()
    parser.add_report("bench_speedrun.json and bench_speedrun.png")
    return parser.parse(argv, {"repeats": 1}, "a few steps of each, once; says nothing about the loss")


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    wanted = measuring.asked_for((PREPARED, FIRST, AS_WRITTEN, BF16, TUNED), args.only)
    left_out = measuring.without(args.nanogpt)
    if left_out and not {PREPARED, FIRST} & {*wanted}:
        raise ValueError(*left_out.values())
    text = corpus(args.text)
    from .speedrun_report import draw, tables

    book = measuring.open_book("speedrun", argv, args, ("repeats", "quick", "text"), left_out)
    with tempfile.TemporaryDirectory(prefix="thimble-bench-") as folder:
        runners = our_runners(Path(folder), args)
        if args.nanogpt:
            runners |= their_runners(Path(folder), text, args, book, swept=args.sweep and TUNED in wanted)
        names = [name for name in wanted if name in runners]
        for turn, name in measuring.rounds(names, args.repeats):
            if book.wants(WALL, name, turn):
                book.add(WALL, name, runners[name](turn))
                tell(f"[{turn + 1}/{args.repeats}] {name}", book.of(WALL, name)[-1])
    book.finish()
    print(*tables(book.report), f"files   {args.out}/bench_speedrun.json and .png", sep="\n")
    draw(book.report, args.out / "bench_speedrun.png")


def tell(what: str, answer: dict[str, Any]) -> None:
    told = answer.get("failed") or f"{answer['seconds']:.2f} s, nll {answer['nll']:.4f}"
    print(f"{what}: {told}", file=sys.stderr, flush=True)


def corpus(other: Path | None = None) -> Path:
    """The recipe's text, or `other`. Raises ValueError when it is not there, saying where to get the recipe's."""
    if other is not None:
        if not other.is_file():
            raise ValueError(f"--text {other}: there is no such file")
        return other.absolute()
    source = next(iter(load(str(ROOT / RECIPE)).data.sources.values()))
    path = ROOT / (source.files or ("",))[0]
    if not path.is_file():
        file = path.relative_to(ROOT)
        raise ValueError(f"{file} is missing" + f": curl --create-dirs -o {file} {source.origin}" * bool(source.origin))
    return path


def read_from(text: Path | None) -> tuple[str, ...]:
    """The override that makes the recipe read another text, if any."""
    if text is None:
        return ()
    source = {"kind": "text", "files": [str(text.absolute())]}
    return (f"data.sources={json.dumps({'text': source})}",)


def timed(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Seconds of a process from start to exit, or why it `failed`."""
    start = time.perf_counter()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds} if not done.returncode else {
        "failed": measuring.last_words(done.returncode, done.stderr)
    }  # fmt: skip


def our_runners(folder: Path, args: argparse.Namespace) -> dict[str, Callable[[int], dict[str, Any]]]:
    """Our entrants: what takes the number of a round and answers."""
    prepared, changes = folder / "corpora", (*read_from(args.text), *(QUICK_OURS if args.quick else ()))

    def run(name: str, turn: int, corpora: Path) -> dict[str, Any]:
        words = [sys.executable, "train.py", RECIPE, f"run.name={name}-{turn}", f"run.dir={folder / 'runs'}",
                 f"run.seed={SEED + turn}", f"data.dir={corpora}", *changes, "--restart"]  # fmt: skip
        return timed(words, ROOT) | {"seed": SEED + turn} | final(folder / "runs" / f"{name}-{turn}")

    def start(turn: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            return run("first", turn, Path(empty))

    def go(turn: int) -> dict[str, Any]:
        words = [sys.executable, "-m", "scripts.prepare", RECIPE, f"data.dir={prepared}", *changes]
        if not prepared.is_dir() and "failed" in (answer := timed(words, ROOT)):
            return answer
        return run("prepared", turn, prepared)

    return {PREPARED: go, FIRST: start}


def final(run: Path) -> dict[str, Any]:
    """What a run of ours ended with; the last evaluation is over the whole validation split."""
    try:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except OSError:
        return {}
    nlls, last = [row["val/nll"] for row in rows if "val/nll" in row], rows[-1] if rows else {}
    return ({"nll": nlls[-1]} if nlls else {}) | {"steps": last.get("step"), "training": last.get("time/elapsed")}


def their_runners(
    folder: Path, text: Path, args: argparse.Namespace, book: Notebook, *, swept: bool
) -> dict[str, Callable[[int], dict[str, Any]]]:
    """nanoGPT's entrants, in copies of its checkout."""
    plain = copied(args.nanogpt, folder / "nanogpt", text, autocast=False)
    mixed = copied(args.nanogpt, folder / "nanogpt-bf16", text, autocast=True)
    few = QUICK_THEIRS if args.quick else {}

    def run(place: Path, **changes: Any) -> dict[str, Any]:
        words = command(args.python, **changes | few)
        (place / OUT / "ckpt.pt").unlink(missing_ok=True)  # one that diverges saves none
        answer = timed(words, place) | {"steps": (README | changes | few)["max_iters"]}
        return answer if "failed" in answer else answer | measuring.ask(
            "scripts.benches.speedrun_nanogpt", str(place), python=args.python
        )  # fmt: skip

    def tuned(iterations: int, rate: float) -> dict[str, Any]:
        return run(
            mixed, dtype="bfloat16", max_iters=iterations, lr_decay_iters=iterations, learning_rate=rate,
            min_lr=rate / 10,
        )  # fmt: skip

    found = {AS_WRITTEN: lambda _: run(plain), BF16: lambda _: run(mixed, dtype="bfloat16")}
    if swept:
        sweep(tuned, book, ITERATIONS[:1] if args.quick else ITERATIONS)
    if (best := chosen(book.report)) is not None:
        found[TUNED] = lambda _: tuned(*best) | {"rate": best[1]}
    return found


def sweep(tuned: Callable[[int, float], dict[str, Any]], book: Notebook, iterations: Sequence[int]) -> None:
    """Every rate at ever more iterations, until one reaches the target."""
    for count in iterations:
        for rate in RATES:
            name = f"{count} x {rate:g}"
            if book.wants(SWEEP, name, 0):
                book.add(SWEEP, name, tuned(count, rate) | {"iterations": count, "rate": rate})
                tell(f"sweep, {name}", book.of(SWEEP, name)[-1])
        if chosen(book.report) is not None:
            return


def chosen(report: dict[str, Any]) -> tuple[int, float] | None:
    """(iterations, rate) of the sweep: the fewest that reach the target, and the rate that does it best."""
    tried = [answer for answers in report["answers"].get(SWEEP, {}).values() for answer in answers if "nll" in answer]
    good = [(a["iterations"], a["nll"], a["rate"]) for a in tried if a["nll"] <= TARGET or report["settings"]["quick"]]
    return (min(good)[0], min(good)[2]) if good else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
