"""Where a run goes on: the checkpoint that a start finds, the one that a diverged run falls back to, and what is
written down before the first step."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import durable
from configs import Change, ConfigError, RunConfig, changes, dump, files_of, read_tree, with_loss_paths

if TYPE_CHECKING:  # imported where used: a refused config must not wait for torch
    from assemble import Parts
    from course import State

ROLLBACKS = 3
"""Times that a run may go back to its last checkpoint before it counts as diverged."""


def restore(config: RunConfig, path: Path) -> tuple["State", Path | None]:
    """What the newest intact checkpoint of the run says, and where it is; a fresh state when there is none.

    Raises ConfigError when the config makes it another run, and `Damaged` when no checkpoint is intact.
    """
    from course import State
    from trainer.rows import METRICS, SAMPLES, read_rows

    try:
        checkpoint, passed_over = durable.newest_checkpoint(path)
    except durable.Damaged as error:
        raise durable.Damaged(f"{error}; --restart starts anew") from None
    for reason in passed_over:
        print(f"warning: damaged checkpoint passed over: {reason}", file=sys.stderr)
    for name in (METRICS, SAMPLES):
        read_rows(path / name)  # before this start changes anything: they may be damaged
    if not (path / "config.yaml").is_file():
        if checkpoint:
            raise durable.Damaged(f"{path}: has checkpoints but no config.yaml; --restart starts anew")
        return State(), None
    found = changes(read_tree(path / "config.yaml"), config_of_run(config))
    if found.identity:
        end = "; --restart starts anew, or choose another run.name"
        raise ConfigError([f"{path} began with another config: {change}{end}" for change in found.identity])
    if checkpoint is None:
        if saved := saved_steps(path):
            told = f"its checkpoints, the last of step {saved[-1]}, are gone; put one back"
            raise durable.Damaged(f"{path}: {told}, or --restart starts anew")
        return State(), None
    state = State.read(checkpoint)
    changed = [change.key for change in found.recorded]
    if any(key.startswith("loss") for key in changed):
        state.sums = {}  # a window does not mix the sums of two objectives
    if any(key.startswith(("loss", "train.batch_tokens")) for key in changed):
        state.guard.pop("losses", None)  # a loss is compared with those of its kind
    return state, checkpoint


def saved_steps(path: Path) -> list[int]:
    """The steps whose checkpoints were saved, as far as `events.jsonl` tells."""
    from trainer.rundir import EVENTS

    steps = []
    with contextlib.suppress(OSError):
        for line in (path / EVENTS).read_bytes().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] == "save":
                    steps.append(int(event["step"]))
    return steps


def roll_back(path: Path, failed: "State") -> tuple["State", Path | None]:
    """Where a run goes on that skipped too many steps in a row: at the newest intact checkpoint that was not saved in
    the middle of such steps, or from the start when there is none, with half of the rates it had, after the rows that
    did harm."""
    from course import State
    from trainer.rundir import note

    checkpoint = last_good(path)
    state = State.read(checkpoint) if checkpoint else State(auto=failed.auto, data=failed.data, teacher=failed.teacher)
    rows = [state.row, failed.row]
    state.row, state.skipped_rows = failed.row, [*state.skipped_rows, rows]  # with what was left out since
    state.rate, state.rollbacks = failed.rate / 2, failed.rollbacks + 1
    state.guard = {"skipped": failed.guard["skipped"]}
    state.seconds, state.wandb_id = failed.seconds, failed.wandb_id
    note(path, "rollback", failed.step, to=state.step, rows=rows, rate=state.rate)
    what = f"goes back from step {failed.step} to {state.step}, leaves out rows {rows[0]} to {rows[1] - 1}"
    how = f"goes on with {state.rate:g} times the rates ({state.rollbacks} of at most {ROLLBACKS} times)"
    print(f"{path} {what} and {how}", file=sys.stderr)
    return state, checkpoint


def last_good(path: Path) -> Path | None:
    """See `roll_back`. Raises `Damaged` when there are checkpoints and none is intact."""
    for checkpoint in reversed(durable.list_checkpoints(path)):
        with contextlib.suppress(durable.Damaged):
            if not durable.verify(checkpoint)["guard"].get("in_a_row"):
                return checkpoint
    durable.newest_checkpoint(path)  # refuses where none is intact
    return None


def record_start(config: RunConfig, path: Path, state: "State", parts: "Parts") -> None:
    """Write down what this start runs with, and drop what a crash or a damaged checkpoint left behind."""
    import torch

    from course import describe_course
    from trainer.rundir import append_line, environment, keep_copy, note
    from trainer.shelf import Shelf

    kept = config_of_run(config)
    Shelf(path).go_on_from(state.step)
    note(path, "resume" if state.step else "start", state.step, world_size=parts.learner.ranks.world_size)
    if state.step:
        print(f"{path} goes on from step {state.step}", file=sys.stderr)
        found = list(changes(read_tree(path / "config.yaml"), kept).recorded)
        if state.teacher and parts.learner.teacher_digest and state.teacher != parts.learner.teacher_digest:
            found.append(Change("loss.teacher's weights", state.teacher[:12], parts.learner.teacher_digest[:12]))
        for change in found:
            print(f"changed: {change}", file=sys.stderr)
            append_line(path / "changes.jsonl", {"step": state.step, **vars(change)})
    state.teacher = parts.learner.teacher_digest
    held_out = parts.data.val.rows_by_source
    for name in (name for name, rows in parts.data.train.rows_by_source.items() if rows and not held_out.get(name)):
        print(f"warning: source {name} has no held-out text: validation says nothing about it", file=sys.stderr)
    have, targets = parts.data.train.rows_by_source, parts.data.train.targets_by_source
    for name, told in describe_course(config, have, targets, state, parts.total).items():
        print(f"{name}: {told}", file=sys.stderr)
    print("auto: " + ", ".join(f"{name} {value}" for name, value in parts.learner.auto.items()), file=sys.stderr)
    if parts.learner.compiled:
        print("blocks are compiled at their first use: some steps and evaluations take up to a minute", file=sys.stderr)
        if config.model.dropout and parts.learner.attention == "products":
            print("attention under dropout goes by torch's kernel in compiled blocks", file=sys.stderr)
    for file in files_of(config):
        keep_copy(path, file)
    durable.atomic_write(path / "config.yaml", dump(kept))
    learner = parts.learner
    extra = {
        "world_size": learner.ranks.world_size,
        "auto": learner.auto,
        "corpus": parts.data.store.manifest["packages"],
    }
    facts = environment(str(learner.device), torch.get_num_threads(), extra)
    durable.atomic_write(path / "env.json", json.dumps(facts, indent=1) + "\n")
    parts.data.tokenizer.save(path)


def config_of_run(config: RunConfig) -> RunConfig:
    """A config as its run's directory has it: the files that its loss names are the copies kept there."""
    from trainer.rundir import kept_name

    return with_loss_paths(config, kept_name)
