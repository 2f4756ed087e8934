"""One process or many: the only home of torch.distributed. What others need of it is passed to them."""

import gc
import inspect
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where this process stands, as torchrun says it; alone when it says nothing."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Place":
        read = (int(os.environ.get(name, default)) for name, default in
                (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))  # fmt: skip
        return cls(*read)


def pick_device(name: str, place: Place) -> torch.device:
    """The device for `cpu`, `cuda`, `mps` or `auto`. Raises ValueError for one that is not there."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in have.items() if there)
    if not have[name]:
        raise ValueError(f"run.device: no {name} here; there is {', '.join(k for k, v in have.items() if v)}")
    if name == "cuda":
        if place.local_rank >= torch.cuda.device_count():
            raise ValueError(f"{place.local_world_size} processes for {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(place.local_rank)
        return torch.device("cuda", place.local_rank)
    return torch.device(name)


@dataclass(frozen=True)
class Shard:
    """One rank's ids of a vocabulary that is split over all ranks, with the collectives that a loss needs for it.

    Both work in place: what they return is their argument.
    """

    start: int
    """First id."""
    stop: int
    """One more than the last id."""

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def max(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values


class Ranks:
    """The processes of a run. With one process every method is the identity and costs nothing."""

    def __init__(self, place: Place, device: torch.device, timeout: timedelta = timedelta(minutes=30)):
        self.rank, self.world_size, self.device = place.rank, place.world_size, device
        self.control = None
        if self.world_size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timeout)
            # Flags that the host acts on travel over gloo: asking must not wait for the GPU.
            self.control = dist.new_group(backend="gloo", timeout=timeout) if backend == "nccl" else dist.group.WORLD

    def wrap(self, model: nn.Module) -> nn.Module:
        """Average gradients over ranks in the backward pass."""
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters  # the option was renamed in torch 2.13
        never_sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"device_ids": ids, "gradient_as_bucket_view": True, never_sync: False}
        return DistributedDataParallel(model, **options)

    def sync_if(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Gradients travel once a step, with the last micro-batch; covers forward and backward."""
        return nullcontext() if last or self.world_size == 1 else model.no_sync()  # type: ignore[operator]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, on each of them, where the tensor was."""
        if self.world_size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def shard(self, vocab_size: int) -> Shard | None:
        """This rank's part of a vocabulary split over the ranks, as evenly as it goes; None with one process."""
        if self.world_size == 1:
            return None
        return Shard(vocab_size * self.rank // self.world_size, vocab_size * (self.rank + 1) // self.world_size)

    def all_true(self, flag: Tensor) -> Tensor:
        """Whether the boolean scalar `flag` is true on every rank; stays on the device."""
        if self.world_size == 1:
            return flag
        low = flag.to(torch.int32)
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        return low.bool()

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; the host waits for all of them."""
        if self.world_size == 1:
            return flag
        high = torch.tensor(int(flag))
        dist.all_reduce(high, op=dist.ReduceOp.MAX, group=self.control)
        return bool(high)

    def smallest(self, value: int) -> int:
        """The smallest `value` of any rank."""
        if self.world_size == 1:
            return value
        low = torch.tensor(value)
        dist.all_reduce(low, op=dist.ReduceOp.MIN, group=self.control)
        return int(low)

    def share(self, value: T) -> T:
        """Rank 0's `value` on every rank: something small that this program made."""
        if self.world_size == 1:
            return value
        box: list[T] = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def close(self) -> None:
        """Leave the group. Whatever `wrap` returned has to be gone, or its threads outlive the interpreter."""
        self.control = None
        if self.world_size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()
