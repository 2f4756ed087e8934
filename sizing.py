"""How many rows go through the model at once, so that a step fits into memory."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from configs import RunConfig
from data import Batch
from loss import chunk_rows
from model import Transformer
from trainer import memory
from trainer.distributed import Ranks

_SIGNS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")


class OutOfMemory(MemoryError):
    """A step does not fit; the message tells in one line what it takes and what would make it less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python or torch, on any device, says that memory is exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def fitting_rows(
    config: RunConfig, model: Transformer, vocab_size: int, rows: int, device: torch.device, shards: int = 1
) -> int:
    """As many of a rank's `rows` as should fit into memory at once, give or take what divides them.

    A rule of thumb from the model's shape. Of weights, gradients and optimizer state a rank holds one of `shards`; on a
    CPU they do not count, as caches set the limit there, which a step goes through once however large it is.
    """
    budget, roles, shape = memory.free_bytes(device), model.roles(), config.model
    matrix = sum(p.numel() for name, p in model.named_parameters() if roles[name] == "matrix")
    by_muon = matrix if config.optim.name == "muon" else 0
    chunk = chunk_rows(vocab_size, device) if config.loss.chunk == "auto" else config.loss.chunk
    layers = 1 if config.train.activation_checkpointing else shape.layers  # besides one activation of each

    def needed(count: int) -> int:
        tokens = count * shape.context
        at_once = tokens if config.loss.fused == "off" else min(chunk, tokens)
        parts = memory.estimate(model.parameter_count(), by_muon, tokens, layers, shape.dim)
        activations = parts.pop("activations") + memory.inputs(tokens, shape.layers - layers, shape.dim)
        held = 0 if device.type == "cpu" else sum(parts.values()) // shards
        return held + activations + memory.logits(at_once, vocab_size)

    return memory.largest_micro_rows(rows, lambda count: needed(count) <= budget)


class Trainee(Protocol):
    """What of a learner a trial needs."""

    config: RunConfig
    ranks: Ranks
    device: torch.device
    model: Transformer
    module: Any
    optimizers: Any
    micro_rows: int

    def forward(self, batch: Batch, **options: Any) -> Any: ...

    def backward(self, loss: Tensor) -> None: ...


def settle(learner: Trainee, rows: int) -> int:
    """The rows of a micro-batch of a rank's `rows`: the learner's own number, less while that runs out of memory.

    Forward and backward of random tokens beside the optimizer's state; gradients are dropped and nothing is moved.
    What all ranks do together is left out, so that one that fails leaves none waiting, and after each trial all
    agree. Raises OutOfMemory when one row is too much.
    """
    learner.optimizers.allocate()

    def attempt(count: int) -> None:
        batch = random_batch(count, learner.config.model.context, learner.model.vocab_size, learner.device)
        try:
            for _ in range(1 if count >= rows else 2):  # gradients of the first are there while the second runs
                with learner.ranks.sync_if(learner.module, last=False):
                    learner.backward(learner.forward(batch).loss)
        finally:
            learner.module.zero_grad(set_to_none=True)

    return first_that_fits(attempt, learner.ranks, learner.micro_rows, rows)


def first_that_fits(attempt: Callable[[int], None], ranks: Ranks, count: int, rows: int) -> int:
    """`count`, or about a half of it, a quarter ...: the first that `attempt` does on every rank."""
    while True:
        fits = True
        try:
            attempt(count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        memory.release(ranks.device)
        if ranks.smallest(int(fits)):
            return count
        if count == 1:
            raise OutOfMemory("out of memory with train.micro_rows=1, in a trial before the first step")
        count = memory.largest_micro_rows(rows, (count // 2).__ge__)


def random_batch(rows: int, context: int, vocab_size: int, device: torch.device) -> Batch:
    """Rows of random tokens, with attention that looks at positions, as in training on documents in one row."""
    tokens = torch.randint(0, vocab_size, (rows, context), generator=torch.Generator().manual_seed(0))
    return Batch(
        tokens=tokens, targets=tokens.roll(-1, 1), positions=torch.arange(context).repeat(rows, 1),
        weights=torch.ones(rows, context), bytes=torch.ones((rows, context), dtype=torch.int32),
        source=torch.zeros(rows, dtype=torch.int64), single_document=False,
    ).to(device)  # fmt: skip
