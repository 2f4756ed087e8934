"""Vectors and matrices over the vocabulary that a loss reads: priors, class weights, transition matrices."""

import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from .registry import File


def load_prior(name: str, vocab_size: int, counts: Tensor | None) -> Tensor:
    """A distribution over the vocabulary, fp64 (V,): `uniform`, `unigram`, or numbers in a file, scaled to sum 1.

    A unigram prior adds one to each count (Laplace), so that no id is impossible.
    """
    if name == "uniform":
        return torch.full((vocab_size,), 1 / vocab_size, dtype=torch.float64)
    if name == "unigram":
        if counts is None:
            raise ValueError("unigram needs the corpus counts: build_objective(counts=...)")
        weights = counts.detach().cpu().double() + 1
    else:
        weights = load_table(name, File(dims=1), vocab_size)
    if not float(weights.sum()) > 0:
        raise ValueError(f"{name} is 0 everywhere")
    return weights / weights.sum()


def load_table(path: str, mark: File, vocab_size: int) -> Tensor:
    """The numbers in a `.npy` or `.json` file, fp64, each axis of the vocabulary's size. Nothing is unpickled.

    Raises ValueError for another shape, for a number below 0 or not finite, and for a row that should be a
    distribution and does not sum to 1.
    """
    suffix = Path(path).suffix
    if suffix not in (".npy", ".json"):
        raise ValueError(f"{path} is neither .npy nor .json")
    try:
        raw = json.loads(Path(path).read_text()) if suffix == ".json" else np.load(path, allow_pickle=False)
        values = np.asarray(raw, dtype=np.float64)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, BadZipFile):  # so does an array of objects, which is never unpickled
        raise ValueError(f"{path} holds something else than numbers") from None
    shape = (vocab_size,) * mark.dims
    if values.shape != shape:
        raise ValueError(f"{path} has the shape {values.shape}, not {shape}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"{path} holds a number that is negative or not finite")
    if mark.simplex and not np.allclose(values.sum(-1), 1, atol=1e-6):
        row = int(np.abs(values.sum(-1) - 1).argmax())
        raise ValueError(f"{path}: row {row} sums to {values[row].sum():.6g}, not 1")
    return torch.from_numpy(values)
