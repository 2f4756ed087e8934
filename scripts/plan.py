"""What a run would cost, without doing it: behind `python train.py CONFIG --dry-run`. Writes nothing."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from assemble import set_up_process
from configs import RunConfig
from configs.auto import vocabulary
from course import State, describe_course, order_in_run, total_steps
from data import Batch, Prepared, SplitConfig, estimate, load_tokenizer, lookup
from learner import Learner, build_learner, rows_per_step
from scripts.plan_memory import MIB, memory_explained, step_memory, text_of
from sizing import random_batch
from trainer.distributed import Place, Ranks, pick_device
from trainer.memory import Gauge
from trainer.meters import clock_text
from trainer.window import Window

STEPS = 3, 12
"""Steps that are timed and measured: at least, and at most while they take no more than PATIENCE seconds."""
PATIENCE = 20.0


def dry_run(config: RunConfig) -> int:
    """Print the plan of a run on one process; returns the exit code."""
    place = Place()
    try:
        device, there = pick_device(config.run.device, place), True
    except ValueError:  # sizes can be told without it
        device, there = torch.device("cpu"), False
    set_up_process(config, place, device)
    data = lookup(config.data, config.model.context)
    vocab_size = data.tokenizer.vocab_size if data else assumed_vocabulary(config)
    ranks = Ranks(place, device)
    with memory_explained(config, vocab_size, ranks):
        gauge = Gauge(device)
        learner = build_learner(config, vocab_size, ranks, device, data=data)
        trial = try_out(learner, vocab_size, gauge) if there else None
        lines = facts(config, learner, data, vocab_size, trial)
    for name, value in lines:
        print(f"{name:<14} {value}")
    return 0


def assumed_vocabulary(config: RunConfig) -> int:
    """Ids of a tokenizer that is not made yet; of one for each character, which depend on the corpus, as many
    as `auto` goes by.

    Raises DataError for a file that is missing or none.
    """
    from data.tokens.ranks import read_ranks
    from data.tokens.vocabulary import all_specials

    tokenizer, specials = config.data.tokenizer, set(all_specials(config.data))
    if tokenizer.train:
        return tokenizer.train.vocab_size
    if tokenizer.file:
        loaded = load_tokenizer(tokenizer.file)
        return loaded.vocab_size + len(specials - loaded.specials.keys())
    if tokenizer.tiktoken:
        ranks = read_ranks(tokenizer.tiktoken)
        missing = {*specials, "<|endoftext|>"} - ranks.specials.keys()
        return max(*ranks.ids.values(), *ranks.specials.values()) + 1 + len(missing)
    return (257 if tokenizer.level == "byte" else vocabulary(tokenizer)) + len(specials)


@dataclass(frozen=True)
class Trial:
    """What a few real steps took."""

    steps: int
    seconds: float
    """Of a whole step."""
    micro_seconds: float
    update_seconds: float
    peak: int | None
    """Bytes at most, beyond what the process had before the model; None where that cannot be told."""


def facts(
    config: RunConfig, learner: Learner, data: Prepared | None, vocab_size: int, trial: Trial | None
) -> list[tuple[str, str]]:
    """The lines of the plan as (name, value)."""
    shape, rows = config.model, rows_per_step(config)
    per_token = learner.flops_per_token
    at_once = learner.micro_rows
    memory = step_memory(config, vocab_size, at_once, -(-rows // at_once), learner.device, learner.precision.name)
    lines = [
        ("model", f"{shape.preset}, {shape.layers} layers, {shape.dim} wide, context {shape.context}, "
                  f"vocabulary {vocab_size:,}{'' if data else ' (assumed: corpus not prepared)'}"),
        ("parameters", f"{learner.model.parameter_count():,}"),
        ("loss", " + ".join(part.name for part, _ in learner.objective.recipe.terms)
                 + (f", teacher {config.loss.teacher}" if config.loss.teacher else "")),
        ("FLOPs", f"{per_token:,.0f} per token, forward and backward"),
        *muon_line(config, learner),
        ("device", f"{learner.device.type}, {learner.precision.name}, {torch.get_num_threads()} CPU threads"
                   f"{', compiled' if learner.compiled else ''}{', attention: flex' if learner.model.tiles else ''}"),
        ("memory", memory_text(memory, trial)),
        ("step", f"{rows} rows = {rows * shape.context:,} tokens, {learner.micro_rows} at a time"),
    ]  # fmt: skip
    train_rows, by_source = expected_rows(config, data)
    total = total_steps(config, train_rows, State()) if train_rows or config.train.epochs is None else None
    if total:
        lines.append(("run", f"{total:,} steps = {total * config.train.batch_tokens:,} tokens"))
    if total and by_source:
        if data:
            order_in_run(config, data, State(), total)  # refuses what training would refuse
        targets = data.train.targets_by_source if data else {}
        told = describe_course(config, by_source, targets, State(), total)
        if not data:
            told["epochs"] = f"about {told['epochs']} (from the size of the sources)"
        lines += told.items()
    else:
        lines.append(("epochs", "not known: a source does not tell its size"))
    if trial is None:
        return [*lines, ("speed", f"not known: no {config.run.device} here (run.device=cpu times it on the CPU)")]
    speed = rows * shape.context / trial.seconds
    lines.append(("speed", f"{speed:,.0f} tokens/s: {trial.micro_seconds * 1e3:,.0f} ms a micro-batch, "
                           f"{trial.update_seconds * 1e3:,.0f} ms an update, "
                           f"{trial.update_seconds / trial.seconds:.0%} of a step (random tokens)"))  # fmt: skip
    if total:
        lines.append(
            ("time", f"about {clock_text(total * trial.seconds)} on one process, without evaluations and preparation")
        )
    return lines


def muon_line(config: RunConfig, learner: Learner) -> list[tuple[str, str]]:
    """What Muon's iterations add to the products of a step; nothing without Muon."""
    flops = learner.optimizers.muon_flops()
    if not flops:
        return []
    passes = learner.flops_per_token * config.train.batch_tokens
    return [("Muon", f"{flops:,} FLOPs a step, {flops / (flops + passes):.1%} of all")]


