"""Puts the parts of a run together from its config, for `train.py` and the scripts that need the same parts.

The only other place where parts meet is `train.py` itself.
"""

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs import RunConfig
from data import Batch, Loader, Prepared, lookup, prepare
from durable import STATE
from eval import evaluate, score_sources
from loss import LossOutput, Objective, build_objective, metrics
from model import ModelConfig, Transformer, eval_mode, generate, load_model, save_model
from trainer import checkpoint, memory
from trainer.distributed import Place, Ranks
from trainer.meters import peak_flops
from trainer.optim import Optimizers
from trainer.precision import Precision, resolve
from trainer.schedule import parse_tokens, steps_of

Score = Callable[[Batch], tuple[Tensor, Tensor]]
SAMPLE_TEMPERATURE = 0.8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """What `auto` settings came to: decided once, then reused."""
    data: str | None = None
    """Fingerprint of the prepared corpus."""
    sums: dict[str, float] = field(default_factory=dict)
    """Open sums of the current window of metrics, over all ranks."""
    guard: dict[str, int] = field(default_factory=dict)
    """Skipped steps, in all and in a row."""
    scaler: dict[str, float] = field(default_factory=dict)
    """Loss scale (fp16)."""
    best: float | None = None
    """Lowest nll of a saved step, on the validation rows that every evaluation scores."""
    best_step: int | None = None
    """The step that had it."""
    wandb_id: str | None = None
    """So that a resumed run goes on in the same wandb run."""

    @classmethod
    def read(cls, checkpoint: Path) -> "State":
        """The state in a verified checkpoint, whose `state.json` holds the list of files too."""
        saved = json.loads((checkpoint / STATE).read_text())
        return cls(**{f.name: saved[f.name] for f in dataclasses.fields(cls) if f.name in saved})


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


def fold_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for one purpose and place: 63 bits of a hash, so that neighbors share nothing."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, numbers))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def make_model(config: ModelConfig, vocab_size: int, seed: int) -> Transformer:
    """A freshly initialized model: the same weights for the same seed on any device and number of ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold_seed(seed, "init"))
        return Transformer(config, vocab_size)


def rows_per_step(config: RunConfig) -> int:
    """Rows of one optimizer step over all ranks."""
    return config.train.batch_tokens // config.model.context


def total_steps(config: RunConfig, train_rows: int, state: State) -> int:
    """Optimizer steps of the whole run; tokens and epochs round up to whole steps.

    What is left after `state` is counted in steps of the present size.
    """
    train, rows = config.train, rows_per_step(config)
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        wanted = -(-parse_tokens(train.tokens) // config.model.context)
    else:
        assert train.epochs is not None  # the schema asks for exactly one of the three
        wanted = max(1, math.ceil(train.epochs * train_rows))
    return state.step + max(0, -(-(wanted - state.row) // rows))


@dataclass
class Learner:
    """A model with what makes it learn: everything of a step but the rows."""

    config: RunConfig
    ranks: Ranks
    device: torch.device
    model: Transformer
    """The bare model: names, weights, evaluation."""
    module: nn.Module
    """The same, as training calls it: wrapped when there are several ranks."""
    objective: Objective
    optimizers: Optimizers
    precision: Precision
    micro_rows: int
    """Rows of one forward pass."""

    @property
    def auto(self) -> dict[str, Any]:
        """What `auto` settings came to, on this kind of device."""
        return {"device": self.device.type, "precision": self.precision.name, "micro_rows": self.micro_rows}

    @cached_property
    def flops_per_token(self) -> float:
        return self.model.flops_per_token(self.config.model.context)

    @cached_property
    def peak_flops(self) -> float:
        """FLOP/s of one device that count as full utilization."""
        return peak_flops(self.device, DTYPES[self.precision.name])[0]

    def forward(self, module: nn.Module, batch: Batch, **options: Any) -> LossOutput:
        """The objective of a batch; `options` as for `Objective.from_logits`."""
        positions = None if batch.single_document else batch.positions
        with self.precision.autocast():
            hidden = module(batch.tokens, positions, logits=False)
            return self.objective(hidden, self.model.head_weight, batch.targets, batch.weights, **options)

    def seed_dropout(self, step: int, micro: int) -> None:
        """Dropout is a function of (seed, step, micro-batch, rank), so that there is no generator to save."""
        if self.config.model.dropout:
            torch.manual_seed(fold_seed(self.config.run.seed, "dropout", step, micro, self.ranks.rank))

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients, under fp16 scaled."""
        self.precision.scaler.scale(loss).backward()

    def clip(self) -> Tensor:
        """Clip the gradients, without the fp16 scale; returns their global norm before, a scalar on the device."""
        if self.precision.scaler.is_enabled():
            for optimizer in self.optimizers.all:
                self.precision.scaler.unscale_(optimizer)
        return self.optimizers.clip()

    def update(self, factor: float, finite: Tensor) -> None:
        """Move the weights at `factor` times the peak rates where `finite`, and forget the gradients."""
        self.optimizers.step(factor, finite)
        self.optimizers.zero_grad()
        if self.precision.scaler.is_enabled():
            self.precision.scaler.update()


