"""A training step of ours, as `train.py` takes it, for `python -m scripts.bench train`; and what it is compared with.

`python -m scripts.benches.train_ours REQUEST` does one measurement and prints a JSON object.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from assemble import set_up_process
from configs import RunConfig, load
from data import Batch
from learner import Learner, build_learner
from trainer.distributed import Place, Ranks, pick_device
from trainer.guard import Guard
from trainer.meters import measured_peak
from trainer.schedule import momentum_at, rate_factor
from trainer.window import Window

from .measuring import ROOT
from .train_pace import RATE, Pace, Request, Shape, batches, load_compiler

TOTAL = 1_000_000  # steps of the run that these are the first of
LENGTH = "length"
"""The option that says how many tokens documents have, several to a row; all others are settings of a run."""


def config_of(shape: Shape, precision: str, options: dict[str, Any], device: str = "cpu") -> RunConfig:
    """The run of a shape: everything that is not the shape's or asked for is the default."""
    model = {"layers": shape.layers, "dim": shape.dim, "heads": shape.heads, "context": shape.context, "tie": True}
    settings: dict[str, Any] = {f"model.{name}": value for name, value in model.items()}
    settings |= {f"optim.rates.{role}": RATE for role in ("matrix", "embed", "head", "vector")}
    settings |= {"train.steps": TOTAL, "train.batch_tokens": shape.tokens, "train.precision": precision}
    settings |= {"train.compile": "auto", "run.device": device, "loss": "ce"} | options
    return load(str(ROOT / "configs" / "tiny.yaml"), [f"{key}={value}" for key, value in settings.items()])


class Step:
    """What the loop in `train.py` does for each step but for output and what watches the run."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.index = learner, 0
        self.guard = Guard(learner.device, sigma=learner.config.train.spike_sigma)
        self.window = Window(learner.device)

    def __call__(self, micro: Sequence[Batch], targets: int) -> torch.Tensor:
        """Take the next step with this rank's rows, of `targets` over all ranks; returns its loss per target."""
        learner, ranks = self.learner, self.learner.ranks
        for i, rows in enumerate(micro):
            learner.seed_dropout(self.index, i)
            with ranks.sync_if(learner.module, last=i == len(micro) - 1):
                out = learner.forward(rows.to(learner.device), denom=targets, progress=self.index / TOTAL)
                learner.backward(out.loss * ranks.world_size)
            self.window.add(out.sums)
        norm = learner.clip()
        loss = self.window.step["loss"]
        good = self.guard.check(self.index, norm, loss, targets, ranks.sum)
        config = learner.config
        batch_tokens = config.train.batch_tokens
        rate = rate_factor(self.index, TOTAL, config.schedule, batch_tokens)
        learner.update(rate, good, momentum_at(self.index, TOTAL, config.optim, batch_tokens))
        self.window.close_step(good, norm)
        self.index += 1
        self.guard.exhausted()
        if self.index % 10 == 0:  # a row of metrics
            self.window.read(ranks.sum)
            self.guard.read()
        return loss.detach() * ranks.world_size / targets


def batch(tokens: torch.Tensor, targets: torch.Tensor, length: int | None = None) -> Batch:
    """Rows as the loader would give them, of documents of `length` tokens, or of one document each."""
    rows, context = tokens.shape
    return Batch(
        tokens=tokens, targets=targets, positions=(torch.arange(context) % (length or context)).repeat(rows, 1),
        weights=torch.ones(rows, context), bytes=torch.ones((rows, context), dtype=torch.int32),
        source=torch.zeros(rows, dtype=torch.int64), single_document=length is None, weighted=False,
    )  # fmt: skip


def feed(shape: Shape, micro_rows: int, ranks: Ranks, length: int | None = None) -> Iterator[list[Batch]]:
    """A rank's micro-batches of each step."""
    share, on_gpu = shape.rows // ranks.world_size, ranks.device.type == "cuda"
    for tokens, targets in batches(shape):
        begin = ranks.rank * share
        starts = range(begin, begin + share, micro_rows)
        ends = [min(start + micro_rows, begin + share) for start in starts]
        micro = [batch(tokens[i:j], targets[i:j], length) for i, j in zip(starts, ends, strict=True)]
        yield [rows._each(torch.Tensor.pin_memory) for rows in micro] if on_gpu else micro


def ours(request: Request) -> dict[str, Any]:
    """Tokens per second and memory of our training step; under torchrun those of all ranks, and the memory of one."""
    shape, place = request.shape, Place.from_environment()
    device, options = pick_device(request.device, place), dict(request.options)
    length = options.pop(LENGTH, None)
    config = config_of(shape, request.precision, options, request.device)
    set_up_process(config, place, device)
    if device.type == "cpu" and config.train.compile is True:
        load_compiler()
    pace, ranks = Pace(request.seconds, request.device), Ranks(place, device)
    learner = build_learner(config, shape.vocab, ranks, device)
    step, losses = Step(learner), list[torch.Tensor]()
    for micro in feed(shape, learner.micro_rows, ranks, length if config.data.pack.document_mask else None):
        losses.append(step(micro, shape.tokens))
        if ranks.any(pace.done()):
            break
    ranks.close()
    told: dict[str, Any] = {"flops": learner.flops_per_token, "rank": place.rank, "compile": learner.compiled}
    told |= {"precision": learner.precision.name, "micro_rows": learner.micro_rows}
    return pace.answer(shape, losses, learner.model.parameter_count()) | told


def peak(request: Request) -> dict[str, Any]:
    """FLOP/s of matrix products, the most that a step could reach, and the FLOPs of a token of a GPT-2 shape."""
    from model import Transformer

    shape, dtypes = request.shape, {"fp32": torch.float32, "bf16": torch.bfloat16}
    with torch.device("meta"):
        model = Transformer(config_of(shape, "fp32", {"model.preset": "gpt2"}).model, shape.vocab)
    found = {name: measured_peak(request.device, dtype, seconds=request.seconds / 4) for name, dtype in dtypes.items()}
    return found | {"flops": model.flops_per_token(shape.context), "threads": torch.get_num_threads()}


def main(argv: Sequence[str]) -> None:
    request = Request.read(argv[0])
    answer = (peak if request.who == "peak" else ours)(request)
    if not answer.get("rank"):  # under torchrun the first one speaks
        print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
