"""What a run would cost, without doing it: behind `python train.py CONFIG --dry-run`. Writes nothing."""

import time
from collections.abc import Callable

import torch

from assemble import Learner, build_learner, memory_parts, rows_per_step, set_up_process, total_steps
from configs import RunConfig
from data import Batch, Loader, Prepared, lookup
from trainer.distributed import Place, Ranks, pick_device
from trainer.meters import clock_text


def dry_run(config: RunConfig) -> int:
    """Print the plan of a run on one process; returns the exit code."""
    place = Place()
    device = pick_device(config.run.device, place)
    set_up_process(config, place, device)
    data = lookup(config.data, config.model.context)
    vocab_size = data.tokenizer.vocab_size if data else assumed_vocabulary(config)
    learner = build_learner(config, vocab_size, Ranks(place, device), device)
    for name, value in facts(config, learner, data, vocab_size):
        print(f"{name:<14} {value}")
    return 0


def assumed_vocabulary(config: RunConfig) -> int:
    """Ids that the tokenizer will have, before it exists; a character tokenizer's depend on the corpus."""
    tokenizer = config.data.tokenizer
    return tokenizer.train.vocab_size if tokenizer.train else 257


def facts(config: RunConfig, learner: Learner, data: Prepared | None, vocab_size: int) -> list[tuple[str, str]]:
    """The lines of the plan as (name, value)."""
    shape, rows = config.model, rows_per_step(config)
    per_token = learner.flops_per_token
    memory = memory_parts(config, learner.model, vocab_size, learner.micro_rows)
    parts = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in memory.items())
    lines = [
        ("model", f"{shape.preset}, {shape.layers} layers, {shape.dim} wide, context {shape.context}, "
                  f"vocabulary {vocab_size:,}{'' if data else ' (assumed: corpus not prepared)'}"),
        ("parameters", f"{learner.model.parameter_count():,}"),
        ("FLOPs", f"{per_token:,.0f} per token, forward and backward"),
        ("device", f"{learner.device.type}, {learner.precision.name}, {torch.get_num_threads()} CPU threads"),
        ("memory", f"about {sum(memory.values()) / 2**20:,.0f} MiB (MiB: {parts})"),
        ("step", f"{rows} rows = {rows * shape.context:,} tokens, in micro-batches of {learner.micro_rows} rows"),
    ]  # fmt: skip
    total = None
    if data or config.train.epochs is None:
        total = total_steps(config, data.train.rows if data else 0)
        lines.append(("run", f"{total:,} steps = {total * config.train.batch_tokens:,} tokens"))
    if data:
        loader = Loader(data, batch_rows=rows, micro_rows=learner.micro_rows, seed=config.run.seed)
        epochs = loader.epochs_at(total or 0)
        lines.append(("epochs", ", ".join(f"{name} {value:.2f}" for name, value in epochs.items())))
    else:
        lines.append(("epochs", "not known before `python -m scripts.prepare CONFIG`"))
    seconds, micro_seconds, update_seconds = time_step(learner, vocab_size, rows)
    speed = rows * shape.context / seconds
    lines.append(("speed", f"{speed:,.0f} tokens/s: {micro_seconds * 1e3:,.0f} ms a micro-batch, "
                           f"{update_seconds * 1e3:,.0f} ms an update (random tokens)"))  # fmt: skip
    if total:
        lines.append(
            ("time", f"about {clock_text(total * seconds)} on one process, without evaluations and preparation")
        )
    return lines


def time_step(learner: Learner, vocab_size: int, rows: int) -> tuple[float, float, float]:
    """Seconds of a whole step, of one micro-batch and of one update, each timed once after a first one to warm up."""
    generator = torch.Generator().manual_seed(0)
    size = (learner.micro_rows, learner.config.model.context)
    tokens = torch.randint(0, vocab_size, size, generator=generator)
    batch = Batch(
        tokens=tokens, targets=tokens.roll(-1, 1), positions=torch.arange(size[1]).expand(size),
        weights=torch.ones(size), bytes=torch.ones(size, dtype=torch.int32),
        source=torch.zeros(size[0], dtype=torch.int64), single_document=False,
    ).to(learner.device)  # fmt: skip

    def micro() -> None:
        learner.backward(learner.forward(learner.module, batch).loss)

    def update() -> None:
        learner.update(1e-9, torch.isfinite(learner.clip()))

    times: list[tuple[float, float]] = []
    for _ in range(3):
        times.append((seconds_of(micro, learner.device), seconds_of(update, learner.device)))
    micro_seconds, update_seconds = (min(column) for column in zip(*times[1:], strict=True))
    return -(-rows // size[0]) * micro_seconds + update_seconds, micro_seconds, update_seconds


def seconds_of(act: Callable[[], None], device: torch.device) -> float:
    """Wall time of `act`, including what it left running on the device."""
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
