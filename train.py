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
from configs import ConfigError, RunConfig, changes, dump, entry, explain, load, parse, to_tree

if TYPE_CHECKING:  # imported where used: `--help` must not wait for torch
    from assemble import Parts, State
    from trainer.distributed import Place
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
    """Own the run's directory while training, and leave its status behind whatever happens; returns the exit code."""
    from trainer.distributed import Place
    from trainer.rundir import EXIT_CODES, hold, write_status

    path, place = Path(config.run.dir) / config.run.name, Place.from_environment()
    with ExitStack() as stack:
        outcome: RunState = "failed"
        if place.rank == 0:
            stack.enter_context(hold(path, restart=restart))
            write_status(path, "running", last_step(path), None)
            stack.callback(lambda: write_status(path, outcome, last_step(path), EXIT_CODES[outcome]))
        try:
            outcome = train(config, path, place, profile=profile)
        except Exception as error:
            code, _ = explain(error) or (1, [])
            outcome = next(state for state, its in EXIT_CODES.items() if its == code)
            raise
        return EXIT_CODES[outcome]


def last_step(path: Path) -> int:
    """Step of the newest checkpoint, intact or not; 0 without one."""
    return max([0, *map(durable.step_of, durable.list_checkpoints(path))])


def train(config: RunConfig, path: Path, place: "Place", *, profile: bool) -> "RunState":
    """Prepare, restore, fit and sum up."""
    from assemble import build, prepare_once, set_up_process
    from scripts.summary import conclude
    from trainer.distributed import Ranks, pick_device
    from trainer.signals import StopRequest
    from trainer.tracking import Tracker

    device = pick_device(config.run.device, place)
    set_up_process(config, place, device)
    state, checkpoint = restore(config, path, quiet=place.rank > 0)
    data = prepare_once(config, place)
    if state.data not in (None, data.fingerprint):
        raise ValueError(f"{path} was trained on another corpus than the one prepared now; --restart starts anew")

    ranks = Ranks(place, device)
    try:
        parts = build(config, data, ranks, device, state.auto)
        state.auto, state.data = parts.learner.auto, data.fingerprint
        if checkpoint:
            parts.load(checkpoint, state)
        if state.step >= parts.total:
            if ranks.rank == 0:
                print(conclude(path, config, data, "done"))
            return "done"
        ranks.barrier()  # every rank has read the checkpoint: from here on rank 0 may prune
        if ranks.rank == 0:
            record_start(config, path, state, parts)
        tracker = Tracker(
            path, config.track, config_tree=to_tree(config), name=config.run.name, total_steps=parts.total,
            start_step=state.step, wandb_id=state.wandb_id, enabled=ranks.rank == 0,
        )  # fmt: skip
        state.wandb_id = tracker.wandb_id
        with StopRequest() as stop, profiler(path, wanted=profile and ranks.rank == 0) as tick:
            outcome = fit(parts, state, tracker, stop, path, tick)
        if ranks.rank == 0:
            tracker.message(conclude(path, config, data, outcome))
        tracker.close(0)
        return outcome
    finally:
        ranks.close()


