"""Models on disk: `model.safetensors` (each weight once) and `model.json` (all that is needed to build the module).

A checkpoint of several processes may have the weights in parts: see `tensorfiles`.
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from durable import STATE, Damaged, atomic_write, find_checkpoint
from tensorfiles import open_tensors

from .config import ModelConfig
from .transformer import Transformer

FORMAT = 1
WEIGHTS = "model"
SHAPE = "model.json"


def save_model(model: Transformer, directory: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Write both files into `directory`, made when missing.

    `state` takes the place of `model.state_dict()` where the weights of a sharded or averaged model were gathered
    by the caller.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: t.detach().cpu().contiguous() for name, t in (state or model.state_dict()).items()}
    atomic_write(directory / f"{WEIGHTS}.safetensors", save(weights, metadata={"format": "pt"}))
    save_shape(model, directory)


def save_shape(model: Transformer, directory: Path) -> None:
    """Write `model.json` alone, for weights that the caller stores."""
    about = {"format": FORMAT, "vocab_size": model.vocab_size, "config": dataclasses.asdict(model.config)}
    atomic_write(directory / SHAPE, json.dumps(about, indent=1) + "\n")


def load_model(path: str | Path, device: str | torch.device = "cpu", which: str = "last") -> Transformer:
    """The model of a run (`which`: last, best or a step), of a checkpoint, or of a directory that `save_model` wrote.

    In eval mode; torch's random state is left as it was. Raises ValueError when there is no model or its format is
    another, `durable.Damaged` when its files are not what was written.
    """
    return read_model(find_model(path, which), device)


def find_model(path: str | Path, which: str = "last") -> Path:
    """The directory that `load_model` reads, found intact if it is a checkpoint. Raises as that does."""
    path = Path(path)
    bare = (path / SHAPE).is_file() and not (path / STATE).is_file()
    return path if bare else find_checkpoint(path, which)


def read_model(directory: Path, device: str | torch.device = "cpu") -> Transformer:
    """What `load_model` returns, of a checkpoint that has just been found intact: its hashes are not compared again."""
    config, vocab_size = read_shape(directory / SHAPE)
    with torch.random.fork_rng(devices=[]):
        model = Transformer(config, vocab_size)
    with open_tensors(directory, WEIGHTS) as stored:
        state = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in stored.items()}
        check_state(model, state, directory)
        for name, tensor in state.items():
            stored[name].read_into(tensor)
    model.load_state_dict(state)
    return model.to(device).eval()


def read_shape(path: Path) -> tuple[ModelConfig, int]:
    """The config and vocabulary size in a `model.json`."""
    try:
        about = json.loads(path.read_text())
        version = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path}: not a readable model description ({type(error).__name__})") from None
    if version != FORMAT:
        raise ValueError(f"{path}: format {version!r}, but this version of Thimble reads format {FORMAT}")
    try:
        return ModelConfig(**about["config"]), int(about["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path}: no model can be built from it ({error})") from None


def check_state(model: Transformer, state: dict[str, Tensor], source: str | Path) -> None:
    """Raise `Damaged`, naming the first difference, unless `state` has the model's names and shapes."""
    want = model.state_dict()
    for name in sorted(want.keys() | state.keys()):
        if name not in state:
            raise Damaged(f"{source}: weight {name} is missing")
        if name not in want:
            raise Damaged(f"{source}: weight {name} does not belong to this model")
        if state[name].shape != want[name].shape:
            have, need = tuple(state[name].shape), tuple(want[name].shape)
            raise Damaged(f"{source}: weight {name} has shape {have}, not {need}")
