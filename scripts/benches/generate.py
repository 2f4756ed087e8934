"""Tokens per second of generation, beside other tools: `python -m scripts.bench generate`.

The same random weights in ours, transformers and nanoGPT, each in a process of its own, in interleaved rounds: a prompt
of 32 ids and 200 more, greedily. What is written in fp32 must be the same ids. How fast the machine reads memory, which
every step has to do, is measured in each round too.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import entry

from . import measuring
from .generate_contest import Request
from .measuring import Aim, Parser, aim_lines, columns, failures, medians, positive, spread, subtitle
from .picture import Bar, rate_panels

QUICK = {
    "layers": 2, "dim": 32, "heads": 2, "context": 48, "vocab": 61, "prompt": 8, "tokens": 12, "rows": [1, 3],
    "repeats": 1, "calls": 1,
}  # fmt: skip
MEASURED = ("presets", *QUICK, "quick")
MEMORY, OURS, PEER = "memory", "ours fp32", "transformers fp32"
ENTRANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours fp32": ("ours", {}),
    "ours bf16": ("ours", {"weights": "bf16"}),
    "ours int8": ("ours", {"weights": "int8"}),
    "transformers fp32": ("transformers", {}),
    "transformers fp32, static cache": ("transformers", {"cache_implementation": "static"}),
    "transformers bf16": ("transformers", {"dtype": "bfloat16"}),
    "nanoGPT fp32": ("nanoGPT", {}),
    MEMORY: ("memory", {}),
}
AIM, AIM_ANY = 3.0, 5.0
"""What this project aims at for one row: ours in times of transformers, the best of each in fp32, and of all, where
ours may round its weights to what transformers has no form of on a CPU."""
NOTES = """\
tokens/s  new ids of all rows over the time of the whole call, the prompt and all that is made for it included
same ids  of all rows' new ids, the share before the first that is not that of `ours fp32`
of limit  tokens/s as a share of what memory allows: bytes that a step reads (weights in that precision, the cache in
          fp32) at the bandwidth of a tensor that no cache holds; small weights stay in caches, and may exceed it"""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("generate", "Tokens per second of generation, beside transformers and nanoGPT.")
    parser.add_argument("--presets", nargs="+", choices=("qwen3", "llama", "gpt2"), default=["qwen3", "gpt2"])
    parser.add_shape()
    parser.add_argument("--vocab", type=positive, default=4096, metavar="V", help="ids of the vocabulary")
    parser.add_argument("--prompt", type=positive, default=32, metavar="N", help="ids of the prompt")
    parser.add_argument("--tokens", type=positive, default=200, metavar="N", help="ids to write")
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 8], metavar="B", help="prompts at once")
    parser.add_rounds()
    parser.add_argument("--calls", type=positive, default=3, metavar="N", help="timed in each process")
    parser.add_peers()
    parser.add_report("bench_generate.json and bench_generate.png")
    args = parser.parse(argv, QUICK, "a tiny shape once, for a first look")
    if args.prompt + args.tokens > args.context:
        raise ValueError(f"--prompt {args.prompt} and --tokens {args.tokens}: more ids than --context {args.context}")
    return args


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    left_out = measuring.missing(args.nanogpt, args.python, {"transformers": ["transformers"]})
    book = measuring.open_book("generate", argv, args, MEASURED, left_out)
    for preset in args.presets:
        names = [
            name for name, (who, _) in ENTRANTS.items()
            if who not in left_out and (who != "nanoGPT" or preset == "gpt2")
        ]  # fmt: skip
        for turn, name in measuring.rounds(names, args.repeats):
            if book.wants(preset, name, turn):
                answer = asked(name, preset, args)
                book.add(preset, name, answer)
                found = [f"{answer[str(n)]['tokens_per_s']:,.0f}" for n in args.rows if str(n) in answer]
                told = answer.get("failed") or f"{' and '.join(found)} tokens/s" * bool(found) or "done"
                print(f"[{turn + 1}/{args.repeats}] {preset} {name}: {told}", file=sys.stderr, flush=True)
    book.finish()
    print(*tables(book.report), f"files   {args.out}/bench_generate.json and .png", sep="\n")
    draw(book.report, args.out / "bench_generate.png")


def asked(name: str, preset: str, args: argparse.Namespace) -> dict[str, Any]:
    """The answer of a new process to one measurement."""
    who, options = ENTRANTS[name]
    options = options | ({"path": str(args.nanogpt.resolve())} if who == "nanoGPT" else {})
    shape = {key: getattr(args, key) for key in QUICK if key != "repeats"}
    request = Request(who=who, preset=preset, options=options, **shape)
    python = sys.executable if who in ("ours", "memory") else args.python
    return measuring.ask("scripts.benches.generate_contest", request.words(), python=python)


def speeds(report: dict[str, Any], preset: str, rows: int) -> dict[str, float]:
    """Median tokens per second of each entrant; without those in fp32 that wrote another text than ours."""
    answers = report["answers"].get(preset, {})
    flat = {
        name: [each.get(str(rows), each) for each in found] for name, found in answers.items() if name != MEMORY
    }  # fmt: skip
    wrong = differing(report, preset, rows)
    return {name: rate for name, rate in medians(flat, "tokens_per_s").items() if name not in wrong}


def differing(report: dict[str, Any], preset: str, rows: int) -> list[str]:
    """Those in fp32 that wrote another text than ours."""
    names = [name for name in report["answers"].get(preset, {}) if "fp32" in name]
    return [name for name in names if same(report, preset, rows, name) not in (None, 1.0)]


def same(report: dict[str, Any], preset: str, rows: int, name: str) -> float | None:
    """The share of an entrant's ids that come before a row's first difference from ours in fp32."""
    answers = report["answers"].get(preset, {})
    pair = [each for who in (OURS, name) for each in answers.get(who, [])[:1]]
    ids = [each[str(rows)]["ids"] for each in pair if str(rows) in each]
    if len(ids) < 2:
        return None
    alike = 0
    for wanted, found in zip(*ids, strict=True):
        pairs = [a == b for a, b in zip(wanted, found, strict=True)]
        alike += pairs.index(False) if False in pairs else len(pairs)
    return alike / sum(map(len, ids[0]))


def limits(report: dict[str, Any], preset: str) -> dict[str, tuple[float, float]]:
    """By precision, tokens per second that memory allows for one row: at the bandwidth of a large tensor, and of one
    that is as large as what a step reads."""
    found = [each for each in report["answers"].get(preset, {}).get(MEMORY, []) if "failed" not in each]
    if not found:
        return {}
    large = max(each["large"] for each in found)
    return {
        name: (large / found[0][name]["bytes"], max(each[name]["per_s"] for each in found) / found[0][name]["bytes"])
        for name in ("fp32", "bf16", "int8")
    }


def table(report: dict[str, Any], preset: str, rows: int) -> list[tuple[str, ...]]:
    """A row for each entrant, the fastest first."""
    found, allowed = speeds(report, preset, rows), limits(report, preset)
    answers, base = report["answers"].get(preset, {}), found.get(PEER)
    lines: list[tuple[str, ...]] = [("", "tokens/s", "spread", f"of {PEER}", "same ids", "of limit")]
    for name, rate in sorted(found.items(), key=lambda item: -item[1]):
        apart = spread([each[str(rows)]["tokens_per_s"] for each in answers[name]])
        alike, precision = same(report, preset, rows, name), name.split()[1].rstrip(",")
        share = f"{rate / allowed[precision][0]:.0%}" if rows == 1 and precision in allowed else "-"
        times = f"{rate / base:.2f}x" if base else "-"
        lines.append((name, f"{rate:,.0f}", f"{apart:.0%}", times, "-" if alike is None else f"{alike:.0%}", share))
    return lines


def aims(report: dict[str, Any], preset: str) -> list[Aim]:
    """For one row, at the default shape."""
    found = speeds(report, preset, 1)

    def best(start: str) -> str:
        return max((name for name in found if name.startswith(start)), key=found.__getitem__, default="")

    if report["settings"]["quick"] or not best(PEER) or OURS not in found:
        return []
    pairs = [(OURS, best(PEER), AIM), (best("ours"), best("transformers"), AIM_ANY)]
    return [
        Aim(f"{preset}, 1 prompt: {ours} / {theirs}", wanted, found[ours] / found[theirs])
        for ours, theirs, wanted in pairs
    ]


def tables(report: dict[str, Any]) -> list[str]:
    """Lines of all that was measured."""
    settings, lines = report["settings"], list[str]()
    for preset in settings["presets"]:
        for rows in settings["rows"]:
            many = "1 prompt" if rows == 1 else f"{rows} prompts"
            lines += ["", f"{preset}, {many}: {told(report, preset)}", *columns(table(report, preset, rows))]
            lines += [f"wrong   {name}: another text than ours" for name in differing(report, preset, rows)]
    lines += ["", *_memory(report)]
    lines += aim_lines([aim for preset in settings["presets"] for aim in aims(report, preset)])
    return [*lines, "", *NOTES.splitlines(), *failures(report)]


def told(report: dict[str, Any], preset: str) -> str:
    settings, answers = report["settings"], report["answers"].get(preset, {})
    counts = [each["parameters"] for found in answers.values() for each in found if "parameters" in each]
    size = f"{counts[0] / 1e6:.1f} M parameters, " if counts else ""
    shape = f"{settings['layers']} layers, {settings['dim']} wide, {settings['vocab']:,} ids"
    return f"{size}{shape}; {settings['tokens']} ids after {settings['prompt']}"


def _memory(report: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [("limit for 1 prompt", "MB a step", "from memory", "GB/s", "read again", "GB/s")]
    for preset in report["settings"]["presets"]:
        answers = [each for each in report["answers"].get(preset, {}).get(MEMORY, []) if "failed" not in each]
        for name, (far, near) in limits(report, preset).items():
            count = answers[0][name]["bytes"]
            rows.append((
                f"{preset} {name}", f"{count / 1e6:.1f}", f"{far:,.0f} tokens/s", f"{far * count / 1e9:.0f}",
                f"{near:,.0f} tokens/s", f"{near * count / 1e9:.0f}",
            ))  # fmt: skip
    return columns(rows)


def draw(report: dict[str, Any], path: Path) -> None:
    """The picture: tokens per second of everyone, and the limit that memory sets."""
    settings = report["settings"]
    panels = {}
    for preset in settings["presets"]:
        for rows in settings["rows"]:
            found = sorted(speeds(report, preset, rows).items(), key=lambda item: -item[1])
            panels[f"{preset}, {rows} prompt{'s' * (rows > 1)}"] = [
                Bar(name, rate, name.startswith("ours")) for name, rate in found
            ]
    what = subtitle(report, f"greedy; {told(report, settings['presets'][0])}")
    rate_panels(panels, path, "Generation, tokens per second", what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
