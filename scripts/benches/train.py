"""Throughput and memory of a whole training step, beside other tools: `python -m scripts.bench train`.

Forward, loss, backward, clipping and optimizer of a GPT-2-shaped model on random tokens in memory: ours as `train.py`
calls them, nanoGPT, transformers' Trainer and litgpt as their own loops do. Every measurement has a process of its own;
rounds are interleaved. The matrix products that set the limit are measured in each round too.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs import entry

from . import measuring
from .measuring import Notebook, Parser, positive
from .train_pace import Request, Shape

QUICK = {"layers": 2, "dim": 64, "heads": 2, "context": 64, "shapes": ["4x65"], "seconds": 0.2, "repeats": 1}
PEAK = "GEMM"
MEASURED = ("layers", "dim", "heads", "context", "shapes", "seconds", "repeats", "quick")


@dataclass(frozen=True)
class Entrant:
    who: str
    precision: str
    options: dict[str, Any] = field(default_factory=dict)
    on_request: bool = False
    """Measured with `--compiled` alone."""


GPT2, MUON = {"model.preset": "gpt2"}, {"optim.name": "muon"}
ENTRANTS = {
    "ours bf16": Entrant("ours", "auto", GPT2 | {"optim.name": "adamw"}),
    "ours fp32": Entrant("ours", "fp32", GPT2 | {"optim.name": "adamw"}),
    "ours bf16, Muon": Entrant("ours", "auto", GPT2 | MUON),
    "ours fp32, Muon": Entrant("ours", "fp32", GPT2 | MUON),
    "ours bf16, Muon, qwen3": Entrant("ours", "auto", {"model.preset": "qwen3"} | MUON),
    "nanoGPT fp32": Entrant("nanoGPT", "fp32"),
    "nanoGPT bf16": Entrant("nanoGPT", "bf16"),
    "Trainer fp32": Entrant("Trainer", "fp32"),
    "Trainer bf16": Entrant("Trainer", "bf16"),
    "litgpt fp32": Entrant("litgpt", "fp32"),
    "litgpt bf16-mixed": Entrant("litgpt", "bf16-mixed"),
    "litgpt bf16-true": Entrant("litgpt", "bf16-true"),
    "litgpt bf16-mixed, compiled": Entrant("litgpt", "bf16-mixed", {"compile": True}, on_request=True),
    "litgpt bf16-true, compiled": Entrant("litgpt", "bf16-true", {"compile": True}, on_request=True),
    PEAK: Entrant("peak", "fp32"),
}
MODULES = {"Trainer": ("transformers", "accelerate"), "litgpt": ("litgpt", "lightning")}


def rows_by_vocabulary(text: str) -> str:
    rows, _, vocab = text.partition("x")
    return f"{positive(rows)}x{positive(vocab)}"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m scripts.bench train",
        description="Throughput and memory of a whole training step, beside nanoGPT, transformers' Trainer and litgpt.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--layers", type=positive, default=6, metavar="L")
    parser.add_argument("--dim", type=positive, default=384, metavar="D", help="width")
    parser.add_argument("--heads", type=positive, default=6, metavar="H")
    parser.add_argument("--context", type=positive, default=256, metavar="T", help="tokens of a row")
    parser.add_argument("--shapes", type=rows_by_vocabulary, nargs="+", default=["16x65", "4x50304"], metavar="BxV",
                        help="rows of a step and ids of the vocabulary")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="to time the steps of a process for")
    parser.add_argument("--repeats", type=positive, default=3, metavar="R", help="medians are of so many rounds")
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT, which is only read")
    parser.add_argument("--python", default=sys.executable, metavar="FILE", help="interpreter of the other tools")
    parser.add_argument("--compiled", action="store_true", help="litgpt compiled too, as its pretrain.py has it; slow")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="entrants whose name contains one of these words")
    parser.add_argument("--resume", action="store_true", help="go on with the report that is there, and add to it")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR",
                        help="where bench_train.json and bench_train.png go")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a tiny shape once, for a first look")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(argv)


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    left_out = missing(args.nanogpt, args.python)
    names = [
        name for name, entrant in ENTRANTS.items()
        if entrant.who not in left_out and (args.compiled or not entrant.on_request)
        and (name == PEAK or not args.only or any(word in name for word in args.only))
    ]  # fmt: skip
    if names == [PEAK]:
        raise ValueError(f"--only: there are {', '.join(set(ENTRANTS) - {PEAK})}")
    from .train_report import draw, tables

    settings = {name: getattr(args, name) for name in MEASURED}
    facts = measuring.surroundings("cpu") | {"left_out": left_out}
    book = Notebook(
        args.out / "bench_train.json", measuring.spoken("train", argv), settings, resume=args.resume, **facts
    )  # fmt: skip
    print(facts["told"], *left_out.values(), sep="\n", flush=True)
    for shape in args.shapes:
        rows, _, vocab = shape.partition("x")
        size = Shape(args.layers, args.dim, args.heads, args.context, int(rows), int(vocab))
        for turn, name in measuring.rounds(names, args.repeats):
            if book.wants(shape, name, turn):
                answer = asked(name, size, args)
                book.add(shape, name, answer)
                told = answer.get("failed") or (f"{answer['tokens_per_s']:,.0f} tokens/s" if name != PEAK else "done")
                print(f"[{turn + 1}/{args.repeats}] {shape} {name}: {told}", file=sys.stderr, flush=True)
    print(*tables(book.report), f"files   {args.out}/bench_train.json and .png", sep="\n")
    draw(book.report, args.out / "bench_train.png")


def missing(nanogpt: Path | None, python: str) -> dict[str, str]:
    """Why a tool is left out, and what would bring it in, by its name. Raises ValueError for a DIR that is none."""
    told = {}
    if nanogpt is None:
        told["nanoGPT"] = "left out  nanoGPT: git clone https://github.com/karpathy/nanoGPT, and --nanogpt DIR"
    elif not (nanogpt / "model.py").is_file():
        raise ValueError(f"--nanogpt {nanogpt}: must be a checkout of https://github.com/karpathy/nanoGPT")
    absent = measuring.lacking(python, *(module for modules in MODULES.values() for module in modules))
    for who, modules in MODULES.items():
        if gone := [module for module in modules if module in absent]:
            told[who] = f"left out  {who}: python -m pip install {' '.join(gone)}, or --python FILE that has it"
    return told


def asked(name: str, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """The answer of a new process to one measurement."""
    entrant = ENTRANTS[name]
    ours = entrant.who in ("ours", "peak")
    options = entrant.options | ({"path": str(args.nanogpt.resolve())} if entrant.who == "nanoGPT" else {})
    request = Request(entrant.who, entrant.precision, shape, args.seconds, options)
    module = f"scripts.benches.train_{'ours' if ours else 'peers'}"
    return measuring.ask(module, request.words(), python=sys.executable if ours else args.python)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
