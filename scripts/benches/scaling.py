"""How speed and memory scale: `python -m scripts.bench scaling`.

`shapes`: tokens per second and memory of a training step against width, depth, context, vocabulary and batch, one at a
time around a middle shape. `ranks`: two processes of one thread beside one process of two. `corpus`: what a token costs
as the corpus grows. Every measurement has a process of its own.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from configs import entry

from . import measuring
from .measuring import Notebook, Parser, positive
from .train_pace import Request, Shape

PARTS = ("shapes", "ranks", "corpus")
MIDDLE = Shape(layers=4, dim=256, heads=4, context=256, rows=8, vocab=4096)
AXES: dict[str, tuple[int, ...]] = {
    "dim": (128, 256, 512, 1024),
    "layers": (1, 2, 4, 8, 16),
    "context": (64, 128, 256, 512, 1024),
    "vocab": (256, 4096, 16384, 50304),
    "rows": (1, 2, 4, 8, 16, 32),
}
HEAD = 64  # width of a head, when the width grows
GEMM = "GEMM"
TEN_MILLION = Shape(layers=6, dim=384, heads=6, context=256, rows=16, vocab=65)
ONE, TWO = "1 rank x 2 threads", "2 ranks x 1 thread"
MEGABYTES = (1, 10, 100, 1000)
WITH_CORPUS = Shape(layers=2, dim=128, heads=2, context=256, rows=16, vocab=257)
QUICK_SHAPE = {"layers": 1, "dim": 64, "heads": 1, "context": 32, "rows": 2}
QUICK = {"seconds": 0.05, "repeats": 1, "megabytes": [1]}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "scaling", "How speed and memory scale with the shape of the model, processes and the size of the corpus."
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_seconds(3.0)
    parser.add_rounds()
    parser.add_argument("--megabytes", type=positive, nargs="+", default=list(MEGABYTES), metavar="MB",
                        help="of tokens on disk")  # fmt: skip
    parser.add_report("bench_scaling.json and bench_scaling.png")
    return parser.parse(argv, QUICK, "tiny sizes once, for a first look")


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    from .scaling_report import draw, tables

    book = measuring.open_book("scaling", argv, args, ("seconds", "repeats", "megabytes", "quick"), {})
    for part in PARTS:
        if part in args.only:
            {"shapes": shapes, "ranks": ranks, "corpus": corpus}[part](book, args)
    book.finish()
    print(*tables(book.report), f"files   {args.out}/bench_scaling.json and .png", sep="\n")
    draw(book.report, args.out / "bench_scaling.png")


def note(book: Notebook, part: str, name: str, turn: int, answer: dict[str, Any]) -> None:
    book.add(part, name, answer)
    told = answer.get("failed", "done")
    if "tokens_per_s" in answer:
        told = f"{answer['tokens_per_s']:,.0f} tokens/s"
    print(f"[{turn + 1}/{book.report['settings']['repeats']}] {part}, {name}: {told}", file=sys.stderr, flush=True)


def middle(quick: bool) -> Shape:
    return dataclasses.replace(MIDDLE, **QUICK_SHAPE) if quick else MIDDLE


def line(axis: str, quick: bool) -> dict[str, Shape]:
    """The shapes of an axis by their names; with `quick` two of them, the middle and a smaller or bigger one."""
    center, found = middle(quick), {}
    values = sorted({getattr(center, axis), 2 * getattr(center, axis)}) if quick else AXES[axis]
    for value in values:
        shape = dataclasses.replace(center, **{axis: value})
        if axis == "dim":
            shape = dataclasses.replace(shape, heads=value // HEAD)
        found[name_of(shape)] = shape
    return found


def name_of(shape: Shape) -> str:
    return f"L{shape.layers} D{shape.dim} T{shape.context} B{shape.rows} V{shape.vocab}"


def shapes(book: Notebook, args: argparse.Namespace) -> None:
    """Every shape of every axis, the middle one once."""
    every = {name: shape for axis in AXES for name, shape in line(axis, args.quick).items()}
    for turn, name in measuring.rounds([*every, GEMM], args.repeats):
        if book.wants("shapes", name, turn):
            who, shape = ("peak", middle(args.quick)) if name == GEMM else ("ours", every[name])
            words = Request(who, "auto", shape, args.seconds, {"model.preset": "qwen3"}).words()
            note(book, "shapes", name, turn, measuring.ask("scripts.benches.train_ours", words))


def ranks(book: Notebook, args: argparse.Namespace) -> None:
    """The same rows a step, by one process or two."""
    shape = dataclasses.replace(TEN_MILLION, **QUICK_SHAPE) if args.quick else TEN_MILLION
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "scripts.benches.train_ours")
    threads, asked = {ONE: 2, TWO: 1}, {}
    for name, count in threads.items():
        options = {"model.preset": "qwen3", "run.threads": count}
        begin = torchrun if name == TWO else ("scripts.benches.train_ours",)
        asked[name] = (*begin, Request("ours", "auto", shape, args.seconds, options).words())
    for turn, name in measuring.rounds([ONE, TWO], args.repeats):
        if book.wants("ranks", name, turn):
            environment = {"OMP_NUM_THREADS": str(threads[name])}
            note(book, "ranks", name, turn, measuring.ask(*asked[name], environment=environment))


def corpus(book: Notebook, args: argparse.Namespace) -> None:
    """A corpus of each size is made once, and measured once a round."""
    shape = dataclasses.replace(WITH_CORPUS, layers=1, dim=64, heads=1) if args.quick else WITH_CORPUS
    with tempfile.TemporaryDirectory(prefix="thimble-bench-") as temporary:
        for size in args.megabytes:
            folder, name = f"{temporary}/{size}", f"{size} MB"
            if not any(book.wants("corpus", name, turn) for turn in range(args.repeats)):
                continue
            made = asked(part="make", folder=folder, nbytes=size * 10**6)
            for turn in range(args.repeats):
                if book.wants("corpus", name, turn):
                    answer = made if "failed" in made else made | asked(
                        part="measure", folder=folder, seconds=args.seconds, shape=dataclasses.asdict(shape)
                    )  # fmt: skip
                    note(book, "corpus", name, turn, answer)
            shutil.rmtree(folder, ignore_errors=True)


def asked(**words: Any) -> dict[str, Any]:
    return measuring.ask("scripts.benches.scaling_corpus", json.dumps(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
