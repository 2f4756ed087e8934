"""Time and peak memory of a head and its loss: `python -m scripts.bench loss`.

Forward and backward of ours, fused and reference, beside `F.linear` + `F.cross_entropy` (plain),
`F.linear_cross_entropy` and, where it is installed and there is a GPU, liger-kernel. Every measurement has a process
of its own. On two CPU cores the default sizes take about half an hour, `--quick` two minutes.
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import entry
from durable import atomic_write

from . import measuring
from .measuring import Parser, positive

if TYPE_CHECKING:
    from .loss_contest import Case

Row = dict[str, Any]  # one measurement of one case

QUICK = {"rows": 512, "vocab": [10000], "repeats": 3, "memory_rows": 1024}


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number in [0, 1)")
    return value


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("loss", "Time and peak memory of forward and backward of a head and its loss.")
    parser.add_argument("--rows", type=positive, default=2048, metavar="N", help="targets")
    parser.add_argument("--width", type=positive, default=512, metavar="H", help="width of the hidden states")
    parser.add_argument("--vocab", type=positive, nargs="+", default=[10000, 50304], metavar="V", help="vocabularies")
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"], help="of products")
    parser.add_argument("--eps", type=share, nargs="+", default=[0.0, 0.1], metavar="E", help="label smoothing")
    parser.add_argument("--repeats", type=positive, default=5, metavar="K", help="medians are of so many")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="auto: cuda if there is one")
    parser.add_argument("--threads", type=positive, metavar="T", help="of the CPU; None: what torch takes by itself")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory too")
    parser.add_argument("--memory-rows", type=positive, default=8192, metavar="N", help="targets of the memory part")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR",
                        help="where bench_loss.json and bench_loss.png go")  # fmt: skip
    return parser.parse(argv, QUICK, "small sizes, for a first look")


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    from .loss_contest import Case, check
    from .loss_report import draw, label, notes, tables

    facts = measuring.surroundings(args.device, args.threads)
    print(facts["told"], flush=True)
    each = itertools.product(*map(dict.fromkeys, (args.dtype, args.vocab, args.eps)))
    cases = [Case(args.rows, args.width, vocab, dtype, eps, facts["device"]) for dtype, vocab, eps in each]
    checks = {(dtype, eps): check(replace(case, dtype=dtype, eps=eps)) for case in cases[:1]
              for dtype in args.dtype for eps in args.eps}  # fmt: skip
    report: dict[str, Any] = {
        **facts, "settings": {**vars(args), "out": str(args.out)}, "time": [], "memory": [],
        "checks": [{"dtype": dtype, "eps": eps, "entrants": found} for (dtype, eps), found in checks.items()],
    }  # fmt: skip
    kinds = ["cuda"] if facts["device"] == "cuda" else ["default", "kept"]
    jobs = [("time", case, kind) for case in cases for kind in kinds]
    jobs += [("memory", replace(case, rows=args.memory_rows), "") for case in cases if args.memory]
    for i, (part, case, kind) in enumerate(jobs):
        print(f"[{i + 1}/{len(jobs)}] {part}, {label(asdict(case))} {kind}".rstrip(), file=sys.stderr, flush=True)
        checked = checks[case.dtype, case.eps]
        if part == "time":
            row = timed(case, checked, facts["threads"], kind, args.repeats)
        else:
            row = weighed(case, checked, facts["threads"])
        report[part].append(row)
        atomic_write(args.out / "bench_loss.json", json.dumps(report, indent=1) + "\n")
    print(*tables(report), *notes(report), f"files   {args.out}/bench_loss.json and .png", sep="\n")
    draw(report, args.out / "bench_loss.png")


def ask(request: str) -> Row:
    """The answer of a new process to one request."""
    return measuring.ask("scripts.benches.loss_contest", request)


def timed(case: "Case", checked: Mapping[str, Row], threads: int, allocator: str, repeats: int) -> Row:
    """Median seconds of the contestants that agree, interleaved in one process."""
    from .loss_contest import request

    good = [name for name, found in checked.items() if not found["wrong"]]
    answer = ask(request(case, threads, time=good, repeats=repeats, keep=allocator == "kept"))
    seconds = answer.get("seconds", {})
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    spread = max(((max(taken) - min(taken)) / medians[name] for name, taken in seconds.items()), default=0.0)
    failures = {name: answer["failed"] for name in good if "failed" in answer}
    return {
        **asdict(case), "allocator": allocator, "seconds": seconds, "tried": answer.get("pilot", {}),
        "spread": spread, **compared(medians, checked, failures),
    }  # fmt: skip


def weighed(case: "Case", checked: Mapping[str, Row], threads: int) -> Row:
    """Peak bytes of the contestants that agree, each variant in a process of its own."""
    from .loss_contest import request

    good = [name for name, found in checked.items() if not found["wrong"]]
    answers = {name: ask(request(case, threads, memory=name)) for name in good}
    peaks = {name: answer["bytes"] for name, answer in answers.items() if "bytes" in answer}
    failures = {name: answer["failed"] for name, answer in answers.items() if "failed" in answer}
    return {**asdict(case), "tried": peaks, **compared(peaks, checked, failures)}


def compared(found: Mapping[str, float], checked: Mapping[str, Row], failures: Mapping[str, str]) -> Row:
    """`best` entrant of each contestant, its `values` and `ratios` to plain, where a word stands for one without."""
    from .loss_contest import PLAIN, best, contestant

    entrants = best(found)
    values = {name: found[entrant] for name, entrant in entrants.items()}
    base = values.get(PLAIN)
    ratios: dict[str, float | str] = {}
    for name in dict.fromkeys(map(contestant, checked)):
        if name in values:
            ratios[name] = values[name] / base if base else "no plain"
        else:
            ratios[name] = "failed" if name in map(contestant, failures) else "wrong"
    return {"best": entrants, "values": values, "ratios": ratios, "failures": dict(failures)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