def fit(
    parts: "Parts", state: "State", tracker: "Tracker", stop: "StopRequest", path: Path, tick: Callable[[], None]
) -> "RunState":
    """The training loop: from `state.step` to the end, or to a request to stop."""
    from trainer.guard import Guard
    from trainer.meters import Throughput
    from trainer.schedule import due, rate_factor
    from trainer.window import Window

    config, learner, ranks, total = parts.config, parts.learner, parts.learner.ranks, parts.total
    track_every, eval_every, save_every = (parts.every(section) for section in ("track", "eval", "save"))
    guard = Guard(learner.device, **state.guard)
    window = Window(learner.device, state.sums if ranks.rank == 0 else None)
    meter = Throughput(learner.flops_per_token, learner.peak_flops, world_size=ranks.world_size, device=learner.device)
    for step in meter.waits(parts.loader.steps(state.step, total)):
        for i, batch in enumerate(step.micro):
            learner.seed_dropout(step.index, i)
            with ranks.sync_if(learner.module, last=i == len(step.micro) - 1):
                out = learner.forward(learner.module, batch.to(learner.device), denom=step.targets)
                learner.backward(out.loss * ranks.world_size)  # ranks average gradients; their sum is meant
            window.add(out.sums)
        norm = learner.clip()
        finite = guard.check(norm, window.step["loss"], ranks.all_true)
        factor = rate_factor(step.index, total, config.schedule, config.train.batch_tokens)
        learner.update(factor, finite)
        window.close_step(finite, norm)
        state.step, state.tokens = step.index + 1, state.tokens + step.targets
        meter.add(step.targets)
        tick()

        row: dict[str, float] = {}
        saving = due(state.step, save_every, total)
        if due(state.step, track_every, total):
            row |= train_row(window.read(ranks.sum), factor * config.optim.rates.matrix) | meter.read()
            row |= {"train/skipped": guard.read()}
        if saving or due(state.step, eval_every, total):
            with meter.paused():
                row |= parts.validate(None if state.step == total else config.eval.max_tokens)
                tracker.samples(state.step, parts.samples())
        if row:
            tracker.log(state.step, state.tokens, row)
        stopping = ranks.any(bool(stop)) and state.step < total
        if saving or stopping:
            with meter.paused():
                tracker.sync()
                state.sums, state.guard = window.state(ranks.sum), guard.state()
                parts.save(path, state, row.get("val/nll"))
        if stopping:
            return "stopped"
        if guard.gave_up:
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


def restore(config: RunConfig, path: Path, *, quiet: bool) -> tuple["State", Path | None]:
    """What the newest intact checkpoint of the run says, and where it is; a fresh state when there is none.

    Raises ConfigError when the config makes it another run, and `Damaged` when no checkpoint is intact.
    """
    from assemble import State

    checkpoint, passed_over = durable.newest_checkpoint(path)
    if checkpoint is None:
        return State(), None
    if not quiet:
        for reason in passed_over:
            print(f"warning: damaged checkpoint passed over: {reason}", file=sys.stderr)
    found = changes(to_tree(load(path / "config.yaml")), config)
    if found.identity:
        end = f"{path} was trained with another config; --restart starts anew, or choose another run.name"
        raise ConfigError([*map(str, found.identity), end])
    return State.read(durable.verify(checkpoint)), checkpoint


def record_start(config: RunConfig, path: Path, state: "State", parts: "Parts") -> None:
    """Write down what this start runs with, and drop what a crash or a damaged checkpoint left behind."""
    import torch

    from trainer.checkpoint import forget_after
    from trainer.rundir import append_line, environment

    forget_after(path, state.step)
    if state.step:
        for change in changes(to_tree(load(path / "config.yaml")), config).recorded:
            append_line(path / "changes.jsonl", {"step": state.step, **vars(change)})
    durable.atomic_write(path / "config.yaml", dump(config))
    learner = parts.learner
    extra = {
        "world_size": learner.ranks.world_size,
        "auto": learner.auto,
        "corpus": parts.data.store.manifest["packages"],
    }
    facts = environment(str(learner.device), torch.get_num_threads(), extra)
    durable.atomic_write(path / "env.json", json.dumps(facts, indent=1) + "\n")
    parts.data.tokenizer.save(path)


@contextmanager
def profiler(path: Path, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Yields what to call after each step; with `wanted` six steps are traced to `profile.json` in the run."""
    if not wanted:
        yield lambda: None
        return
    import torch

    def report(profile: torch.profiler.profile) -> None:
        profile.export_chrome_trace(str(path / "profile.json"))
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
        print(f"trace: {path / 'profile.json'} (chrome://tracing or ui.perfetto.dev)")

    once = torch.profiler.schedule(wait=3, warmup=1, active=6, repeat=1)
    with torch.profiler.profile(schedule=once, on_trace_ready=report) as running:
        yield running.step


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
