"""What a checkpoint holds of a model and its optimizer: a copy to write while training goes on, and how to read it.

Two kinds, `full` and `sharded`, both safetensors and nothing else (see `tensorfiles`): of a full payload rank 0 writes
`model.safetensors` and `optimizer.safetensors`, of a sharded one each rank its rows of every tensor. Either is read by
any number of ranks, whether each has all of the model or a part.

PyTorch's own HuggingFaceStorageWriter and Reader (2.13, `save_distributed=True`) hold all of this too, bit for bit,
step counters included; but writing needs collectives (with `no_dist=True` all ranks write to one file name), and the
reader overlooks tensors left over and, since whole shapes are not stored, rows that no file has. Hence files of that
format, which its reader reads as well, written and read without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from durable import Damaged
from tensorfiles import Part, Stored, open_tensors, rows_of

from .distributed import Ranks

MODEL, OPTIMIZER = "model", "optimizer"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Payload:
    """A copy of a model and its optimizer on the CPU, or this rank's part; training cannot change it any more."""

    parts: Mapping[str, Part]
    """What this rank writes, by set."""
    nbytes: int
    """Of the files of all ranks together, but for their headers."""

    def finite(self) -> bool:
        """Whether what this rank writes has neither NaN nor an infinity; says nothing of other ranks."""
        return all(_finite(rows) for part in self.parts.values() for rows in part.rows.values())

    def write(self, directory: Path) -> None:
        """Store this rank's files, if any; for any thread, since no other rank is waited for."""
        for name, part in self.parts.items():
            part.write(directory, name)


@torch.no_grad()
def snapshot(
    model: Tensors,
    optimizer: Tensors,
    ranks: Ranks,
    *,
    sharded: bool,
    copy: bool = True,
    into: Payload | None = None,
) -> Payload:
    """A copy of the state of a model and of its optimizer, as it is now.

    All ranks call it with the same names. Tensors are plain, and then the same on every rank, or DTensors with their
    rows shared out over all ranks. `copy=False`: what is on the CPU is not copied, for a payload that is written before
    training goes on. `into`: an earlier copy that is no longer needed, whose memory is used again. Raises ValueError
    for DTensors that are laid out otherwise.
    """
    sharded = sharded and ranks.world_size > 1
    number, of = (ranks.rank, ranks.world_size) if sharded else (0, 1)
    parts, nbytes = {}, 0
    for name, tensors in ((MODEL, model), (OPTIMIZER, optimizer)):
        rows = {}
        room: Tensors = into.parts[name].rows if into and name in into.parts else {}
        for key, tensor in sorted(tensors.items()):  # in one order on all ranks, which gather together
            nbytes += tensor.numel() * tensor.element_size()
            if not sharded:
                tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
                if ranks.rank == 0:
                    rows[key] = _held(tensor, room.get(key), copy)
            elif tensor.ndim or number == 0:
                rows[key] = _held(_own_rows(key, tensor, number, of), room.get(key), copy)
        if sharded or ranks.rank == 0:
            parts[name] = Part(number, of, rows, {key: tuple(tensors[key].shape) for key in rows})
    for device in {t.device for tensors in (model, optimizer) for t in tensors.values() if t.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
    return Payload(parts, nbytes)


@torch.no_grad()
def read(directory: Path, model: Tensors, optimizer: Tensors) -> None:
    """Fill the tensors of a model and of its optimizer, in place, from a checkpoint of either kind.

    A checkpoint of before the first step has no optimizer state; that is then zero. Raises `Damaged`, before anything
    is changed, unless the checkpoint has the same names, shapes and types.
    """
    with open_tensors(directory, MODEL) as weights, open_tensors(directory, OPTIMIZER) as state:
        _check(directory, weights, model)
        if state:
            _check(directory, state, optimizer)
        for key, tensor in model.items():
            weights[key].read_into(*_local(key, tensor))
        for key, tensor in optimizer.items():
            if state:
                state[key].read_into(*_local(key, tensor))
            else:
                tensor.zero_()


def _own_rows(key: str, tensor: Tensor, rank: int, world_size: int) -> Tensor:
    """A rank's rows of a tensor, not copied."""
    if not hasattr(tensor, "to_local"):
        return tensor[slice(*rows_of(tuple(tensor.shape), rank, world_size))] if tensor.ndim else tensor
    local, start = _local(key, tensor)
    assert (start, start + local.shape[0]) == rows_of(tuple(tensor.shape), rank, world_size), key
    return local


def _local(key: str, tensor: Any) -> tuple[Tensor, int]:
    """What this rank has of a tensor, which changing it changes, and its first row."""
    if not hasattr(tensor, "to_local"):
        return tensor, 0
    mesh, placements = tensor.device_mesh, tensor.placements
    if len(placements) > 1 or not placements[0].is_shard(0):
        raise ValueError(f"{key} is laid out as {placements}; a checkpoint takes rows shared out over all ranks")
    return tensor.to_local(), rows_of(tuple(tensor.shape), mesh.get_local_rank(), mesh.size())[0]


def _held(tensor: Tensor, room: Tensor | None, copy: bool) -> Tensor:
    """The tensor on the CPU, in `room` if that fits; from a GPU it is there only after the stream's work is done."""
    tensor = tensor.detach()
    if not copy and not tensor.is_cuda:
        return tensor.cpu().contiguous()
    if room is None or (room.shape, room.dtype) != (tensor.shape, tensor.dtype):
        room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return room.copy_(tensor, non_blocking=tensor.is_cuda)


def _finite(rows: Tensor) -> bool:
    if not rows.numel() or not rows.is_floating_point():
        return True
    return all(bool(edge.isfinite()) for edge in torch.aminmax(rows))  # either is NaN where there is one


def _check(directory: Path, stored: Mapping[str, Stored], wanted: Tensors) -> None:
    """Raise `Damaged`, naming the first difference, unless names, shapes and types are the same."""
    for key in sorted(stored.keys() | wanted.keys()):
        if key not in stored:
            raise Damaged(f"{directory}: {key} is missing")
        if key not in wanted:
            raise Damaged(f"{directory}: {key} does not belong to this model and optimizer")
        have, want = (stored[key].shape, stored[key].dtype), (tuple(wanted[key].shape), wanted[key].dtype)
        if have != want:
            raise Damaged(f"{directory}: {key} is {have[1]} of shape {have[0]}, not {want[1]} of shape {want[0]}")
