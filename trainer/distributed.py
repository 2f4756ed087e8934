"""One process or many: the only home of torch.distributed. What others need of it is passed to them."""

import copy
import gc
import inspect
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
Parallel = Literal["ddp", "fsdp"]
"""How several ranks train one model: each with all of it, or each with a part."""


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
        """`timeout`: how long to wait for other ranks; until `settle`, so that it allows for the slowest start."""
        self.rank, self.world_size, self.device, self.timeout = place.rank, place.world_size, device, timeout
        self.group = self.control = None
        self._groups: list[Any] = []  # those that the steps of training wait in
        if self.world_size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timeout)
            self.group = dist.group.WORLD
            # Flags that the host acts on travel over gloo: asking must not wait for the GPU.
            self.control = dist.new_group(backend="gloo", timeout=timeout) if backend == "nccl" else self.group
            self._groups = [self.group, self.control]

    def settle(self, seconds: float) -> None:
        """From now on a rank that the others wait for so long is lost, and they raise RuntimeError.

        For when every rank has done its first step: until then they compile, read and allocate at their own pace.
        """
        for group in self._groups:
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)

    def aside(self) -> "Ranks":
        """The same ranks on a line of their own, over CPU tensors, for a thread that works while others train.

        All ranks have to ask for it. It keeps the timeout of the start, and ends with the ranks that it is made of.
        """
        if self.world_size == 1:
            return self
        other = copy.copy(self)
        other.group = other.control = dist.new_group(backend="gloo", timeout=self.timeout)
        other._groups, other.device = [], torch.device("cpu")
        return other

    def pick_parallel(self, wanted: str, state_bytes: int, room: int | None) -> Parallel | None:
        """What `train.parallel` comes to, the same on every rank; None with one process.

        `auto` is fsdp where the bytes of weights, gradients and optimizer take more than half of `room`, the memory
        of this rank's GPU; the rest is for activations. On CPUs (None), which share theirs, it is ddp.
        """
        if self.world_size == 1:
            return None
        if wanted == "auto":
            return "fsdp" if self.any(room is not None and 2 * state_bytes > room) else "ddp"
        return "fsdp" if wanted == "fsdp" else "ddp"

    def wrap(
        self, model: nn.Module, blocks: Iterable[nn.Module], parallel: Parallel | None, low: torch.dtype | None = None
    ) -> nn.Module:
        """Average gradients over ranks in the backward pass; under fsdp also leave each rank a part of each weight.

        fsdp gathers each of `blocks` when it is used, in `low` precision if given, and all other weights, as they
        are, from the forward to the backward pass: a loss may use them after the model has returned.
        """
        if parallel is None:
            return model
        return self._shard_weights(model, blocks, low) if parallel == "fsdp" else self._replicate(model)

    def _replicate(self, model: nn.Module) -> nn.Module:
        ids = [self.device.index] if self.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters  # the option was renamed in torch 2.13
        never_sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"device_ids": ids, "gradient_as_bucket_view": True, never_sync: False}
        return DistributedDataParallel(model, **options)

    def _shard_weights(self, model: nn.Module, blocks: Iterable[nn.Module], low: torch.dtype | None) -> nn.Module:
        """FSDP2, in place: the returned module is `model`. Every rank passes the same weights, on any device."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes over a second to import

        mesh = dist.device_mesh.init_device_mesh(self.device.type, (self.world_size,))
        if mesh.get_group() not in self._groups:
            self._groups.append(mesh.get_group())
        # Inputs stay as they are: the residual stream is fp32, as it is under autocast without sharding.
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        sharded = [fully_shard(block, mesh=mesh, mp_policy=policy) for block in blocks]
        root = fully_shard(model, mesh=mesh, reshard_after_forward=False)
        # Ask for the next block's weights before this one computes: a host that is busy launching kernels would come
        # to it too late. In the backward pass FSDP does so by itself, since it knows the order by then.
        for module, following in zip([root, *sharded], sharded, strict=False):
            module.set_modules_to_forward_prefetch([following])
        return model

    def sync_if(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Gradients travel once a step, with the last micro-batch; covers forward and backward."""
        if isinstance(model, DistributedDataParallel):
            return nullcontext() if last else model.no_sync()
        if self.world_size > 1:
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, on each of them, where the tensor was."""
        if self.world_size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total, group=self.group)
        return total.to(tensor.device)

    def shard(self, vocab_size: int) -> Shard | None:
        """This rank's part of a vocabulary split over the ranks, as evenly as it goes; None with one process."""
        if self.world_size == 1:
            return None
        return Shard(vocab_size * self.rank // self.world_size, vocab_size * (self.rank + 1) // self.world_size)

    def share_out(self, change: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
        """`change` of matrices (n, R, C) that all ranks have alike: each changes a share of them, and has all.

        `change` gives as many matrices of the same shape and dtype, each a function of its own one.
        """
        share = -(-len(matrices) // self.world_size)
        if self.world_size == 1 or share == len(matrices):
            return change(matrices)
        mine = matrices[self.rank * share : (self.rank + 1) * share]
        changed = matrices.new_zeros(self.world_size * share, *matrices.shape[1:])
        sent = changed[:share].clone()
        if len(mine):  # there may be fewer matrices than ranks, and the last share may be short
            sent[: len(mine)] = change(mine)
        dist.all_gather(list(changed.split(share)), sent, group=self.group)
        return changed[: len(matrices)]

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

    def each(self, value: T) -> list[T]:
        """The `value` of every rank, on every rank: something small that this program made."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def close(self) -> None:
        """Leave the group. Whatever `wrap` returned has to be gone, or its threads outlive the interpreter."""
        self.group = self.control = None
        self._groups = []
        if self.world_size > 1 and dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()


def own_part(tensor: Tensor) -> Tensor:
    """This rank's rows of a sharded tensor, which changing them changes; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def on_whole_matrices(change: Callable[[Tensor], Tensor], parts: Tensor, like: Tensor) -> Tensor:
    """`change` of matrices, and this rank's rows (n, r, C) of what it makes of them.

    parts   (n, r, C) of each matrix the rows that this rank has of `like`, a matrix (R, C): all, if it is not sharded
    change  from matrices (m, R, C) to as many of the same shape; each rank is given its share of them, whole

    Rows are shared out as FSDP2 does it: as many to each rank, rounded up, as long as there are any.
    """
    if not hasattr(like, "device_mesh"):
        return change(parts)
    group = like.device_mesh.get_group()
    ranks, (n, r, C), R = dist.get_world_size(group), parts.shape, like.shape[0]
    share, rows = -(-n // ranks), -(-R // ranks)
    mine = parts.new_zeros(ranks * share, rows, C)
    mine[:n, :r] = parts
    sent = torch.empty_like(mine)
    dist.all_to_all_single(sent, mine, group=group)
    whole = sent.view(ranks, share, rows, C).transpose(0, 1).reshape(share, ranks * rows, C)
    changed = torch.zeros_like(whole)
    changed[:, :R] = change(whole[:, :R])
    back = changed.view(share, ranks, rows, C).transpose(0, 1).contiguous()
    dist.all_to_all_single(mine, back, group=group)
    return mine[:n, :r]
