"""Puts the parts of a run together from its config, for `train.py` and the scripts that need the same parts."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs import RunConfig
from course import State, order_in_run, starts_in_run, total_steps
from data import Batch, Loader, Prepared, held_out_labels, lookup, prepare
from eval import evaluate, score_groups
from learner import Learner, build_learner, fold_seed, rows_per_step
from loss import WORST, LossOutput, metrics, reliability
from model import eval_mode, save_shape
from trainer import memory
from trainer.config import Length
from trainer.distributed import Place, Ranks
from trainer.keeper import Keeper
from trainer.payload import read
from trainer.schedule import momentum_at, rate_factor, steps_of

Score = Callable[[Batch], tuple[Tensor, Tensor]]
Table = dict[str, dict[str, float]]
SAMPLE_TEMPERATURE = 0.8
CONTEXT_TOKENS = 12  # shown before a target that was hard to predict


class CutOff(Exception):
    """Somebody asked to stop."""


def unless(asked: Callable[[], bool], batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, with a look before each; raises CutOff."""
    for batch in batches:
        if asked():
            raise CutOff
        yield batch


def set_up_process(config: RunConfig, place: Place, device: torch.device) -> None:
    """Threads, determinism and number formats: what holds for the whole process."""
    if config.run.threads != "auto":
        torch.set_num_threads(config.run.threads)
    elif place.local_world_size > 1:
        torch.set_num_threads(max(1, usable_cpus() // place.local_world_size))
    if device.type == "cpu":
        memory.keep_freed_memory()
    torch.set_flush_denormal(True)  # optimizer state decays into denormals, which are slow on CPUs
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if config.run.deterministic else "high")
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with this
        torch.use_deterministic_algorithms(True)


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Parts:
    """A learner and its rows: what training, evaluation and saving need."""

    config: RunConfig
    learner: Learner
    data: Prepared
    loader: Loader
    prompts: list[list[int]]
    """Ids of what samples begin with."""
    total: int
    """Steps of the whole run."""
    groups: dict[str, tuple[Tensor, tuple[str, ...]]]
    """Labels that validation is reported by: the value of each document of the corpus, see `eval.evaluate`."""
    starts: dict[str, list[int]]
    """The rows at which phases of data start."""

    def rate(self, step: int) -> float:
        """What the schedule multiplies peak rates by in a step, counted from 0."""
        return rate_factor(step, self.total, self.config.schedule, self.config.train.batch_tokens)

    def momentum(self, step: int) -> float:
        """Muon's momentum in a step, counted from 0."""
        return momentum_at(step, self.total, self.config.optim, self.config.train.batch_tokens)

    def changes_data(self, row: int) -> bool:
        """Whether the step that begins at a row of the order is the first of a phase or of a part of the curriculum."""
        return any(row <= start < row + self.loader.batch_rows for rows in self.starts.values() for start in rows)

    @property
    def auto(self) -> dict[str, Any]:
        """What this start decided, for `State.auto`."""
        return self.learner.auto | ({"starts": self.starts} if self.starts else {})

    @cached_property
    def every(self) -> dict[str, int]:
        """Steps between two acts of `eval`, `save` and `track`."""
        return {section: self.length(getattr(self.config, section).every) for section in ("eval", "save", "track")}

    def length(self, length: Length) -> int:
        """Steps of this run in a length, at least one."""
        return max(1, steps_of(length, self.total, self.config.train.batch_tokens))

    def evaluate(self, *, last: bool, asked: Callable[[], bool] = bool) -> tuple[dict[str, float], float]:
        """(`val/...` metrics, nll to compare checkpoints by); the same on every rank.

        The metrics are over `eval.max_tokens` validation rows, always the same ones, and over all rows when `last`;
        the nll is always over the same ones, since that of other rows says nothing about the model. Raises CutOff when
        `asked`, which is called before each batch and answers the same on every rank, wants to stop; `bool()` never
        does.
        """
        scores = self._score(self.config.eval.max_tokens, asked)
        nll = scores["val/nll"]
        if last and self.config.eval.max_tokens < self.data.val.rows * self.data.context:
            scores = self._score(None, asked)
        return scores, nll

    def _score(self, max_tokens: int | None, asked: Callable[[], bool]) -> dict[str, float]:
        score, batches, names = self._held_out(max_tokens)
        with eval_mode(self.learner.model):
            return evaluate(
                score, unless(asked, batches), names,
                reduce=self.learner.ranks.sum, metrics=metrics, groups=self.groups,
            )  # fmt: skip

    def score_groups(self) -> tuple[Table, dict[str, Table]]:
        """Scores over all validation rows: by source, in all under `""`; and for each reported label, by value."""
        with eval_mode(self.learner.model):
            return score_groups(
                *self._held_out(None), reduce=self.learner.ranks.sum, metrics=metrics, groups=self.groups
            )

    def _held_out(self, max_tokens: int | None) -> tuple[Score, Iterator[Batch], tuple[str, ...]]:
        """How to score a batch, the batches, and the names of their sources."""
        learner = self.learner

        def score(batch: Batch) -> tuple[Tensor, Tensor]:
            each = learner.score(batch.to(learner.device)).per_token
            assert each is not None
            return each["nll"], each["correct"]

        return score, self.loader.validation(max_tokens, learner.score_rows), self.data.source_names

    def detail(self) -> dict[str, Any]:
        """What the metrics hide, over all validation rows; on one process.

        `means` as `loss.metrics` names them, `reliability` [(confidence, accuracy, targets)], and the `worst` targets:
        [{nll, target, context}] as text.
        """
        learner, data = self.learner, self.data
        sums: dict[str, Tensor] = {}
        worst: list[dict[str, Any]] = []
        with eval_mode(learner.model):
            for batch in self.loader.validation(None, learner.score_rows):
                out = learner.score(batch.to(learner.device), detail=True)
                sums = {name: sums[name] + x if sums else x for name, x in out.sums.items()}
                worst = sorted(worst + self._worst(batch, out), key=lambda row: -row["nll"])[:WORST]
        for row in worst:
            row["target"], row["context"] = data.tokenizer.decode(row["target"]), data.tokenizer.decode(row["context"])
        return {"means": metrics(sums), "reliability": reliability(sums), "worst": worst}

    def _worst(self, batch: Batch, out: LossOutput) -> list[dict[str, Any]]:
        """The targets of a batch with the largest nll, each with the ids before it in its document."""
        assert out.worst is not None
        found = []
        for nll, index in zip(out.worst["nll"].tolist(), out.worst["index"].tolist(), strict=True):
            row, place = divmod(index, batch.targets.shape[1])
            if batch.targets[row, place] < 0:  # a batch of fewer targets than are shown
                continue
            first = place - min(int(batch.positions[row, place]), CONTEXT_TOKENS)
            context = batch.tokens[row, first : place + 1].tolist()
            found.append({"nll": nll, "target": [int(batch.targets[row, place])], "context": context})
        return found

    def samples(self) -> list[dict[str, str]]:
        """A text for each configured prompt, at least on rank 0; always from one seed, so that steps can be compared.

        All ranks have to ask.
        """
        wanted, tokenizer = self.config.eval, self.data.tokenizer
        if not wanted.sample_tokens:
            return []
        made = self.learner.generate(
            self.prompts, max_new_tokens=wanted.sample_tokens, temperature=SAMPLE_TEMPERATURE,
            stop_id=tokenizer.end_id, seed=fold_seed(self.config.run.seed, "sample"),
        )  # fmt: skip
        return [{"prompt": p, "text": tokenizer.decode(ids)} for p, ids in zip(wanted.prompts, made, strict=False)]

    @property
    def keep_every(self) -> int | None:
        """Steps between two checkpoints that are kept for ever."""
        return None if self.config.save.keep_every is None else self.length(self.config.save.keep_every)

    @property
    def background(self) -> bool:
        """Whether checkpoints are written while training goes on."""
        wanted = self.config.save.background
        return self.learner.device.type == "cuda" if wanted == "auto" else wanted

    @property
    def sharded(self) -> bool:
        """Whether each rank writes its part of a checkpoint."""
        wanted = self.config.save.payload
        return self.learner.parallel == "fsdp" if wanted == "auto" else wanted == "sharded"

    def save(self, keeper: Keeper, state: State, nll: float | None, *, last: bool) -> bool:
        """Hand a checkpoint with its `nll`, None when it was not evaluated, to the keeper; see `Keeper.save`."""
        learner = self.learner
        state.scaler = learner.precision.state()
        kept = dataclasses.asdict(state) | {"nll": nll}

        def others(directory: Path) -> None:
            save_shape(learner.model, directory)
            self.data.tokenizer.save(directory)

        return keeper.save(state.step, learner.weights(), learner.optimizers.state(), others, kept, last=last)

    def load(self, directory: Path, state: State) -> None:
        """Restore weights, optimizer and loss scale from a verified checkpoint."""
        learner = self.learner
        read(directory, learner.weights(), learner.optimizers.state())
        learner.precision.load_state(state.scaler)


def build(config: RunConfig, data: Prepared, ranks: Ranks, device: torch.device, state: State) -> Parts:
    """The parts of a run that is in `state`.

    Raises ValueError for a prompt that the tokenizer cannot spell, a label that no document has, a share of the data
    that cannot be kept, or more epochs than wanted.
    """
    tokenizer = data.tokenizer
    prompts = [[tokenizer.end_id, *tokenizer.encode(prompt)] for prompt in config.eval.prompts]
    labels = held_out_labels(data, config.eval.by)
    groups = {name: (torch.from_numpy(codes), values) for name, (codes, values) in labels.items()}
    learner = build_learner(config, tokenizer.vocab_size, ranks, device, state.auto, data)
    learner.optimizers.allocate()  # so that a checkpoint always holds all of it, also where no step was applied yet
    rows, total = rows_per_step(config), total_steps(config, data.train.rows, state)
    loader = Loader(
        data, batch_rows=rows, micro_rows=learner.micro_rows, rank=ranks.rank, world_size=ranks.world_size,
        seed=config.run.seed, offset=state.row - state.step * rows, order=order_in_run(config, data, state, total),
        pin=device.type == "cuda",
    )  # fmt: skip
    return Parts(config, learner, data, loader, prompts, total, groups, starts_in_run(config, state, total))


def prepare_once(config: RunConfig, place: Place) -> Prepared:
    """The prepared corpus: made by the first process of each machine, while the others wait for it."""
    if place.local_rank == 0:
        return prepare(config.data, config.model.context)
    while (found := lookup(config.data, config.model.context)) is None:
        time.sleep(0.2)
    return found
