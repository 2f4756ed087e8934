"""The page of all that was measured: `python -m scripts.bench performance` writes docs/performance.md.

It measures nothing: it puts the reports of the benchmarks together, with the command, commit, date and machine of each,
in `performance.md`, `performance.json` and a picture for each.
"""

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from configs import entry
from durable import atomic_write

from .measuring import ROOT, Parser, commit_of

PEERS = "--nanogpt NANOGPT --python PYTHON"
SECTIONS = {
    # benchmark: (title, module with `tables` and `draw`, command)
    "train": ("Training", "train_report", f"python -m scripts.bench train {PEERS}"),
    "speedrun": ("Time to a loss", "speedrun_report", f"python -m scripts.bench speedrun --sweep {PEERS}"),
    "generate": ("Generation", "generate", f"python -m scripts.bench generate {PEERS}"),
    "scaling": ("Scaling", "scaling_report", "python -m scripts.bench scaling"),
}
HEAD = """\
# Performance

What the commands below printed, and nothing else: `python -m scripts.bench performance` put their reports together.
The figures of a section were measured side by side in one run, at one commit: entrants in processes of their own, in
interleaved rounds, and a figure is the median of the rounds. *spread* is (max - min) / median. All use the same number
of threads, torch's own choice unless a table says otherwise. NANOGPT is a checkout of
[nanoGPT](https://github.com/karpathy/nanoGPT), PYTHON an interpreter with `transformers`, `accelerate` and `litgpt`; a
tool that is not there is left out with a line that says how to get it. `--resume` goes on with a measurement that was
cut off.
"""


@entry
def main(argv: Sequence[str]) -> None:
    parser = Parser("performance", (__doc__ or "").splitlines()[0])
    parser.add_argument("--reports", type=Path, default=Path("runs/bench"), metavar="DIR",
                        help="where bench_train.json and the others are")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR", help="where the page goes")
    args = parser.parse_args(argv)
    reports = gathered(args.reports)
    args.out.mkdir(parents=True, exist_ok=True)
    atomic_write(args.out / "performance.json", json.dumps(reports, indent=1) + "\n")
    for name, report in reports.items():
        (args.out / picture(name)).unlink(missing_ok=True)
        module_of(name).draw(report, args.out / picture(name))
    atomic_write(args.out / "performance.md", page(reports, args.out))
    for name in SECTIONS.keys() - reports.keys():
        print(f"missing  {SECTIONS[name][2]}", file=sys.stderr)
    print(f"report   {args.out / 'performance.md'}")


def gathered(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports that are there.

    Raises ValueError when there is none, or one that was measured in a hurry or cut off.
    """
    reports = {}
    for name, (_, _, command) in SECTIONS.items():
        path = folder / f"bench_{name}.json"
        if not path.is_file():
            continue
        reports[name] = json.loads(path.read_text(encoding="utf-8"))
        if reports[name].get("settings", {}).get("quick"):
            raise ValueError(f"{path}: measured with --quick, which says nothing; run {command}")
        if not reports[name].get("finished", True):  # reports from before that was written are complete
            raise ValueError(f"{path}: cut off; the same command with --resume goes on")
    if not reports:
        raise ValueError(f"{folder} has no report; {SECTIONS['train'][2]} makes one")
    return reports


def module_of(name: str) -> Any:
    return import_module(f"scripts.benches.{SECTIONS[name][1]}")


def picture(name: str) -> str:
    return f"performance_{name}.png"


def page(reports: dict[str, dict[str, Any]], out: Path) -> str:
    """The page, from the reports alone, with the pictures that are in `out`."""
    parts = [HEAD]
    for name, report in reports.items():
        title, _, command = SECTIONS[name]
        module = module_of(name)
        facts = (" at commit ", commit_of(report)), (" on ", report.get("date")), (": ", report.get("told"))
        told = [f"`{report.get('command', command)}`{''.join(word + fact for word, fact in facts if fact)}."]
        told += [line.replace("left out  ", "Left out: ") for line in report.get("left_out", {}).values()]
        parts += [
            f"## {title}\n",
            "\n".join(told),
            "",
            "```text",
            "\n".join(module.tables(report)).strip("\n"),
            "```\n",
        ]
        if (out / picture(name)).is_file():
            parts.append(f"![{title}]({picture(name)})\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
