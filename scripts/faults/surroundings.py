"""What surrounds a run: a clock that jumps (F18), and memory that is too small (F23)."""

import shutil

from .damage import contents
from .runs import SHORT, Runs, check, check_code, exact
from .scenario import Outcome
from .supervised import Fault, strike_alone

DURATIONS = ("elapsed", "wait", "seconds")
LONGEST = 600.0
MIB = 400
"""Address space beyond what a process has that has imported everything."""


def clock_jumps(runs: Runs, outcome: Outcome, count: int) -> None:
    """F18: the clock jumps by hours, forth and back, whenever it is looked at; `count` runs, each stopped once."""
    clean = runs.clean(*SHORT)
    for number in range(count):
        name = f"jumping-{number}"
        with outcome.injection("a clock that jumps", 2):
            stopped = strike_alone(runs, name, {"clock": True, "faults": [Fault("SIGTERM", 0, 4 + 5 * number)]})
            check_code(stopped.ended, 75)
            check_code(strike_alone(runs, name, {"clock": True}).ended, 0)
            check(exact(runs.rows(name)) == exact(runs.rows(clean)), "the metrics differ")
            for row in runs.rows(name):
                spans = {key: row[key] for key in row if any(word in key for word in DURATIONS)}
                check(all(0 <= span < LONGEST for span in spans.values()), f"durations at step {row['step']}: {spans}")
            runs.check_same(clean, name)
    outcome.lost = 0


def out_of_memory(runs: Runs, outcome: Outcome, count: int) -> None:
    """F23: a step that takes more than the process may have, by a real limit on its address space; `count` times."""
    for number in range(count):
        name = f"limited-memory-{number}"
        run = shutil.copytree(runs.runs / runs.clean(*SHORT), runs.runs / name)
        config = run / "config.yaml"
        config.write_text(config.read_text().replace(f"name: {runs.clean(*SHORT)}", f"name: {name}"))
        before = contents(run / "checkpoints")
        rows = 2048 >> number
        large = ("train.steps=28", "loss.fused=off", "train.batch_tokens=131072", f"train.micro_rows={rows}")
        with outcome.injection(f"{rows} rows at once"):
            ended = strike_alone(runs, name, {"memory": MIB}, *large).ended
            check_code(ended, 1)
            knob = f"less with train.micro_rows={rows // 2} (now {rows})"
            check(knob in ended.told.splitlines()[-1], f"its last line is {ended.told.splitlines()[-1]}")
            check("Traceback" not in ended.told, "not told in a line")
            check(contents(run / "checkpoints") == before, "checkpoints were changed")
            check(runs.status(name)["exit"] == 1, f"status.json says {runs.status(name)}")
    outcome.detection = f"{outcome.survived}/{outcome.injected}"
