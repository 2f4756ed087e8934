"""A model with what makes it learn: the objective, the optimizers, the precision, and how many rows fit at once."""

import functools
import hashlib
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from configs import RunConfig
from data import Batch, Prepared, load_tokenizer
from hardware import pick_attention, pick_precision, set_up_blocks
from loss import Head, LossConfig, LossOutput, Objective, build_objective
from model import ModelConfig, Transformer, generate, load_model
from sizing import fitting_rows, settle
from trainer.distributed import Parallel, Ranks
from trainer.meters import peak_flops
from trainer.optim import Optimizers
from trainer.precision import DTYPES, Precision

SCORED_TOKENS = 4096  # of one batch of an evaluation, about
STATE_BYTES = 16  # of a parameter: the weight, its gradient and AdamW's two moments, in fp32


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


def positions_of(batch: Batch) -> Tensor | None:
    """What keeps a batch's documents apart; None when plain causal attention does."""
    return None if batch.single_document else batch.positions


@dataclass
class Learner:
    """A model with what makes it learn: everything of a step but the rows."""

    config: RunConfig
    ranks: Ranks
    device: torch.device
    model: Transformer
    """The bare model: names, weights, evaluation. Under fsdp every rank has to call it as often as the others."""
    module: nn.Module
    """The same, as training calls it: wrapped when there are several ranks."""
    parallel: Parallel | None
    """How several ranks share it."""
    objective: Objective
    """What training minimizes."""
    plain: Objective
    """What evaluation reports: nll, whatever training minimizes."""
    teacher: Transformer | None
    """What training distills from."""
    optimizers: Optimizers
    precision: Precision
    micro_rows: int
    """Rows of one forward pass."""
    attention: str | None = None
    """The kernel that a CPU computes attention with in bf16."""
    compiled: bool = False
    """Whether the model's blocks are."""

    @property
    def auto(self) -> dict[str, Any]:
        """What `auto` settings came to, on this kind of device."""
        found = {"device": self.device.type, "precision": self.precision.name, "micro_rows": self.micro_rows}
        if self.device.type == "cuda":
            if self.config.train.compile == "auto":
                found["compile"] = self.compiled
            if self.compiled and self.config.data.pack.document_mask:
                found["attention"] = "flex" if self.model.tiles else "dense"
        elif self.attention:
            found["attention"] = self.attention
        return found | ({"parallel": self.parallel} if self.parallel else {})

    @property
    def score_rows(self) -> int:
        """Rows of one batch of an evaluation: more than of a small step, whose tensors would be too few to be fast.

        Without the fused head logits of all rows are held, so there it is what memory was asked for.
        """
        if self.config.loss.fused == "off":
            return self.micro_rows
        return max(self.micro_rows, SCORED_TOKENS // self.config.model.context)

    @cached_property
    def flops_per_token(self) -> float:
        return self.model.flops_per_token(self.config.model.context)

    @cached_property
    def peak_flops(self) -> float:
        """FLOP/s of one device that count as full utilization."""
        return peak_flops(self.device, DTYPES[self.precision.name])[0]

    @cached_property
    def teacher_digest(self) -> str | None:
        """sha256 of the teacher's weights."""
        if self.teacher is None:
            return None
        digest = hashlib.sha256()
        for weight in self.teacher.parameters():
            digest.update(weight.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def forward(self, batch: Batch, **options: Any) -> LossOutput:
        """The training objective of a batch; `options` as for `Objective.from_logits`."""
        have = {"source": batch.source, "position": batch.positions}
        extra: dict[str, Any] = {name: have[name] for name in have.keys() & self.objective.reads}
        with self.precision.autocast():
            if self.teacher is not None:
                with torch.no_grad():
                    extra["teacher_hidden"] = self.teacher(batch.tokens, positions_of(batch), logits=False)
                extra["teacher_head"] = Head(self.teacher.head_weight)
            hidden = self.module(batch.tokens, positions_of(batch), logits=False)
            weights = batch.weights if batch.weighted else None
            return self.objective(hidden, Head(self.model.head_weight), batch.targets, weights, extra=extra, **options)

    def score(self, batch: Batch, *, detail: bool = False) -> LossOutput:
        """Each target's nll, without gradients; with `detail` what costs another pass over the vocabulary."""
        with self.precision.autocast(), torch.no_grad():
            hidden = self.model(batch.tokens, positions_of(batch), logits=False)
            extra = {"position": batch.positions} if detail else None
            return self.plain(
                hidden, Head(self.model.head_weight), batch.targets, per_token=True, detail=detail, extra=extra
            )

    def generate(self, prompts: list[list[int]], *, stop_id: int, **options: Any) -> list[list[int]]:
        """What `model.generate` makes of prompts, on rank 0; under fsdp, where all have to take part, on every rank."""
        # Text comes in all lengths: compiled blocks would be compiled anew for each.
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        if self.parallel != "fsdp":
            with eager:
                return generate(self.model, prompts, stop_id=stop_id, **options) if self.ranks.rank == 0 else []
        with eager, self.precision.autocast():  # weights are gathered in the precision of training
            # To the full length: were a token drawn otherwise on one rank, it must not leave the others waiting.
            made = generate(self.model, prompts, **options, sharded=True)
        return [ids[: ids.index(stop_id)] if stop_id in ids else ids for ids in made]

    def weights(self) -> dict[str, Tensor]:
        """Every weight by name, a tied one once, to read or to fill; under fsdp DTensors with a part on each rank."""
        if self.parallel == "fsdp":
            self.module.reshard()  # type: ignore[operator]  # an evaluation leaves what is outside of blocks gathered
        return dict(self.model.named_parameters())

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
                self.precision.scaler.unscale_(optimizer)  # type: ignore[arg-type]  # it reads param_groups alone
        return self.optimizers.clip()

    def update(self, factor: float, finite: Tensor, momentum: float | None = None) -> None:
        """Move the weights at `factor` times the peak rates where `finite`, and forget the gradients.

        `momentum` is Muon's from now on.
        """
        if momentum is not None:
            self.optimizers.set_momentum(momentum)
        self.optimizers.step(factor, finite)
        self.optimizers.zero_grad()
        if self.precision.scaler.is_enabled():
            self.precision.scaler.update()


def build_learner(
    config: RunConfig,
    vocab_size: int,
    ranks: Ranks,
    device: torch.device,
    auto: dict[str, Any] | None = None,
    data: Prepared | None = None,
) -> Learner:
    """The learner of a config. What `auto` says, decided by an earlier start on such a device, holds again.

    Without `data`, for an estimate, every id counts as seen equally often.
    """
    plain = LossConfig(fused=config.loss.fused, chunk=config.loss.chunk)
    decided = auto if auto and auto["device"] == device.type else {}
    train = config.train
    model = make_model(config.model, vocab_size, config.run.seed)
    room = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    wanted = decided.get("parallel", train.parallel) if train.parallel == "auto" else train.parallel
    parallel = ranks.pick_parallel(wanted, STATE_BYTES * model.parameter_count(), room)
    if parallel != "fsdp":  # which moves a block at a time and keeps a part of it: a whole model may not fit
        model = model.to(device)
    precision = Precision(pick_precision(config, ranks, device, decided), device)
    attention = pick_attention(config, model, ranks, device, precision.name, decided)
    compiled = set_up_blocks(config, model, ranks, device, precision.name, decided)
    rows = -(-rows_per_step(config) // ranks.world_size)
    micro_rows, tried = train.micro_rows, True
    if micro_rows == "auto":
        tried = "micro_rows" in decided
        shards = ranks.world_size if parallel == "fsdp" else 1
        fit = decided.get("micro_rows") or fitting_rows(config, model, vocab_size, rows, device, shards)
        micro_rows = ranks.smallest(fit)
    learner = Learner(
        config=config,
        ranks=ranks,
        device=device,
        model=model,
        module=ranks.wrap(model, model.blocks, parallel, DTYPES[precision.name]),
        parallel=parallel,
        objective=make_objective(config, vocab_size, data),
        plain=training_loss(replace(config, loss=plain), vocab_size, data),
        teacher=make_teacher(config, vocab_size, data, device),
        optimizers=Optimizers(
            dict(model.named_parameters()),
            model.roles(),
            config.optim,
            muon_dtype=torch.bfloat16 if precision.name == "bf16" else torch.float32,
            ranks=ranks if parallel == "ddp" else None,
        ),
        precision=precision,
        micro_rows=min(micro_rows, rows),
        attention=attention,
        compiled=compiled,
    )
    learner.objective.compiled = learner.plain.compiled = compiled and device.type == "cuda"
    if not tried and device.type == "cuda" and parallel != "fsdp":  # whose ranks cannot fail each for itself
        learner.micro_rows = settle(learner, rows)
        if compiled and learner.micro_rows < min(micro_rows, rows):
            torch.compiler.reset()  # graphs of the sizes that did not fit count against what may be compiled
    return learner


def training_loss(config: RunConfig, vocab_size: int, data: Prepared | None) -> Objective:
    """The loss of a config; without a corpus every id counts as seen equally often."""

    @functools.cache
    def counts() -> Tensor:
        return torch.ones(vocab_size) if data is None else torch.from_numpy(data.token_counts())

    names = data.source_names if data else tuple(config.data.sources)
    return build_objective(config.loss, vocab_size=vocab_size, counts=counts, sources=names)


def make_objective(config: RunConfig, vocab_size: int, data: Prepared | None) -> Objective:
    """The training objective. Raises ValueError when it reads what training lacks, or teaches nothing."""
    from loss.proof import teaches

    objective, teacher = training_loss(config, vocab_size, data), config.loss.teacher
    have = {"source", "position", "teacher_logits"}
    for part, _ in (*objective.recipe.terms, *objective.recipe.weights, *objective.recipe.transforms):
        if missing := sorted(set(part.reads) & objective.reads - have):
            told = f"it has {', '.join(sorted(have))}"
            raise ValueError(f"loss: {part.name} reads {missing[0]}, which training does not have; {told}")
    if ("teacher_logits" in objective.reads) != (teacher is not None):
        some, none = "a term reads a teacher's logits; name a run", "no term reads a teacher's logits"
        raise ValueError(f"loss.teacher: {none if teacher else some}")
    if config.loss.ahead and not config.data.pack.document_mask:
        raise ValueError("loss.ahead: needs data.pack.document_mask, which tells where a document ends in its row")
    if objective.recipe.plugins:
        check_plugins(objective)
    if not teaches(objective):
        raise ValueError("loss: teaches nothing: its gradient is 0 from the first step to the last")
    return objective


def check_plugins(objective: Objective) -> None:
    """A short proof at every start. Raises ValueError for a loss from a user's file that fails it."""
    from loss.proof import QUICK, prove

    for verdict in prove(objective, QUICK):
        if not verdict.ok:
            names = ", ".join(objective.recipe.plugins)
            told = f"{verdict.name}: {verdict.detail}; python -m scripts.check_loss CONFIG tells more"
            raise ValueError(f"loss: {names} fails a check ({told})")


def make_teacher(config: RunConfig, vocab_size: int, data: Prepared | None, device: torch.device) -> Transformer | None:
    """The model that training distills from, frozen. Raises ValueError for one of another tokenizer or context."""
    path = config.loss.teacher
    if path is None:
        return None
    teacher = load_model(path, device=str(device)).requires_grad_(False)
    if teacher.vocab_size != vocab_size:
        raise ValueError(f"loss.teacher: {path} predicts {teacher.vocab_size} ids, this run {vocab_size}")
    if data is not None and load_tokenizer(path).sha256 != data.tokenizer_hash:
        raise ValueError(f"loss.teacher: {path} has another tokenizer than this corpus")
    if teacher.config.context < config.model.context:
        short = f"{teacher.config.context}, this run's {config.model.context}"
        raise ValueError(f"loss.teacher: {path} has a context of {short}")
    return teacher
