"""Started by torchrun with a directory and three ranks: payloads of DTensors and of sharded models change hands."""

import sys
from collections.abc import Iterable
from copy import copy, deepcopy
from pathlib import Path
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from model import ModelConfig, Transformer, load_model, save_shape
from trainer.config import OptimConfig, Rates
from trainer.distributed import Place, Ranks
from trainer.optim import Optimizers
from trainer.payload import read, snapshot

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


def whole() -> tuple[Tensors, Tensors]:
    """Sizes that two and three ranks share unevenly, some with no row for the last rank."""
    torch.manual_seed(5)
    model = {"w": torch.randn(5, 3), "one": torch.randn(1, 4), "four": torch.randn(4), "low": torch.randn(7).bfloat16()}
    state = {f"optim.{name}.exp_avg": torch.randn_like(weight) for name, weight in model.items()}
    return model, state | {"optim.w.step": torch.tensor(9.0)}


def spread(tensors: Tensors, mesh: DeviceMesh | None, blank: bool = False) -> Tensors:
    """DTensors by rows over `mesh`, or plain ones; scalars stay plain, as an optimizer's steps do."""
    made = {name: torch.full_like(tensor, 77) if blank else tensor.clone() for name, tensor in tensors.items()}
    return {name: distribute_tensor(t, mesh, [Shard(0)]) if mesh and t.ndim else t for name, t in made.items()}


def equal(have: Tensors, want: Tensors) -> bool:
    gathered = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in have.items()}
    return all(torch.equal(gathered[name], want[name]) for name in want)


def only(ranks: Ranks, count: int) -> Ranks:
    """As if there were the first `count` ranks alone."""
    fewer = copy(ranks)
    fewer.world_size = count
    return fewer


def check_reshard(folder: Path, ranks: Ranks) -> None:
    """2 -> 1 -> 3 ranks, with either payload: the same bits."""
    model, state = whole()
    two, three = DeviceMesh("cpu", [0, 1]), DeviceMesh("cpu", [0, 1, 2])
    for sharded in (True, False):
        for k, (count, mesh) in enumerate(((2, two), (1, None), (3, three))):
            here, before = folder / f"{sharded}{k}", folder / f"{sharded}{k - 1}"
            if ranks.rank == 0:
                here.mkdir(parents=True)
            ranks.barrier()
            if ranks.rank < count:
                weights, filled = spread(model, mesh, blank=k > 0), spread(state, mesh, blank=k > 0)
                if k:
                    read(before, weights, filled)
                assert equal(weights, model) and equal(filled, state), (sharded, count)
                payload = snapshot(weights, filled, only(ranks, count), sharded=sharded)
                thread = Thread(target=payload.write, args=(here,))
                thread.start()
                thread.join()
            ranks.barrier()
            files = 2 * (count if sharded else 1)
            assert len(list(here.iterdir())) == files, (sharded, count, sorted(here.iterdir()))


def check_layouts(ranks: Ranks) -> None:
    mesh = DeviceMesh("cpu", [0, 1, 2])
    for placement in (Shard(1), Replicate()):
        odd = {"w": distribute_tensor(torch.ones(6, 6), mesh, [placement])}
        try:
            snapshot(odd, {}, ranks, sharded=True)
        except ValueError as error:
            assert "w is laid out as" in str(error)
        else:
            raise AssertionError("not refused")


def build(ranks: Ranks, parallel: str | None, name: str, seed: int) -> tuple[Transformer, torch.nn.Module, Optimizers]:
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(context=8, dim=16, layers=2, heads=2, tie=name == "adamw"), 13)
    module = ranks.wrap(model, model.blocks, parallel)  # type: ignore[arg-type]
    rates = Rates(matrix=0.02, embed=0.1, head=0.004, vector=0.01)
    config = OptimConfig(name=name, rates=rates, betas=(0.8, 0.95))  # type: ignore[arg-type]
    return model, module, Optimizers(dict(model.named_parameters()), model.roles(), config)


def train(model: Transformer, module: torch.nn.Module, optimizers: Optimizers, steps: Iterable[int]) -> None:
    for step in steps:
        tokens = torch.randint(13, (2, 8), generator=torch.Generator().manual_seed(step))
        hidden = module(tokens, None, logits=False)
        torch.nn.functional.linear(hidden, model.head_weight).square().mean().backward()
        optimizers.step(0.1, torch.tensor(True))
        optimizers.zero_grad()


def check_models(folder: Path, ranks: Ranks) -> None:
    """A model trained under ddp goes on under fsdp and the other way round, with either payload, as if unstopped."""
    turns = (("adamw", "ddp", "fsdp", True), ("muon", "fsdp", "ddp", True), ("muon", "fsdp", "fsdp", False))
    for name, first, second, sharded in turns:
        here = folder / f"{name}-{first}-{second}"
        if ranks.rank == 0:
            here.mkdir()
        ranks.barrier()
        model, module, optimizers = build(ranks, first, name, seed=1)
        train(model, module, optimizers, range(2))
        payload = snapshot(model.state_dict(), optimizers.state(), ranks, sharded=sharded)
        assert payload.finite()
        payload.write(here)
        save_shape(model, here) if ranks.rank == 0 else None
        saved = gather(model.state_dict() | optimizers.state())
        ranks.barrier()

        other, wrapped, fresh = build(ranks, second, name, seed=2)
        fresh.allocate()
        read(here, other.state_dict(), fresh.state())
        assert equal(other.state_dict() | fresh.state(), saved), here.name
        assert equal(dict(load_model(here).state_dict()), gather(dict(other.state_dict()))), here.name
        train(model, module, optimizers, range(2, 4))
        train(other, wrapped, fresh, range(2, 4))
        went_on, straight = gather(dict(other.state_dict())), gather(dict(model.state_dict()))
        assert all(torch.allclose(went_on[key], straight[key], atol=1e-6) for key in straight), here.name
        ranks.barrier()


def gather(tensors: Tensors) -> Tensors:
    return deepcopy({key: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach() for key, t in tensors.items()})


if __name__ == "__main__":
    ranks = Ranks(Place.from_environment(), CPU)
    check_reshard(Path(sys.argv[1]) / "reshard", ranks)
    check_layouts(ranks)
    check_models(Path(sys.argv[1]), ranks)
    dist.barrier()
    print(f"rank {ranks.rank} is content", flush=True)
    ranks.close()
