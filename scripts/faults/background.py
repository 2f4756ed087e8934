"""What a checkpoint costs training: written while it waits, and written in the background."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import durable
from model import ModelConfig, Transformer
from trainer.checkpoint import Saver
from trainer.distributed import Place, Ranks
from trainer.keeper import Keeper

VOCAB = 16384
LARGE = ModelConfig(preset="qwen3", layers=12, dim=768, heads=12, context=128)
SMALL = ModelConfig(preset="qwen3", layers=2, dim=64, heads=2, context=32)


def saving_times(folder: Path, shape: ModelConfig, saves: int) -> dict[str, Any]:
    """Seconds that `saves` checkpoints of a model and AdamW's state take from training, the first one left out.

    `foreground`: a save that training waits for. `blocked`: the same in the background, until training goes on.
    `contention`: what steps during such a save take more than others, in all. Medians; on a CPU, with one thread.
    """
    model = Transformer(shape, VOCAB)
    state = {f"optim.{name}.{key}": torch.rand_like(parameter) for name, parameter in model.named_parameters()
             for key in ("exp_avg", "exp_avg_sq")}  # fmt: skip
    tokens = torch.randint(VOCAB, (1, shape.context))

    def step() -> float:
        began = time.monotonic()
        F.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten()).backward()
        for parameter in model.parameters():
            parameter.grad = None
        return time.monotonic() - began

    usual = statistics.median([step() for _ in range(6)][1:])
    found: dict[str, Any] = {"parameters": model.parameter_count(), "step": usual}
    for way in ("foreground", "background"):
        saver = Saver(folder / way, keep=1, keep_every=None, background=way == "background",
                      ranks=Ranks(Place(), torch.device("cpu")), warn=_fail)  # fmt: skip
        keeper = Keeper(saver, sharded=False)
        (folder / way).mkdir(parents=True)
        blocked, lost = [], []
        for number in range(saves + 1):
            began = time.monotonic()
            saved = keeper.save(number + 1, model.state_dict(), state, lambda _: None, {"nll": None}, last=False)
            blocked.append(time.monotonic() - began)
            assert saved
            lost.append(0.0)
            while number + 1 not in map(durable.step_of, durable.list_checkpoints(saver.run)):
                lost[-1] += step() - usual
            saver.wait()
        found[way] = statistics.median(blocked[1:])
        found["contention"] = statistics.median(lost[1:])
    tensors = (*model.state_dict().values(), *state.values())
    found["bytes"] = sum(tensor.nbytes for tensor in tensors)
    return found


def _fail(warning: str) -> None:
    raise AssertionError(warning)
