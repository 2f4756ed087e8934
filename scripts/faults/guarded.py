"""Steps that would do harm: what is not finite (F13), and a loss that jumps (F14)."""

from safetensors.torch import load_file

import durable
from trainer.guard import LIMIT, WINDOW

from .runs import SAVE_EVERY, Runs, check, check_code, read_lines
from .scenario import Outcome
from .supervised import Fault, Struck, strike_alone

TWO_HALVES = "train.micro_rows=8"
"""Of tiny.yaml's 32 rows each of two ranks takes two micro-batches."""
LONG = ("train.steps=140", "train.batch_tokens=1024", "eval.every=70", "save.every=70", "track.every=10")


def not_finite(runs: Runs, outcome: Outcome, count: int) -> None:
    """F13: NaN and an infinity in one micro-batch of one of two ranks, under DDP and, in turn, FSDP; a streak of such
    steps, streaks without end, and a weight that is not finite."""
    for number in range(count):
        _one_rank(runs, outcome, f"poisoned-{number}", ("ddp", "fsdp")[number % 2])
    first = 11
    with outcome.injection(f"{LIMIT} in a row"):
        struck = strike_alone(runs, "streak", {"faults": _streak(first)}, "schedule={name: constant, warmup: 0}")
        check_code(struck.ended, 0)
        went = [_went_back(runs, "streak")[0][key] for key in ("step", "to", "rate")]
        check(went == [first + LIMIT, SAVE_EVERY, 0.5], f"it went back like this: {went}")
        state = durable.verify(durable.find_checkpoint(runs.runs / "streak"))
        check(state["skipped_rows"] == [[SAVE_EVERY * 32, (first + LIMIT) * 32]], "other rows are left out")
        check_finite(runs, "streak")
    with outcome.injection("streaks without end"):
        struck = strike_alone(runs, "endless", {"faults": _streak(first) * 4})
        check_code(struck.ended, 4)
        check(runs.status("endless")["state"] == "diverged", f"status.json says {runs.status('endless')}")
        rates = [event["rate"] for event in _went_back(runs, "endless")]
        check(rates == [0.5, 0.25, 0.125], f"the rates were {rates}")
        check_finite(runs, "endless")
    with outcome.injection("a weight, just before a save"):
        struck = strike_alone(runs, "weight", {"faults": [Fault("weight", 0, 2 * SAVE_EVERY - 1)]})
        check_code(struck.ended, 0)
        went = [_went_back(runs, "weight")[0][key] for key in ("step", "to")]
        check(went == [2 * SAVE_EVERY, SAVE_EVERY], f"it went back like this: {went}")
        check_finite(runs, "weight")
    outcome.detection = f"{outcome.survived}/{outcome.injected}"


def _one_rank(runs: Runs, outcome: Outcome, name: str, parallel: str) -> None:
    """One launch with two poisoned micro-batches, the second of a step on rank 1 and the first of another on rank 0."""
    faults = [Fault("nan", 1, 7, 1), Fault("infinity", 0, 12, 0)]
    overrides = (TWO_HALVES, f"train.parallel={parallel}", "track.every=1")
    with outcome.injection(f"in one micro-batch of one of two ranks, {parallel}", len(faults)):
        struck = strike_alone(runs, name, {"faults": faults}, *overrides, processes=2)
        check_code(struck.ended, 0)
        _check_unchanged(struck, 2 * len(faults))
        found = [(skip["step"], skip["reason"]) for skip in _events(runs, name, "skip")]
        check(found == [(fault.step + 1, "not finite") for fault in faults], f"skipped: {found}")
        check(runs.rows(name)[-1]["train/skipped"] == len(faults), "the metrics do not count it")
        check_finite(runs, name)


def _check_unchanged(struck: Struck, looks: int) -> None:
    """No rank's weights or optimizer were changed, bit for bit, by a spoiled step."""
    looked = [line["changed"] for line in struck.log if line["event"] == "looked"]
    check(len(looked) == looks and not any(looked), f"changed by a spoiled step: {looked}")


def _streak(first: int) -> list[Fault]:
    return [Fault("nan", 0, step) for step in range(first, first + LIMIT)]


def _events(runs: Runs, name: str, kind: str) -> list[dict]:
    return [event for event in read_lines(runs.runs / name / "events.jsonl") if event["event"] == kind]


def _went_back(runs: Runs, name: str) -> list[dict]:
    found = _events(runs, name, "rollback")
    check(bool(found), "it did not go back")
    return found


def check_finite(runs: Runs, name: str) -> None:
    """No checkpoint of a run has a value that is not finite."""
    for path in durable.list_checkpoints(runs.runs / name):
        for file in sorted(path.glob("*.safetensors")):
            bad = [key for key, tensor in load_file(file).items() if not tensor.isfinite().all()]
            check(not bad, f"{path.name}/{file.name}: {bad} not finite")


def spike(runs: Runs, outcome: Outcome, count: int) -> None:
    """F14: the labels of one batch are shuffled after the window of losses is full; `count` times in one run."""
    faults = [Fault("labels", 0, WINDOW + 3 + 2 * number) for number in range(count)]
    with outcome.injection("shuffled labels", count):
        struck = strike_alone(runs, "spike", {"faults": faults}, *LONG)
        check_code(struck.ended, 0)
        _check_unchanged(struck, count)
        found = [(skip["step"], skip["reason"]) for skip in _events(runs, "spike", "skip")]
        check(found == [(fault.step + 1, "spike") for fault in faults], f"skipped: {found}")
        check(not _events(runs, clean := runs.clean(*LONG), "skip"), "a step of the clean run was skipped")
        hurt, truth = (runs.rows(name)[-1]["val/nll"] for name in ("spike", clean))
        check(abs(hurt - truth) < 0.02, f"the final loss is {hurt:.4f}, not {truth:.4f}")
        outcome.figures = {"nats": hurt - truth}
    outcome.detection = f"{outcome.survived}/{outcome.injected}"
