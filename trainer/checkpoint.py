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


def save(run: Path, step: int, write: Callable[[Path], None], state: dict[str, Any], *, keep: int) -> Path:
    """Write the checkpoint of `step` and prune; returns its directory.

    `write(directory)` puts the files there; `state` is JSON, and its `best_step`, when not None, is the best
    checkpoint, this one or an earlier. Kept are the newest `keep` and the best. When anything fails, what was there
    before is untouched.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / _name(step)
    tmp = final.with_suffix(".tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        write(tmp)
        commit_directory(tmp, final, {"step": step, **state})
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    point_to_best(run, state.get("best_step"))
    for path in list_checkpoints(run)[:-keep]:
        if step_of(path) != state.get("best_step"):
            _remove(path)
    return final


def _name(step: int) -> str:
    return f"step_{step:08d}"


def point_to_best(run: Path, step: int | None) -> None:
    """Make the run's `best` pointer agree with the state of the checkpoint that the run is at."""
    pointer = run / "checkpoints" / "best"
    if step is None:
        pointer.unlink(missing_ok=True)
    elif not pointer.is_file() or pointer.read_text().strip() != _name(step):
        atomic_write(pointer, _name(step) + "\n")


def go_on_from(run: Path, step: int, best_step: int | None) -> None:
    """Tidy the checkpoints of a run that goes on from `step`.

    What a crash left behind is removed; newer checkpoints, which were damaged, are set aside as `.damaged`.
    """
    folder = run / "checkpoints"
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if path.suffix in (".tmp", ".old"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif step_of(path) > step:
            aside = path.with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    point_to_best(run, best_step)


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
