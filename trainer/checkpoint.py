"""Checkpoints of a run: written whole or not at all, verified, and pruned only after that.

What a checkpoint holds is the caller's business, who passes a function that writes its files; what makes it safe is
here and in `durable`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from durable import atomic_write, commit_directory, list_checkpoints, step_of

OPTIMIZER = "optimizer.safetensors"


def save(run: Path, step: int, write: Callable[[Path], None], state: dict[str, Any], *, keep: int, best: bool) -> Path:
    """Write the checkpoint of `step` and prune; returns its directory.

    `write(directory)` puts the files there; `state` is JSON. With `best` the run's `best` pointer moves here. Kept
    are the newest `keep` and the best. When anything fails, what was there before is untouched.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{step:08d}"
    tmp = final.with_suffix(".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        write(tmp)
        commit_directory(tmp, final, {"step": step, **state})
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    if best:
        atomic_write(folder / "best", final.name + "\n")
    _prune(run, keep)
    return final


def _prune(run: Path, keep: int) -> None:
    pointer = run / "checkpoints" / "best"
    best = pointer.read_text().strip() if pointer.is_file() else None
    for path in list_checkpoints(run)[:-keep]:
        if path.name != best:
            _remove(path)


def forget_after(run: Path, step: int) -> None:
    """Drop what a crash left behind and every checkpoint newer than `step`, the one that a run goes on from."""
    folder = run / "checkpoints"
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix in (".tmp", ".old"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif step_of(path) > step:
            _remove(path)


def _remove(path: Path) -> None:
    """Under another name first: a crash never leaves half a checkpoint that looks like one."""
    trash = path.with_suffix(".old")
    shutil.rmtree(trash, ignore_errors=True)
    path.rename(trash)
    shutil.rmtree(trash)


def write_tensors(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Store optimizer state."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, directory / OPTIMIZER)


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """What `write_tensors` stored, on the CPU."""
    return load_file(directory / OPTIMIZER)