def memory_text(tensors: dict[str, int], trial: Trial | None) -> str:
    """What was measured and what was estimated, which is all there is without a device to measure on."""
    if trial is None or trial.peak is None:
        return f"tensors take about {text_of(tensors)}; libraries and what an allocator keeps come on top"
    return f"{trial.peak / MIB:,.0f} MiB measured in {trial.steps} steps; their tensors take about {text_of(tensors)}"


def expected_rows(config: RunConfig, data: Prepared | None) -> tuple[int, dict[str, int]]:
    """Training rows in all and by source: counted when prepared, else from file sizes; (0, {}) when nothing tells."""
    if data:
        return data.train.rows, data.train.rows_by_source
    by_source, split = {}, config.data.split
    trained = 1.0 if split.sources else 1 - split.val
    for name, source in config.data.sources.items():
        alone = dataclasses.replace(config.data, sources={name: source}, mixture={}, split=SplitConfig())
        tokens = estimate(alone).tokens
        if tokens is None:
            return 0, {}
        by_source[name] = max(1, int(tokens * trained) // config.model.context)
    return sum(by_source.values()), by_source


def try_out(learner: Learner, vocab_size: int, gauge: Gauge) -> Trial:
    """Some steps of random tokens, the first to warm up. More than two micro-batches take no more than two do."""
    config, generator, start = learner.config, torch.Generator().manual_seed(0), time.perf_counter()
    full = random_batch(learner.micro_rows, config.model.context, vocab_size, learner.device)
    micro_batches = -(-rows_per_step(config) // learner.micro_rows)
    window = Window(learner.device)  # small tensors that stay also count: freed memory does not merge across them

    def micro() -> None:
        out = learner.forward(batch)
        learner.backward(out.loss)
        window.add(out.sums)

    def update() -> None:
        norm = learner.clip()
        finite = torch.isfinite(norm)
        learner.update(1e-9, finite)
        window.close_step(finite, norm)

    times: list[tuple[float, float]] = []
    while len(times) < STEPS[0] or (len(times) < STEPS[1] and time.perf_counter() - start < PATIENCE):
        batch = with_gaps(full, generator)
        passes = [seconds_of(micro, learner.device) for _ in range(min(micro_batches, 2))]
        times.append((min(passes), seconds_of(update, learner.device)))
    micro_seconds, update_seconds = (min(column) for column in zip(*times[1:], strict=True))
    whole = micro_batches * micro_seconds + update_seconds
    return Trial(len(times), whole, micro_seconds, update_seconds, gauge.peak())


def with_gaps(batch: Batch, generator: torch.Generator) -> Batch:
    """The batch with up to 3 % of its targets masked, as in real rows: where sizes vary, memory is reused less well."""
    share = 0.03 * torch.rand((), generator=generator)
    gaps = (torch.rand(batch.targets.shape, generator=generator) < share).to(batch.targets.device)
    return dataclasses.replace(
        batch, targets=batch.targets.masked_fill(gaps, -100), weights=batch.weights.masked_fill(gaps, 0.0)
    )


def seconds_of(act: Callable[[], None], device: torch.device) -> float:
    """Wall time of `act`, including what it left running on the device."""
    start = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
