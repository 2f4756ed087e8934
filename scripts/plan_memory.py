"""How much memory a training step takes, found by going through one with tensors that have no contents.

The same code as in training says what is kept for the backward pass and when it is freed: nothing here knows a
model or a loss. What is not seen is what a kernel takes for itself while it runs.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from configs import RunConfig
from data import Batch
from learner import Learner, rows_per_step, training_loss
from model import Transformer
from model.store import SHAPE, find_model, read_shape
from sizing import OutOfMemory, fitting_rows, is_out_of_memory, random_batch
from trainer.distributed import Place, Ranks
from trainer.ledger import Ledger, without_contents
from trainer.optim import Optimizers
from trainer.precision import Precision, resolve

MIB = 1 << 20


def step_memory(
    config: RunConfig, vocab_size: int, rows: int, micro_batches: int, device: torch.device, precision: str = "auto"
) -> dict[str, int]:
    """Bytes at the peak of a step of so many micro-batches of `rows`, on one process that holds everything.

    By part: `weights` (with a teacher's), `optimizer` (its state, and what an update takes), `activations`,
    `loss` (logits, their gradients and the head's) and `gradients`. `precision` is what the config's `auto` came to.
    """
    with without_contents("weights") as ledger:
        learner = imagine(config, vocab_size, device, precision)
        batch = random_batch(rows, config.model.context, vocab_size, device)
        go_through(learner, batch, min(micro_batches, 2), ledger)
    return ledger.parts


def go_through(learner: Learner, batch: Batch, micro_batches: int, ledger: Ledger) -> None:
    """A step of one micro-batch, which makes the optimizer's state, and one of so many; each part on its account."""
    book_by_phase(learner.model, ledger)
    for count in (1, micro_batches):
        for _ in range(count):
            loss = learner.forward(batch).loss
            ledger.account = "gradients"
            learner.backward(loss)
            del loss
        ledger.account = "optimizer"
        learner.update(1e-9, torch.isfinite(learner.clip()))


def imagine(config: RunConfig, vocab_size: int, device: torch.device, precision: str = "auto") -> Learner:
    """A learner without contents, inside `without_contents`; uncompiled, and every id is seen equally often."""
    teacher = None
    with torch.device(device):
        model = Transformer(config.model, vocab_size)
        if config.loss.teacher is not None:
            shape, _ = read_shape(find_model(config.loss.teacher) / SHAPE)
            teacher = Transformer(shape, vocab_size).requires_grad_(False).eval()
    model.recompute = config.train.activation_checkpointing
    kind = resolve(config.train.precision if precision == "auto" else precision, device)
    objective = training_loss(config, vocab_size, None)
    muon_dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    return Learner(
        config=config, ranks=Ranks(Place(), device), device=device, model=model, module=model, parallel=None,
        objective=objective, plain=objective, teacher=teacher,
        optimizers=Optimizers(dict(model.named_parameters()), model.roles(), config.optim, muon_dtype=muon_dtype),
        precision=Precision(kind, device), micro_rows=1,
    )  # fmt: skip


def book_by_phase(model: Transformer, ledger: Ledger) -> None:
    """Book what the model makes as activations, and what comes after it as the loss."""

    def book(account: str) -> None:
        ledger.account = account

    model.register_forward_pre_hook(lambda *_: book("activations"))
    model.register_forward_hook(lambda *_: book("loss"))


def text_of(parts: dict[str, int]) -> str:
    """The parts of an estimate for people."""
    each = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in parts.items())
    return f"{sum(parts.values()) / MIB:,.0f} MiB (MiB: {each})"


@contextmanager
def memory_explained(config: RunConfig, vocab_size: int, ranks: Ranks) -> Iterator[None]:
    """Inside, running out of memory raises OutOfMemory, which says what a step takes and what would make it less."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # with them goes what the step held: telling needs some room
        try:
            told = out_of_memory_text(config, vocab_size, ranks)
        except Exception:  # no room even for that
            told = (
                "out of memory: train.micro_rows=1, train.activation_checkpointing=true or a smaller model takes less"
            )
        raise OutOfMemory(f"{told}; it said: {str(error).splitlines()[0][:120] or type(error).__name__}") from None


def out_of_memory_text(config: RunConfig, vocab_size: int, ranks: Ranks) -> str:
    """One line: what a step takes by part, and the settings that would make it less."""
    rows, device, train = -(-rows_per_step(config) // ranks.world_size), ranks.device, config.train
    wanted = train.micro_rows
    if wanted == "auto":
        with without_contents("weights"):
            wanted = fitting_rows(config, Transformer(config.model, vocab_size), vocab_size, rows, device)
    micro_rows = min(wanted, rows)
    parts = step_memory(config, vocab_size, micro_rows, -(-rows // micro_rows), device)
    less = [f"train.micro_rows={max(1, micro_rows // 2)} (now {micro_rows})"] if micro_rows > 1 else []
    less += [] if train.activation_checkpointing else ["train.activation_checkpointing=true"]
    less += ["loss.fused=on"] if config.loss.fused == "off" else []
    less += [] if less else ["a smaller model"]
    return f"out of memory: a step takes about {text_of(parts)}; less with {' or '.join(less)}"
