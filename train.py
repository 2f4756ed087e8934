"""Train a small GPT from a YAML config: `python train.py CONFIG [key.sub=value ...]`, or the same under torchrun.

This file composes the parts and *is* the training loop: `fit` shows everything that happens in a step. The same
command goes on with a run that was stopped or killed, bit for bit: the order of rows, the learning rate and all
randomness are functions of (config, step), and the little that is not is the `State` in each checkpoint.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import durable
from configs import (
    Change,
    ConfigError,
    RunConfig,
    changes,
    dump,
    entry,
    explain,
    files_of,
    load,
    parse,
    read_tree,
    to_tree,
    with_loss_paths,
)

if TYPE_CHECKING:  # imported where used: `--help` must not wait for torch
    from assemble import Parts
    from course import State
    from data import Prepared
    from trainer.distributed import Place, Ranks
    from trainer.rundir import RunState
    from trainer.signals import StopRequest
    from trainer.tracking import Tracker

FLAGS = {
    "dry-run": "print sizes, memory and the time estimated from a few timed steps; write nothing",
    "print-config": "print the resolved config and stop",
    "restart": "move the run's directory aside and start anew",
    "profile": "trace steps 5 to 10 of this start and print where the time went",
}


@entry
def main(argv: Sequence[str]) -> int:
    args = parse(argv, prog="python train.py", description=(__doc__ or "").splitlines()[0], flags=FLAGS)
    config = load(args.config, args.overrides)
    if args.print_config:
        print(dump(config), end="")
        return 0
    if args.dry_run:
        from scripts.plan import dry_run

        return dry_run(config)
    return run(config, restart=args.restart, profile=args.profile)


def run(config: RunConfig, *, restart: bool, profile: bool) -> int:
    """Own the run's directory while training, and leave its status behind whatever happens; returns the exit code.

    Ranks above 0 return 0 for an ending that all agreed on: at the first other code torchrun would end rank 0, which
    still has files to write.
    """
    from trainer.distributed import Place
    from trainer.rundir import EXIT_CODES, hold, write_status
    from trainer.signals import EXIT_KILLED, Stopped, StopRequest

    path, place = Path(config.run.dir) / config.run.name, Place.from_environment()

    def leave(state: "RunState", code: int | None) -> None:
        if place.rank == 0:
            write_status(path, state, last_step(path), code)

    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest(last_words=lambda: leave("stopped", EXIT_KILLED)))
        if place.rank == 0:
            stack.enter_context(hold(path, restart=restart))
        leave("running", None)
        try:
            state = train(config, path, place, stop, profile=profile)
        except Stopped as error:
            print(f"{error} before or after training; the same command goes on", file=sys.stderr)
            state = "stopped"
        except BaseException as error:
            code, _ = explain(error) or (EXIT_CODES["failed"], [])
            leave(next((name for name, its in EXIT_CODES.items() if its == code), "failed"), code)
            raise
        leave(state, EXIT_CODES[state])
    return EXIT_CODES[state] if place.rank == 0 else 0


def last_step(path: Path) -> int:
    """Step of the newest checkpoint, intact or not; 0 without one."""
    return max([0, *map(durable.step_of, durable.list_checkpoints(path))])


def train(config: RunConfig, path: Path, place: "Place", stop: "StopRequest", *, profile: bool) -> "RunState":
    """Prepare, join the other ranks, and go through the run together."""
    from assemble import prepare_once, set_up_process
    from trainer.distributed import Ranks, pick_device

    device = pick_device(config.run.device, place)
    set_up_process(config, place, device)
    found = restore(config, path) if place.rank == 0 else None  # a refusal should not wait for a preparation
    data = prepare_once(config, place)
    ranks = Ranks(place, device)
    try:
        outcome = go_through(config, path, data, ranks, found, stop, profile=profile)
        ranks.barrier()  # nobody leaves while others still talk
        return outcome
    finally:
        ranks.close()


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
    """Build the parts, restore what rank 0 `found`, fit and sum up."""
    from assemble import build
    from scripts.summary import conclude
    from trainer.checkpoint import point_to_best
    from trainer.rundir import EXIT_CODES
    from trainer.tracking import Tracker

    shared = ranks.share(found)
    assert shared is not None
    state, checkpoint = shared
    if state.data not in (None, data.fingerprint):
        raise ValueError(f"{path} was trained on another corpus than the one prepared now; --restart starts anew")
    parts = build(config, data, ranks, ranks.device, state)
    state.auto, state.data = parts.auto, data.fingerprint
    if checkpoint:
        parts.load(checkpoint, state)
    if state.step >= parts.total:
        if ranks.rank == 0:
            point_to_best(path, state.best_step)
            print(f"{path} is finished at step {state.step}: nothing was trained; --restart starts anew\n")
            print(conclude(path, config, data, "done"))
        return "done"
    parts.loader.check_validation(config.eval.max_tokens)
    ranks.barrier()  # every rank has read the checkpoint: from here on rank 0 may prune
    if ranks.rank == 0:
        record_start(config, path, state, parts)
    tracker = Tracker(
        path, config.track, config_tree=to_tree(config), name=config.run.name, total_steps=parts.total,
        start_step=state.step, wandb_id=state.wandb_id, enabled=ranks.rank == 0,
    )  # fmt: skip
    state.wandb_id = tracker.wandb_id
    with stop.polling(), profiler(path, wanted=profile and ranks.rank == 0) as tick:
        outcome = fit(parts, state, tracker, stop, path, tick)
    if ranks.rank == 0:
        tracker.message(conclude(path, config, data, outcome))
    tracker.close(EXIT_CODES[outcome])
    return outcome


def fit(
    parts: "Parts", state: "State", tracker: "Tracker", stop: "StopRequest", path: Path, tick: Callable[[], None]
) -> "RunState":
    """The training loop: from `state.step` to the end, or to a request to stop."""
    from trainer.guard import Guard
    from trainer.meters import Throughput
    from trainer.schedule import due, rate_factor
    from trainer.window import Window

    config, learner, ranks, total = parts.config, parts.learner, parts.learner.ranks, parts.total
    rows = parts.loader.batch_rows
    track_every, eval_every, save_every = (parts.every(section) for section in ("track", "eval", "save"))
    guard = Guard(learner.device, **state.guard)
    window = Window(learner.device, state.sums if ranks.rank == 0 else dict.fromkeys(state.sums, 0.0))
    meter = Throughput(
        learner.flops_per_token, learner.peak_flops, world_size=ranks.world_size, device=learner.device,
        elapsed=state.seconds,
    )  # fmt: skip
    for step in meter.waits(parts.loader.steps(state.step, total)):
        for i, batch in enumerate(step.micro):
            learner.seed_dropout(step.index, i)
            with ranks.sync_if(learner.module, last=i == len(step.micro) - 1):
                out = learner.forward(batch.to(learner.device), denom=step.targets, progress=step.index / total)
                learner.backward(out.loss * ranks.world_size)  # ranks average gradients; their sum is meant
            window.add(out.sums)
        norm = learner.clip()
        finite = guard.check(norm, window.step["loss"], ranks.all_true)
        factor = rate_factor(step.index, total, config.schedule, config.train.batch_tokens)
        learner.update(factor, finite)
        window.close_step(finite, norm)
        state.step, state.row, state.tokens = step.index + 1, state.row + rows, state.tokens + step.targets
        meter.add(step.targets)
        tracker.progress(state.step)
        tick()

        row: dict[str, float] = {}
        nll = None
        saving = due(state.step, save_every, total)
        if due(state.step, track_every, total):
            row |= train_row(window.read(ranks.sum), factor * config.optim.rates.matrix) | meter.read()
            row |= {"train/skipped": guard.read()}
        if saving or due(state.step, eval_every, total):
            with meter.paused():
                scores, nll = parts.evaluate(last=state.step == total)
                row |= scores
                tracker.samples(state.step, parts.samples())
        if row:
            tracker.log(state.step, state.tokens, row)
        stopping = ranks.any(bool(stop)) and state.step < total
        if saving or stopping:
            with meter.paused():
                tracker.sync()
                state.sums, state.guard, state.seconds = window.state(ranks.sum), guard.state(), meter.elapsed
                parts.save(path, state, nll)
        if stopping:
            return "stopped"
        if guard.gives_up(state.step):
            return "diverged"
    return "done"


def train_row(sums: dict[str, float], rate: float) -> dict[str, float]:
    """The `train/...` metrics of a window from its sums over all ranks."""
    from loss import metrics

    norm, steps = sums.pop("grad_norm"), sums.pop("steps")
    means = metrics(sums)
    return {f"train/{name}": value for name, value in means.items()} | {
        "train/grad_norm": norm / steps if steps else float("nan"),
        "train/lr": rate,
    }


def restore(config: RunConfig, path: Path) -> tuple["State", Path | None]:
    """What the newest intact checkpoint of the run says, and where it is; a fresh state when there is none.

    Raises ConfigError when the config makes it another run, and `Damaged` when no checkpoint is intact.
    """
    from course import State

    checkpoint, passed_over = durable.newest_checkpoint(path)
    for reason in passed_over:
        print(f"warning: damaged checkpoint passed over: {reason}", file=sys.stderr)
    if not (path / "config.yaml").is_file():
        if checkpoint:
            raise durable.Damaged(f"{path}: has checkpoints but no config.yaml")
        return State(), None
    found = changes(read_tree(path / "config.yaml"), config_of_run(config))
    if found.identity:
        end = "; --restart starts anew, or choose another run.name"
        raise ConfigError([f"{path} began with another config: {change}{end}" for change in found.identity])
    if checkpoint is None:
        return State(), None
    state = State.read(checkpoint)
    if any(change.key.startswith("loss") for change in found.recorded):
        state.sums = {}  # a window does not mix the sums of two objectives
    return state, checkpoint


def record_start(config: RunConfig, path: Path, state: "State", parts: "Parts") -> None:
    """Write down what this start runs with, and drop what a crash or a damaged checkpoint left behind."""
    import torch

    from course import describe_course
    from trainer.checkpoint import go_on_from
    from trainer.rundir import append_line, environment, keep_copy

    kept = config_of_run(config)
    go_on_from(path, state.step, state.best_step)
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
    from trainer.signals import end_process

    end_process(main(sys.argv[1:]))
