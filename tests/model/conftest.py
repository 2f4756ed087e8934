"""Tiny models with random, non-zero weights everywhere: a zero or a one hides a wrong layout."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from model import ModelConfig, Transformer

VOCAB = 61
Preset = Literal["qwen3", "llama", "gpt2"]
PRESETS: tuple[Preset, ...] = ("qwen3", "llama", "gpt2")
Make = Callable[..., Transformer]


@pytest.fixture
def make() -> Make:
    """make(**config) -> a model in eval mode, every parameter (gains and biases too) drawn at random."""

    def build(seed: int = 0, vocab_size: int = VOCAB, **overrides: Any) -> Transformer:
        sizes: dict[str, Any] = {"layers": 2, "dim": 32, "heads": 4, "context": 24}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Transformer(ModelConfig(**(sizes | overrides)), vocab_size).eval()
            for name, parameter in model.named_parameters():
                shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                torch.nn.init.normal_(parameter, shift, 0.2)
        return model

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Ids (3, 24), all below VOCAB."""
    return torch.randint(VOCAB, (3, 24), generator=torch.Generator().manual_seed(1))
