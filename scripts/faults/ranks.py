"""Runs that go on with another number of processes (F21)."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable

from .runs import Runs, check
from .scenario import Outcome

# At the default rates of tiny.yaml training amplifies a last-bit difference tenfold every few steps.
CALM = ("train.steps=30", "eval.every=30", "save.every=30", "track.every=1", "eval.sample_tokens=0",
        "model.context=32", "train.batch_tokens=1024", "optim.rates={matrix: 0.01, embed: 0.005, head: 0.004, "
        "vector: 0.004}")  # fmt: skip
WAYS = {
    "2 -> 1 -> 3, ddp": [(2, "ddp"), (1, "ddp"), (3, "ddp")],
    "2 fsdp -> 1 -> 3 ddp": [(2, "fsdp"), (1, "auto"), (3, "ddp")],
    "1 -> 2 fsdp -> 3 fsdp": [(1, "auto"), (2, "fsdp"), (3, "fsdp")],
}
WITHIN = 1e-5


def uneven_rows(runs: Runs) -> str:
    """An override for a corpus whose rows hold uneven numbers of valid targets."""
    rng, file = random.Random(0), runs.runs.parent / "uneven.jsonl"
    if not file.exists():
        draws = ((rng.randrange(18, 31), rng.randrange(18, 31), rng.randrange(2, 12)) for _ in range(3000))
        texts = ["".join(rng.choices("abcde ", k=rng.choice(lengths))) for lengths in draws]
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"data.sources={{uneven: {{kind: jsonl, files: [{file}]}}}}"


def resharded(runs: Runs, outcome: Outcome, count: int) -> None:
    """F21: a run is stopped at steps 10 and 20 and goes on with other processes each time, in `count` ways."""
    source = uneven_rows(runs)
    ours, worst = runs.rows(runs.clean(*CALM, source)), 0.0
    for number, (how, parts) in enumerate(list(WAYS.items())[:count]):
        name = f"resharded-{number}"
        with outcome.injection(how, count=len(parts) - 1):
            for part, (processes, parallel) in enumerate(parts, 1):
                overrides = (*CALM, source, f"train.parallel={parallel}")
                ended = runs.hit(name, 10 * part, _stop_rank_0(runs, name), *overrides, processes=processes)
                last = part == len(parts)
                check(last or runs.status(name)["exit"] == 75, f"part {part}: {ended.told[-1500:]}")
                outcome.costs(max(0, runs.last_row(name) - runs.saved(name)))
            theirs = runs.rows(name)
            check([row["tokens"] for row in theirs] == [row["tokens"] for row in ours], "other rows were used")
            worst = max([worst, *(abs(a["train/nll"] - b["train/nll"]) for a, b in zip(ours, theirs, strict=True))])
            worst = max(worst, abs(ours[-1]["val/nll"] - theirs[-1]["val/nll"]))
            check(worst <= WITHIN, f"losses differ by {worst:.2g} nats")
    outcome.figures = {"nats": worst}


def _stop_rank_0(runs: Runs, name: str) -> Callable[[subprocess.Popen[str]], None]:
    def act(process: subprocess.Popen[str]) -> None:
        if runs.last_row(name) < 30:
            os.kill(runs.status(name)["pid"], signal.SIGTERM)

    return act
