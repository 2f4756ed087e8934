"""Every fault that a run must survive, injected for real: `python -m scripts.bench faults`.

Writes `reliability.md`, `.json` and `.png`, which say how often each was injected, survived, and what it cost. The
whole matrix takes about ten minutes on two CPU cores, `--quick` three or four.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import entry
from durable import atomic_write

from ..faults.runs import Runs
from .measuring import ROOT, Parser

DOCS = ROOT / "docs"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "faults",
        "Inject every fault that a run must survive, and report what became of the runs.",
        formatter_class=argparse.HelpFormatter,
        epilog="Exit code 1 when a fault was not survived.",
    )
    parser.add_argument("--quick", action="store_true", help="small counts, for a first look")
    parser.add_argument("--only", nargs="+", metavar="F", help="these faults alone, such as F1 F5")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report goes; docs when everything is run, "
                        "runs/bench otherwise")  # fmt: skip
    return parser.parse_args(argv)


@entry
def main(argv: Sequence[str]) -> int:
    args = arguments(argv)
    from ..faults.matrix import MATRIX
    from .faults_picture import draw_kills
    from .faults_report import line, markdown, subtitle

    known = [scenario.fault for scenario in MATRIX]
    if unknown := [fault for fault in args.only or [] if fault not in known]:
        raise ValueError(f"no fault {unknown[0]!r}; there are: {', '.join(known)}")
    partly = args.quick or args.only
    out = args.out or (Path("runs/bench") if partly else DOCS)
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"surroundings": surroundings(), "quick": args.quick, "faults": {}, "figures": {}}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="thimble-faults-") as folder:
        runs = Runs(Path(folder))
        for scenario in MATRIX:
            if args.only and scenario.fault not in args.only:
                continue
            outcome = scenario.run(runs, scenario.quick if args.quick else scenario.count)
            outcome.failures = [failure.replace(folder, "...") for failure in outcome.failures]
            report["faults"][scenario.fault] = outcome.to_json()
            print(line(scenario, report["faults"][scenario.fault]), flush=True)
        if not args.only:
            report["figures"] = figures(runs, quick=args.quick)
    report["seconds"] = time.monotonic() - began
    atomic_write(out / "reliability.json", json.dumps(report) + "\n")
    if (kills := report["faults"].get("F1")) and kills["figures"]:
        draw_kills(kills["figures"], out / "reliability.png", subtitle(report))
    atomic_write(out / "reliability.md", markdown(report))
    print(f"report   {out / 'reliability.md'}")
    survived = all(found["survived"] == found["injected"] for found in report["faults"].values())
    return 0 if survived else 1


def surroundings() -> dict[str, Any]:
    """Where and of what the report is."""
    from assemble import usable_cpus
    from trainer.rundir import environment

    made = environment("cpu", 1, {})
    return {
        "cpu": made["cpu"], "cpus": usable_cpus(), "platform": made["platform"], "python": made["python"],
        "torch": made["packages"]["torch"], "git": made["git"], "date": time.strftime("%Y-%m-%d"),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def figures(runs: Runs, *, quick: bool) -> dict[str, Any]:
    """What is a matter of degree: the time that survival costs."""
    import torch

    from trainer.memory import keep_freed_memory

    from ..faults.background import LARGE, SMALL, saving_times
    from ..faults.trackers import step_times

    torch.set_num_threads(1)
    keep_freed_memory()  # as every run on a CPU does
    saving = saving_times(runs.runs / "saving", SMALL if quick else LARGE, saves=1 if quick else 5)
    return {"wandb": step_times(runs, 1 if quick else 3), "saving": saving}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
