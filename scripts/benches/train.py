"""Throughput and memory of a whole training step, beside other tools: `python -m scripts.bench train`.

Forward, loss, backward, clipping and optimizer of a GPT-2-shaped model on random tokens in memory: ours as `train.py`
calls them, nanoGPT, transformers' Trainer and litgpt as their own loops do. Every measurement has a process of its own;
rounds are interleaved. The matrix products that set the limit are measured in each round too.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from configs import entry

from . import measuring
from .measuring import Parser, positive
from .train_pace import Request, Shape

ON_GPU = {"layers": 12, "dim": 768, "heads": 12, "context": 1024, "shapes": ["32x50304"]}
"""The defaults there: GPT-2 of 124M parameters."""
QUICK = {"layers": 2, "dim": 64, "heads": 2, "context": 64, "shapes": ["4x65"], "seconds": 0.2, "repeats": 1}
PEAK = "GEMM"
MEASURED = ("layers", "dim", "heads", "context", "shapes", "seconds", "repeats", "device", "choices", "quick")


@dataclass(frozen=True)
class Entrant:
    who: str
    precision: str
    options: dict[str, Any] = field(default_factory=dict)


DECAY = {"optim.weight_decay": 0.1}  # as the peers'
GELU = "erf"  # nanoGPT's; the peers are told the same
COMPILED = {"compile": True}
OURS_COMPILED, EAGER = {"train.compile": "true"}, {"train.compile": "false"}
GPT2, MUON = DECAY | {"model.preset": "gpt2", "model.gelu": GELU}, DECAY | {"optim.name": "muon"}
ENTRANTS = {
    "ours bf16": Entrant("ours", "bf16", GPT2 | {"optim.name": "adamw"}),
    "ours bf16, compiled": Entrant("ours", "bf16", GPT2 | OURS_COMPILED | {"optim.name": "adamw"}),
    "ours fp32": Entrant("ours", "fp32", GPT2 | {"optim.name": "adamw"}),
    "ours bf16, Muon": Entrant("ours", "bf16", GPT2 | MUON),
    "ours fp32, Muon": Entrant("ours", "fp32", GPT2 | MUON),
    "ours bf16, Muon, qwen3": Entrant("ours", "bf16", {"model.preset": "qwen3"} | MUON),
    "ours bf16, Muon, qwen3, compiled": Entrant("ours", "bf16", {"model.preset": "qwen3"} | OURS_COMPILED | MUON),
    "nanoGPT fp32": Entrant("nanoGPT", "fp32"),
    "nanoGPT bf16": Entrant("nanoGPT", "bf16"),
    "nanoGPT bf16, compiled": Entrant("nanoGPT", "bf16", COMPILED),
    "Trainer fp32": Entrant("Trainer", "fp32"),
    "Trainer bf16": Entrant("Trainer", "bf16"),
    "Trainer bf16, compiled": Entrant("Trainer", "bf16", COMPILED),
    "litgpt fp32": Entrant("litgpt", "fp32"),
    "litgpt bf16-mixed": Entrant("litgpt", "bf16-mixed"),
    "litgpt bf16-true": Entrant("litgpt", "bf16-true"),
    "litgpt bf16-mixed, compiled": Entrant("litgpt", "bf16-mixed", COMPILED),
    "litgpt bf16-true, compiled": Entrant("litgpt", "bf16-true", COMPILED),
    PEAK: Entrant("peak", "fp32"),
}
GPU_ENTRANTS = {
    **{name: ENTRANTS[name] for name in ("ours bf16", "ours bf16, Muon", "ours bf16, Muon, qwen3")},
    "ours bf16, eager": Entrant("ours", "bf16", GPT2 | EAGER | {"optim.name": "adamw"}),
    **{name: entrant for name, entrant in ENTRANTS.items() if entrant.options == COMPILED},
    **{name: ENTRANTS[name] for name in ("Trainer bf16", PEAK)},
}
"""Everyone by the defaults of their own on a GPU, and some others."""
DOCUMENTS = {"length": 256}
"""Tokens of a document, where rows hold several."""
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "train.compile=false": EAGER,
    "train.precision=fp32": {"train.precision": "fp32"},
    "train.precision=fp32 run.deterministic=true": {"train.precision": "fp32", "run.deterministic": "true"},
    "documents of 256 tokens": DOCUMENTS,
    "documents, train.compile=false": DOCUMENTS | EAGER,
    "optim.name=adamw": {"optim.name": "adamw"},
    "loss.fused=off": {"loss.fused": "off"},
    "train.activation_checkpointing=true": {"train.activation_checkpointing": "true"},
    "train.fp8=true": {"train.fp8": "true"},
}
CHOICES = {
    name: Entrant("ours", "fp32" if "train.precision" in changes else "bf16", changes)
    for name, changes in CHANGES.items()
} | {PEAK: ENTRANTS[PEAK]}
"""What a run chooses by default, and instead."""
MODULES = {"Trainer": ("transformers", "accelerate"), "litgpt": ("litgpt", "lightning")}


def rows_by_vocabulary(text: str) -> str:
    rows, cross, vocab = text.partition("x")
    if not cross:
        raise argparse.ArgumentTypeError(f"{text!r} is not rows and ids of a vocabulary, such as 16x65")
    return f"{positive(rows)}x{positive(vocab)}"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "train",
        "Throughput and memory of a whole training step, beside nanoGPT, transformers' Trainer and litgpt.",
    )
    parser.add_shape()
    parser.add_argument("--shapes", type=rows_by_vocabulary, nargs="+", default=["16x65", "4x50304"], metavar="BxV",
                        help="rows of a step and ids of the vocabulary")  # fmt: skip
    parser.add_seconds(5.0)
    parser.add_rounds()
    parser.add_peers()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="on cuda the default shape is larger")
    parser.add_argument("--choices", action="store_true", help="ours alone, by default and with other choices")
    parser.add_only("entrants")
    parser.add_report("bench_train.json and .png, or bench_choices.json and .png,")
    return parser.parse(argv, QUICK, "a tiny shape once, for a first look", ON_GPU)


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    left_out = {} if args.choices else measuring.missing(args.nanogpt, args.python, MODULES)
    entrants = CHOICES if args.choices else GPU_ENTRANTS if args.device == "cuda" else ENTRANTS
    names = measuring.asked_for([name for name in entrants if name != PEAK], args.only)
    wanted, names = names, [name for name in names if entrants[name].who not in left_out]
    if not names:
        raise ValueError("\n".join(left_out[who] for who in dict.fromkeys(entrants[name].who for name in wanted)))
    from .train_report import draw, tables

    file = "choices" if args.choices else "train"
    book = measuring.open_book("train", argv, args, MEASURED, left_out, file=file)
    book.report["gelu"] = GELU
    for shape in args.shapes:
        rows, _, vocab = shape.partition("x")
        size = Shape(args.layers, args.dim, args.heads, args.context, int(rows), int(vocab))
        for turn, name in measuring.rounds([*names, PEAK], args.repeats):
            if book.wants(shape, name, turn):
                answer = asked(entrants[name], size, args)
                book.add(shape, name, answer)
                told = answer.get("failed") or (f"{answer['tokens_per_s']:,.0f} tokens/s" if name != PEAK else "done")
                print(f"[{turn + 1}/{args.repeats}] {shape} {name}: {told}", file=sys.stderr, flush=True)
    book.finish()
    print(*tables(book.report), f"files   {args.out}/bench_{file}.json and .png", sep="\n")
    draw(book.report, args.out / f"bench_{file}.png")


def asked(entrant: Entrant, shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    """The answer of a new process to one measurement."""
    ours = entrant.who in ("ours", "peak")
    options = entrant.options | ({"path": str(args.nanogpt.resolve())} if entrant.who == "nanoGPT" else {})
    request = Request(entrant.who, entrant.precision, shape, args.seconds, options, args.device)
    module = f"scripts.benches.train_{'ours' if ours else 'peers'}"
    return measuring.ask(module, request.words(), python=sys.executable if ours else args.python)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
