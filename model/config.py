"""The shape of a model: a plain frozen dataclass; everything else about it is derived."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt


@dataclass(frozen=True)
class ModelConfig:
    preset: Literal["qwen3", "llama", "gpt2"] = "qwen3"
    """Architecture; each maps exactly to the Hugging Face class of that name."""
    layers: Annotated[int, Ge(1)] = 4
    """Decoder blocks."""
    dim: Annotated[int, Ge(1)] = 256
    """Width of the residual stream."""
    heads: Annotated[int, Ge(1)] = 4
    """Query heads; must divide `dim`."""
    kv_heads: Annotated[int, Ge(1)] | None = None
    """Key and value heads (grouped-query attention); must divide `heads`. null: as many as `heads`."""
    context: Annotated[int, Ge(1)] = 256
    """Tokens in a row, and the longest input."""
    hidden: Annotated[int, Ge(1)] | None = None
    """Width of the feed-forward layer. null: 4 dim (gpt2), 8/3 dim rounded up to a multiple of 32 (others)."""
    tie: bool = True
    """The output head is the token embedding."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on embeddings, attention weights and both residual branches, in training."""
    rope_theta: Annotated[float, Gt(0)] = 10_000.0
    """Base of the rotary frequencies (qwen3, llama)."""
    norm_eps: Annotated[float, Gt(0)] = 1e-6
    """Epsilon inside the norms."""
