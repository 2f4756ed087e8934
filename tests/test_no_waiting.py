"""Between two rows of metrics no step of training may make the host wait for a GPU.

There is none here, so steps run on the meta device, whose tensors have no contents: whoever asks for one (`item`,
`bool`, `tolist`, `nonzero`, a mask as an index, a copy to the host) gets an error, as does a copy to the device that
would not return before it is done. What asks for the kind of device is told that it is a GPU.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # its tables hold torch's functions as they are at its first import: not those that stand in here
from torch import Tensor
from torch.optim.adamw import adamw
from torch.utils._python_dispatch import TorchDispatchMode

import trainer.adamw
from assemble import Parts, State, build
from configs import load
from data import Batch, prepare
from instruments import Instruments
from model.attention import document_tiles
from tests.conftest import Bench
from train import fit
from trainer.distributed import Place, Ranks
from trainer.guard import Guard
from trainer.meters import Throughput
from trainer.optim import Optimizers
from trainer.window import Window

META, GPU = torch.device("meta"), torch.device("cuda", 0)
STEPS = 7  # more than the guard lets the host be ahead
SETTINGS = ("train.steps=1000", "train.batch_tokens=1024", "train.micro_rows=4", "train.precision=fp32",
            "eval.every=999", "save.every=999", "track.every=999")  # fmt: skip


class Enough(Exception):
    """So many steps were made."""


class Copies(TorchDispatchMode):
    """Lets through copies that do not block; what comes to the host is 0."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        options = options or {}
        if op in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[-1] if op is torch.ops.aten.copy_.default and len(args) == 2 else args[op._opname == "copy_"]
            target = options.get("device", args[0].device) or source.device
            if META in (source.device, target) and source.device != target:
                blocks = not (options.get("non_blocking") or (len(args) > 2 and args[2]))
                assert not blocks, f"the host waits for a copy from {source.device} to {target}"
                if target.type == "cpu":
                    return torch.zeros(source.shape, dtype=options.get("dtype") or source.dtype)
        return op(*args, **options)


class Told:
    """A tracker, watchdog, keeper, stop request or event to which nothing happens."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *given: Any, **named: Any) -> None:
        pass

    def __bool__(self) -> bool:
        return False


@pytest.fixture
def steps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `STEPS` steps of the training loop."""

    def on_host(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
            assert device is None or torch.device(device).type == "cpu", "the host waits for a copy to the device"
            return make(data, device=device, **options)

        return made

    def run(*overrides: str) -> None:
        told, left, parts = Told(), iter(range(STEPS - 1)), parts_on_meta(bench, *overrides)
        guard, ranks = Guard(META, sigma=6.0), parts.learner.ranks
        guard.device = GPU
        meter = Throughput(1.0, 1.0, device=META)
        instruments = Instruments(guard, Window(META), meter, told, told, told, told, ranks, 1.0)  # type: ignore[arg-type]

        def tick() -> None:
            if next(left, None) is None:
                raise Enough

        monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # autocast does not know the device
        monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())
        monkeypatch.setattr(torch.cuda, "Event", Told)
        monkeypatch.setattr(trainer.adamw, "adamw", lambda *a, **named: adamw(*a, **(named | {"fused": True})))
        monkeypatch.setattr(torch, "tensor", on_host(torch.tensor))
        monkeypatch.setattr(torch, "as_tensor", on_host(torch.as_tensor))
        with Copies(), pytest.raises(Enough):
            fit(parts, State(), instruments, Path("nowhere"), tick)

    return run


def parts_on_meta(bench: Bench, *overrides: str) -> Parts:
    config = load("configs/tiny.yaml", [f"data.dir={bench.corpora}", f"run.dir={bench.runs}", *SETTINGS, *overrides])
    data = prepare(config.data, config.model.context, progress=False)
    made = build(config, data, Ranks(Place(), META), META, State())
    made.learner.optimizers.device = GPU
    return made


@pytest.mark.parametrize("overrides", [(), ("optim.name=adamw", "model.preset=gpt2", "model.dropout=0.1",
                                            "data.pack.document_mask=false", "loss.fused=off")])  # fmt: skip
def test_no_step_waits(steps: Callable[..., None], overrides: tuple[str, ...]):
    steps(*overrides)


def blocking(batch: Batch, device: torch.device) -> Batch:
    return batch._each(lambda tensor: tensor.to(device))


def with_new_tensor(window: Window, finite: Tensor, norm: Tensor) -> None:
    window.add({"steps": torch.tensor(1.0, device=META)})


WAITS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "a number": (Window, "close_step", lambda window, finite, norm: window.add({"norm": torch.ones(()) * float(norm)})),
    "a decision": (Optimizers, "step", lambda optimizers, factor, finite: bool(finite)),
    "a choice by mask": (Window, "add", lambda window, sums: sums["nll"][sums["nll"] > 0]),
    "a list": (Guard, "exhausted", lambda guard: guard.losses.tolist() == []),
    "the last step": (Guard, "exhausted", Guard.streak),
    "a copy to the device": (Batch, "to", blocking),
    "a copy to the host": (Guard, "exhausted", lambda guard: guard.in_a_row.cpu() == 0),
    "a new tensor": (Window, "close_step", with_new_tensor),
}


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
def test_a_step_that_waits_is_found(steps: Callable[..., None], monkeypatch: pytest.MonkeyPatch, waits: tuple):
    monkeypatch.setattr(*waits)
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        steps()


def test_tiles_of_documents_are_made_without_waiting():
    with Copies():
        mask = document_tiles(torch.zeros(2, 300, dtype=torch.int64, device=META))
    assert mask.kv_indices.shape == (2, 1, 3, 3)
