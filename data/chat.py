"""Conversations as tokens: how turns are spelled, and which tokens are targets."""

from collections.abc import Callable, Sequence

import numpy as np

from .documents import Turn
from .tokenizer import Tokenizer


def encode_chat(
    turns: Sequence[Turn],
    template: str,
    train_on: Sequence[str],
    tokenizer: Tokenizer,
    encode: Callable[[str], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask): the ids of a conversation, and for each whether it is a target, bool of the same length."""
    raise NotImplementedError
