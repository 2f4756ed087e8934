"""How far a run is, how long it is, and the order in which it takes the rows of its corpus."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from configs import RunConfig
from data import Order, Prepared, check_epochs, epochs_of, order_of, plain_order, starts_of
from durable import STATE
from learner import rows_per_step
from trainer.schedule import parse_tokens


@dataclass
class State:
    """What a run needs to go on besides tensors, and that is no function of config and step. All of it is JSON."""

    step: int = 0
    """Steps done."""
    row: int = 0
    """Rows of the order used: where the next step begins, whatever size the steps before it had."""
    tokens: int = 0
    """Valid targets so far, all ranks."""
    seconds: float = 0.0
    """Time spent in training, over all starts."""
    auto: dict[str, Any] = field(default_factory=dict)
    """What `auto` settings came to: decided once, then reused. `starts`: the rows at which phases of data start."""
    data: str | None = None
    """Fingerprint of the prepared corpus."""
    teacher: str | None = None
    """sha256 of the weights that the run distills from."""
    sums: dict[str, float] = field(default_factory=dict)
    """Open sums of the current window of metrics, over all ranks."""
    guard: dict[str, Any] = field(default_factory=dict)
    """Skipped steps, in all and in a row, and the losses of the last applied ones."""
    scaler: dict[str, float] = field(default_factory=dict)
    """Loss scale (fp16)."""
    rate: float = 1.0
    """What all rates are multiplied by: halved each time that the run goes back to a checkpoint."""
    rollbacks: int = 0
    """Times that it did."""
    skipped_rows: list[list[int]] = field(default_factory=list)
    """[first, last + 1] of the rows of the order that were left out then."""
    owed: bool = False
    """The evaluation of the last step was cut off by a request to stop: the next start does it first."""
    wandb_id: str | None = None
    """So that a resumed run goes on in the same wandb run."""

    @classmethod
    def read(cls, checkpoint: Path) -> "State":
        """The state in a verified checkpoint, whose `state.json` holds the list of files too."""
        saved = json.loads((checkpoint / STATE).read_text())
        return cls(**{f.name: saved[f.name] for f in dataclasses.fields(cls) if f.name in saved})


def total_steps(config: RunConfig, train_rows: int, state: State) -> int:
    """Optimizer steps of the whole run; tokens and epochs round up to whole steps.

    What is left after `state` is counted in steps of the present size. Rows that were left out are no part of it: a run
    that went back is as long as it was.
    """
    train, rows = config.train, rows_per_step(config)
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        wanted = -(-parse_tokens(train.tokens) // config.model.context)
    else:
        assert train.epochs is not None  # the schema asks for exactly one of the three
        wanted = max(1, math.ceil(train.epochs * train_rows))
    trained = state.row - sum(stop - start for start, stop in state.skipped_rows)
    return state.step + max(0, -(-(wanted - trained) // rows))


def starts_in_run(config: RunConfig, state: State, total: int) -> dict[str, list[int]]:
    """The rows at which phases and openings of the curriculum start in a run of `total` steps that is in `state`.

    A fraction is one of the run's rows and tokens are rows times context, whatever steps they fall into; a number of
    steps is counted with those to come in their present size.
    """
    rows = rows_per_step(config)
    end = state.row + (total - state.step) * rows

    def row_of(length: int | float | str) -> int:
        if isinstance(length, str):
            return -(-parse_tokens(length) // config.model.context)
        if isinstance(length, float):
            return math.ceil(Fraction(repr(length)) * end)  # what was meant is decimal
        return state.row + (length - state.step) * rows

    return starts_of(config.data, row_of, state.row, state.auto.get("starts"))


def rows_used(config: RunConfig, rows: dict[str, int], targets: dict[str, int], state: State, total: int) -> np.ndarray:
    """Rows of each source that a run of `total` steps uses, (sources,); `rows` and `targets` are what they have."""
    order = plain_order(config.data, rows, targets, starts_in_run(config, state, total), config.run.seed)
    return order.used(state.row + (total - state.step) * rows_per_step(config))


def order_in_run(config: RunConfig, data: Prepared, state: State, total: int) -> Order:
    """The order of training rows. Raises DataError for one that cannot be kept, and for too many epochs to come."""
    order = order_of(data, starts_in_run(config, state, total), config.run.seed)
    if state.step < total and not state.rollbacks:  # rows that were left out are not to be had again
        rows, targets = data.train.rows_by_source, data.train.targets_by_source
        check_epochs(config.data, rows, lambda n: rows_used(config, rows, targets, state, n), total, state.step)
    return order


def describe_course(
    config: RunConfig, rows: dict[str, int], targets: dict[str, int], state: State, total: int
) -> dict[str, str]:
    """What a run of `total` steps makes of its sources, for people: `epochs`, and `phases` and `curriculum` if any."""
    starts, limit = starts_in_run(config, state, total), config.data.max_epochs
    each = epochs_of(rows, rows_used(config, rows, targets, state, total))
    told = {"epochs": ", ".join(f"{name} {count:.2f}" for name, count in each.items())}
    if limit is not None:
        told["epochs"] += f" (data.max_epochs {limit:g})"

    def when(row: int) -> str:
        done, rows = row - state.row, rows_per_step(config)
        return "begun" if done < 0 else f"after step {state.step + done // rows}"

    if config.data.phases:
        told["phases"] = "; ".join(
            f"{when(row)}: " + ", ".join(f"{name} {share:g}" for name, share in phase.mixture.items())
            for row, phase in zip(starts["phases"], config.data.phases, strict=True)
        )
    if config.data.curriculum:
        told["curriculum"] = f"by {config.data.curriculum.by}; all rows {when(starts['openings'][-1])}"
    return told
