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
    gelu: Literal["tanh", "erf"] = "tanh"
    """GELU (gpt2): OpenAI's tanh form, or the exact one by erf, which a CPU computes several times as fast."""

    def __post_init__(self) -> None:
        """Raises ValueError, in one line, for sizes that do not fit one another."""
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide dim {self.dim}")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"kv_heads {self.num_kv_heads} does not divide heads {self.heads}")
        if self.preset == "gpt2" and self.num_kv_heads != self.heads:
            raise ValueError(f"gpt2 has no grouped-query attention: kv_heads must be null or {self.heads}")
        if self.preset != "gpt2" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head width, but dim / heads is {self.head_dim}")

    @property
    def gelu_approximate(self) -> Literal["tanh", "none"]:
        """`gelu` in torch's words."""
        return "none" if self.gelu == "erf" else "tanh"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layer, resolved."""
        if self.hidden is not None:
            return self.hidden
        return 4 * self.dim if self.preset == "gpt2" else 32 * -(-8 * self.dim // 96)
