"""Train a small GPT from a YAML config: `python train.py CONFIG [key.sub=value ...]`, or the same under torchrun.

This file composes the parts and *is* the training loop: `fit` shows everything that happens in a step. The same
command goes on with a run that was stopped or killed, bit for bit: the order of rows, the learning rate and all
randomness are functions of (config, step), and the little that is not is the `State` in each checkpoint.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import durable
from configs import RunConfig, dump, entry, explain, load, parse, to_tree
from resume import ROLLBACKS, record_start, restore, roll_back

if TYPE_CHECKING:  # imported where used: `--help` must not wait for torch
    from assemble import Parts
    from course import State
    from data import Prepared
    from instruments import Instruments
    from trainer.distributed import Place, Ranks
    from trainer.rundir import RunState
    from trainer.signals import StopRequest

FLAGS = {
    "dry-run": "print sizes, memory and the time estimated from a few timed steps; write nothing",
    "print-config": "print the resolved config and stop",
    "restart": "move the run's directory aside and start anew",
    "profile": "trace steps 5 to 10 of this start and print where the time went",
}


@entry
def main(argv: Sequence[str]) -> int:
    args = parse(argv, prog="python train.py", description=(__doc__ or "").splitlines()[0], flags=FLAGS)
    config = load(args.config, args.overrides, go_on=not args.restart)
    if args.print_config:
        print(dump(config), end="")
        return 0
    if args.dry_run:
        from scripts.plan import dry_run

        return dry_run(config)
    return run(config, restart=args.restart, profile=args.profile)


def run(config: RunConfig, *, restart: bool, profile: bool) -> int:
    """Own the run's directory while training, and leave its status behind whatever happens; returns the exit code.

    Ranks above the first of a machine return 0 for an ending that all agreed on: at the first other code torchrun
    would end rank 0, which still has files to write.
    """
    from trainer.distributed import Place
    from trainer.rundir import EXIT_CODES, hold, write_status
    from trainer.signals import EXIT_KILLED, Stopped, StopRequest

    path, place = Path(config.run.dir) / config.run.name, Place.from_environment()

    def leave(state: "RunState", code: int | None) -> None:
        if place.rank > 0:
            return
        try:
            write_status(path, state, durable.last_step(path), code)
        except OSError as error:  # what has happened must not be hidden by this
            print(f"warning: {path}/status.json: {error.strerror}", file=sys.stderr)

    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(last_words=lambda: leave("stopped", EXIT_KILLED)))
        if place.rank == 0:
            stack.enter_context(hold(path, restart=restart))
        try:
            leave("running", None)
            state = train(config, path, place, stop, profile=profile)
        except Stopped as error:
            if place.rank == 0:  # torchrun does this to the others when one has failed
                print(f"{error} before or after training; the same command goes on", file=sys.stderr)
            state = "stopped"
        except BaseException as error:
            code, _ = explain(error) or (EXIT_CODES["failed"], [])
            leave(next((name for name, its in EXIT_CODES.items() if its == code), "failed"), code)
            raise
        leave(state, EXIT_CODES[state])
    return EXIT_CODES[state] if place.local_rank == 0 else 0


def train(config: RunConfig, path: Path, place: "Place", stop: "StopRequest", *, profile: bool) -> "RunState":
    """Prepare, join the other ranks, and go through the run together."""
    from assemble import prepare_once, set_up_process
    from scripts.plan_memory import memory_explained
    from trainer.distributed import Ranks, pick_device

    device = pick_device(config.run.device, place)
    set_up_process(config, place, device)
    found = restore(config, path) if place.rank == 0 else None  # a refusal should not wait for a preparation
    data = prepare_once(config, place)
    ranks = Ranks(place, device)
    with memory_explained(config, data.tokenizer.vocab_size, ranks):
        outcome = go_through(config, path, data, ranks, found, stop, profile=profile)
    ranks.barrier()  # nobody leaves while others still talk
    ranks.close()  # not after an error: others may be gone, and taking leave would wait for them
    return outcome


def go_through(
    config: RunConfig,
    path: Path,
    data: "Prepared",
    ranks: "Ranks",
    found: "tuple[State, Path | None] | None",
    stop: "StopRequest",
    *,
    profile: bool,
) -> "RunState":
    """From what rank 0 `found` to the end, with as many falls back to a checkpoint as a run may have; sum up."""
    from scripts.summary import conclude
    from trainer.shelf import Shelf

    while True:
        shared = ranks.share(found)
        assert shared is not None
        state, checkpoint = shared
        if state.data not in (None, data.fingerprint):
            raise ValueError(f"{path} was trained on another corpus than the one prepared now; --restart starts anew")
        parts = restored(config, data, ranks, state, checkpoint)
        if state.step >= parts.total and not state.owed:
            if ranks.rank == 0:
                Shelf(path).go_on_from(state.step)
                print(f"{path} is finished at step {state.step}: nothing was trained; --restart starts anew\n")
                print(conclude(path, config, data, "done"))
            return "done"
        outcome = go_on(parts, state, stop, path, profile=profile)
        if outcome != "diverged" or state.rollbacks == ROLLBACKS:
            break
        del parts
        ranks.settle(ranks.timeout.total_seconds())  # a first step comes again
        found = roll_back(path, state) if ranks.rank == 0 else None
    if ranks.rank == 0:
        print(conclude(path, config, data, outcome))
    return outcome


def restored(config: RunConfig, data: "Prepared", ranks: "Ranks", state: "State", checkpoint: Path | None) -> "Parts":
    """The parts of a run as they were at a checkpoint, or as they begin without one."""
    from assemble import build

    parts = build(config, data, ranks, ranks.device, state)
    state.auto, state.data = parts.auto, data.fingerprint
    if checkpoint:
        parts.load(checkpoint, state)
    return parts


def go_on(parts: "Parts", state: "State", stop: "StopRequest", path: Path, *, profile: bool) -> "RunState":
    """Fit, with everything that watches and records it."""
    from instruments import Instruments
    from trainer.checkpoint import Saver
    from trainer.rundir import EXIT_CODES
    from trainer.spinning import Spinning
    from trainer.tracking import Tracker
    from trainer.watchdog import Watchdog

    config, ranks = parts.config, parts.learner.ranks
    parts.loader.check_validation(config.eval.max_tokens)
    ranks.barrier()  # every rank has read the checkpoint: from here on rank 0 may prune
    if ranks.rank == 0:
        record_start(config, path, state, parts)
    tracker = Tracker(
        path, config.track, config_tree=to_tree(config), name=config.run.name, total_steps=parts.total,
        start_step=state.step, wandb_id=state.wandb_id, enabled=ranks.rank == 0,
    )  # fmt: skip
    state.wandb_id = tracker.wandb_id
    with (
        stop.polling(),
        Spinning(ranks.device, tracker.message),
        Watchdog(path, ranks, config.train.timeout) as watchdog,
        Saver(
            path, keep=config.save.keep, keep_every=parts.keep_every, background=parts.background, ranks=ranks,
            warn=tracker.message,
        ) as saver,
        profiler(path, wanted=profile and ranks.rank == 0) as tick,
    ):  # fmt: skip
        outcome = fit(parts, state, Instruments.of(parts, state, tracker, saver, watchdog, stop), path, tick)
    tracker.close(EXIT_CODES[outcome])
    return outcome


def fit(parts: "Parts", state: "State", instruments: "Instruments", path: Path, tick: Callable[[], None]) -> "RunState":
    """The training loop: from `state.step` to the end, to a request to stop, or to where skipping does not help."""
    learner, ranks, rows = parts.learner, parts.learner.ranks, parts.loader.batch_rows
    guard, window, meter, tracker = instruments.guard, instruments.window, instruments.meter, instruments.tracker
    if state.owed and (ended := after_step(parts, state, instruments, path)):
        return ended
    for step in meter.waits(parts.loader.steps(state.step, parts.total)):
        for i, batch in enumerate(step.micro):
            learner.seed_dropout(step.index, i)
            with ranks.sync_if(learner.module, last=i == len(step.micro) - 1):
                out = learner.forward(batch.to(learner.device), denom=step.targets, progress=step.index / parts.total)
                learner.backward(out.loss * ranks.world_size)  # ranks average gradients; their sum is meant
            window.add(out.sums)
        norm = learner.clip()
        if parts.changes_data(state.row):
            guard.forget()
        good = guard.check(step.index, norm, window.step["loss"], step.targets, ranks.sum)
        learner.update(parts.rate(step.index) * state.rate, good, parts.momentum(step.index))
        window.close_step(good, norm)
        state.step, state.row, state.tokens = step.index + 1, state.row + rows, state.tokens + step.targets
        meter.add(step.targets)
        tracker.progress(state.step)
        instruments.beat()
        tick()
        if ended := after_step(parts, state, instruments, path):
            return ended
    return "done"


def after_step(parts: "Parts", state: "State", instruments: "Instruments", path: Path) -> "RunState | None":
    """What is due after a step: evaluation, metrics, a checkpoint. Returns how the run ends here, if it does."""
    from assemble import CutOff
    from trainer.schedule import due

    tracker, meter, guard, total = instruments.tracker, instruments.meter, instruments.guard, parts.total
    row: dict[str, float] = {}
    nll = None
    saving = due(state.step, parts.every["save"], total)
    state.owed = False
    if saving or due(state.step, parts.every["eval"], total):
        try:
            with meter.paused():
                row, nll = parts.evaluate(last=state.step == total, asked=instruments.asked)
                if math.isfinite(nll):  # from a poisoned model nothing can be drawn
                    tracker.samples(state.step, parts.samples())
        except CutOff:
            state.owed = True
            return save(parts, state, instruments, path, None, last=True) or "stopped"
    if due(state.step, parts.every["track"], total):
        sums = instruments.window.read(parts.learner.ranks.sum)
        rate = parts.rate(state.step - 1) * state.rate * parts.config.optim.rates.matrix
        row = train_row(sums, rate) | meter.read() | {"train/skipped": int(guard.skipped)} | row
        tell_skips(parts, instruments, path)
    if row:
        tracker.log(state.step, state.tokens, row)
    stopping = instruments.asked() and state.step < total
    if saving and state.step < total and guard.streak():  # so that the last good checkpoints are not pruned meanwhile
        saving = False
    if saving or stopping:  # the last save of a start is one that must not fail
        ended = save(parts, state, instruments, path, nll, last=stopping or state.step == total)
        if ended or stopping:
            return ended or "stopped"
    if guard.exhausted():
        state.guard, state.seconds = guard.state(), meter.elapsed
        tell_skips(parts, instruments, path)
        return "diverged"
    return None


def save(
    parts: "Parts", state: "State", instruments: "Instruments", path: Path, nll: float | None, *, last: bool
) -> "RunState | None":
    """Save a checkpoint, the `last` of this start or another.

    "diverged", and nothing is saved, when a weight or what the optimizer keeps is not finite.
    """
    with instruments.meter.paused():
        instruments.tracker.sync()
        tell_skips(parts, instruments, path)
        state.sums = instruments.window.state(parts.learner.ranks.sum)
        state.guard, state.seconds = instruments.guard.state(), instruments.meter.elapsed
        return None if parts.save(instruments.keeper, state, nll, last=last) else "diverged"


def tell_skips(parts: "Parts", instruments: "Instruments", path: Path) -> None:
    """Say and write down which steps were skipped since the last call, and which rows they had."""
    from trainer.rundir import note

    for skip in instruments.guard.read():
        if parts.learner.ranks.rank == 0:
            rows = parts.loader.row_ids(skip.step).tolist()
            note(path, "skip", skip.step + 1, reason=skip.reason, loss=skip.loss, rows=rows)
            what = f"the loss, {skip.loss:.4g}, " + ("is a spike" if skip.reason == "spike" else "is not finite")
            if skip.reason == "not finite" and math.isfinite(skip.loss):
                what = "its gradient is not finite"
            instruments.tracker.message(f"step {skip.step + 1} skipped: {what}")


def train_row(sums: dict[str, float], rate: float) -> dict[str, float]:
    """The `train/...` metrics of a window from its sums over all ranks."""
    from loss import metrics

    norm, steps = sums.pop("grad_norm"), sums.pop("steps")
    means = metrics(sums)
    return {f"train/{name}": value for name, value in means.items()} | {
        "train/grad_norm": norm / steps if steps else float("nan"),
        "train/lr": rate,
    }


@contextmanager
def profiler(path: Path, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Yields what to call after each step; with `wanted` six steps are traced to `profile.json` in the run."""
    if not wanted:
        yield lambda: None
        return
    import torch

    def report(profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(path / "profile.json"))
        clock = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=clock, row_limit=15))
        print(f"trace: {path / 'profile.json'} (chrome://tracing or ui.perfetto.dev)")

    once = torch.profiler.schedule(wait=3, warmup=1, active=6, repeat=1)
    with torch.profiler.profile(schedule=once, on_trace_ready=report) as running:
        yield running.step


if __name__ == "__main__":
    from trainer.signals import run_process

    run_process(main)