def build_learner(
    config: RunConfig, vocab_size: int, ranks: Ranks, device: torch.device, auto: dict[str, Any] | None = None
) -> Learner:
    """The learner of a config. What `auto` says, decided by an earlier start on such a device, holds again."""
    decided = auto if auto and auto["device"] == device.type else {}
    train = config.train
    model = make_model(config.model, vocab_size, config.run.seed).to(device)
    if train.compile is True or (train.compile == "auto" and device.type == "cuda"):
        for block in model.blocks:
            block.compile(dynamic=False)
    automatic = train.precision == "auto" and "precision" in decided
    precision = Precision(decided["precision"] if automatic else resolve(train.precision, device), device)
    rows = -(-rows_per_step(config) // ranks.world_size)
    micro_rows = train.micro_rows
    if micro_rows == "auto":
        micro_rows = decided.get("micro_rows") or ranks.smallest(fitting_rows(config, model, vocab_size, rows, device))
    return Learner(
        config=config,
        ranks=ranks,
        device=device,
        model=model,
        module=ranks.wrap(model),
        objective=build_objective(config.loss, vocab_size=vocab_size),
        optimizers=Optimizers(
            dict(model.named_parameters()),
            model.roles(),
            config.optim,
            muon_dtype=torch.bfloat16 if precision.name == "bf16" else torch.float32,
        ),
        precision=precision,
        micro_rows=min(micro_rows, rows),
    )


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

    def every(self, section: str) -> int:
        """Steps between two acts of `eval`, `save` or `track`."""
        length = getattr(self.config, section).every
        return max(1, steps_of(length, self.total, self.config.train.batch_tokens))

    def evaluate(self, *, last: bool) -> tuple[dict[str, float], float]:
        """(`val/...` metrics, nll to compare checkpoints by); the same on every rank.

        The metrics are over `eval.max_tokens` validation rows, always the same ones, and over all rows when `last`;
        the nll is always over the same ones, since that of other rows says nothing about the model.
        """
        scores = self._score(self.config.eval.max_tokens)
        nll = scores["val/nll"]
        if last and self.config.eval.max_tokens < self.data.val.rows * self.data.context:
            scores = self._score(None)
        return scores, nll

    def _score(self, max_tokens: int | None) -> dict[str, float]:
        with eval_mode(self.learner.model):
            return evaluate(*self._held_out(max_tokens), reduce=self.learner.ranks.sum, metrics=metrics)

    def score_sources(self) -> dict[str, dict[str, float]]:
        """Scores over all validation rows by source, in all under `""`."""
        with eval_mode(self.learner.model):
            return score_sources(*self._held_out(None), reduce=self.learner.ranks.sum, metrics=metrics)

    def _held_out(self, max_tokens: int | None) -> tuple[Score, Iterator[Batch], tuple[str, ...]]:
        """How to score a batch, the batches, and the names of their sources."""
        learner = self.learner

        def score(batch: Batch) -> tuple[Tensor, Tensor]:
            each = learner.forward(learner.model, batch.to(learner.device), per_token=True).per_token
            assert each is not None
            return each["nll"], each["correct"]

        return score, self.loader.validation(max_tokens, learner.micro_rows), self.data.source_names

    def samples(self) -> list[dict[str, str]]:
        """On rank 0, a text for each configured prompt; always from one seed, so that steps can be compared."""
        wanted, tokenizer = self.config.eval, self.data.tokenizer
        if not wanted.sample_tokens or self.learner.ranks.rank > 0:
            return []
        made = generate(
            self.learner.model, self.prompts, max_new_tokens=wanted.sample_tokens, temperature=SAMPLE_TEMPERATURE,
            stop_id=tokenizer.end_id, seed=fold_seed(self.config.run.seed, "sample"),
        )  # fmt: skip
        return [{"prompt": p, "text": tokenizer.decode(ids)} for p, ids in zip(wanted.prompts, made, strict=True)]

    def save(self, path: Path, state: State, nll: float | None) -> None:
        """Write a checkpoint; with an `nll` lower than any saved so far it is the best one."""
        if nll is not None and math.isfinite(nll) and (state.best is None or nll < state.best):
            state.best, state.best_step = nll, state.step
        state.scaler = self.learner.precision.state()

        def write(directory: Path) -> None:
            save_model(self.learner.model, directory)
            self.data.tokenizer.save(directory)
            checkpoint.write_tensors(directory, self.learner.optimizers.state())

        if self.learner.ranks.rank == 0:
            checkpoint.save(path, state.step, write, dataclasses.asdict(state), keep=self.config.save.keep)

    def load(self, directory: Path, state: State) -> None:
        """Restore weights, optimizer and loss scale from a verified checkpoint."""
        self.learner.model.load_state_dict(load_model(directory).state_dict())
        self.learner.optimizers.load_state(checkpoint.read_tensors(directory))
        self.learner.precision.load_state(state.scaler)


def build(config: RunConfig, data: Prepared, ranks: Ranks, device: torch.device, state: State) -> Parts:
    """The parts of a run that is in `state`. Raises ValueError for a prompt that the tokenizer cannot spell."""
    tokenizer = data.tokenizer
    prompts = [[tokenizer.end_id, *tokenizer.encode(prompt)] for prompt in config.eval.prompts]
    learner = build_learner(config, tokenizer.vocab_size, ranks, device, state.auto)
    rows = rows_per_step(config)
    loader = Loader(
        data, batch_rows=rows, micro_rows=learner.micro_rows, rank=ranks.rank, world_size=ranks.world_size,
        seed=config.run.seed, offset=state.row - state.step * rows, pin=device.type == "cuda",
    )  # fmt: skip
    return Parts(config, learner, data, loader, prompts, total_steps(config, data.train.rows, state))


def prepare_once(config: RunConfig, place: Place) -> Prepared:
    """The prepared corpus: made by the first process of each machine, while the others wait for it."""
    if place.local_rank == 0:
        return prepare(config.data, config.model.context)
    while (found := lookup(config.data, config.model.context)) is None:
        time.sleep(0.2)
    return found


def memory_parts(config: RunConfig, model: Transformer, vocab_size: int, rows: int) -> dict[str, int]:
    """Estimated bytes of a training step with micro-batches of `rows`."""
    roles = model.roles()
    matrix = sum(p.numel() for name, p in model.named_parameters() if roles[name] == "matrix")
    by_muon = matrix if config.optim.name == "muon" else 0
    shape = config.model
    return memory.estimate(model.parameter_count(), by_muon, rows, shape.context, shape.layers, shape.dim, vocab_size)


def fitting_rows(config: RunConfig, model: Transformer, vocab_size: int, rows: int, device: torch.device) -> int:
    """As many of a rank's `rows` as fit in memory at once, give or take what divides them."""
    part = memory_parts(config, model, vocab_size, 1)
    per_row = part.pop("activations") + part.pop("logits")
    return memory.largest_micro_rows(rows, memory.free_bytes(device), sum(part.values()), per_row)
