"""How a run trains, saves and reports: plain frozen dataclasses, no behaviour.

A *length* is `0.1` (below 1: a fraction of the run), `500` (steps) or `"5M tokens"` (nominal: step times
batch_tokens); `trainer.schedule.steps_of` turns one into steps.

Where a size of the optimizer is `auto`, loading a config puts the number in its place that `trainer.rules` gives.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

Length = Annotated[int, Ge(0)] | Annotated[float, Ge(0), Lt(1)] | str
Period = Annotated[int, Ge(1)] | Annotated[float, Gt(0), Lt(1)] | str  # a length that is not zero
Beta = Annotated[float, Ge(0), Lt(1)]
AUTO: Any = "auto"
if TYPE_CHECKING:  # what they are once a config is loaded
    Rate = float
    BatchTokens = int
else:
    Rate = Annotated[float, Ge(0)] | Literal["auto"]
    BatchTokens = Annotated[int, Ge(1)] | Literal["auto"]


@dataclass(frozen=True)
class RunSection:
    name: Annotated[str, MinLen(1)]
    """Name of the run; the same name goes on with it."""
    dir: str = "runs"
    """The run's files live in `<dir>/<name>/`."""
    seed: Annotated[int, Ge(0), Lt(1 << 63)] = 1234
    """Everything random is a function of this, its purpose and the step."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: cuda, then mps, then cpu."""
    threads: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """CPU threads of each process. auto: torch's choice for one process, else the CPUs shared among them."""
    deterministic: bool = False
    """On a GPU, only deterministic kernels. The CPU always repeats."""


@dataclass(frozen=True)
class Rates:
    """Peak learning rate of each role a parameter can have. auto: by the rule in `trainer/rules.py`."""

    matrix: Rate = AUTO
    """Weights of the linear layers inside blocks."""
    embed: Rate = AUTO
    """Token and position embeddings."""
    head: Rate = AUTO
    """Untied output head."""
    vector: Rate = AUTO
    """Norm weights and biases."""


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adamw", "muon"] = "muon"
    """muon: Muon on matrices and AdamW on the rest; adamw: AdamW on everything."""
    rates: Rates = Rates()
    """Peak learning rates by role."""
    betas: tuple[Beta, Beta] = (0.8, 0.95)
    """AdamW's decay rates of first and second moment."""
    eps: Annotated[float, Gt(0)] = 1e-10
    """AdamW's epsilon."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Muon's momentum."""
    momentum_warmup: Length = 300
    """Length over which Muon's momentum rises to its value from 0.85."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay, on matrices only."""
    cautious: bool = False
    """Under Muon, only weights decay that the update makes smaller anyway."""
    grad_clip: Annotated[float, Gt(0)] | None = 1.0
    """Largest global gradient norm; null: no clipping. The norm is logged before clipping."""


@dataclass(frozen=True)
class ScheduleConfig:
    name: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """Shape after warm-up: wsd stays, then falls linearly; cosine and linear fall from the start."""
    warmup: Length = 10
    """Length of the linear warm-up."""
    decay: Length = 0.6
    """Length of the final decay (wsd)."""
    final: Annotated[float, Ge(0), Le(1)] = 0.0
    """Rate at the end as a fraction of the peak."""


@dataclass(frozen=True)
class TrainConfig:
    """Exactly one of `steps`, `tokens`, `epochs` says how long."""

    steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps."""
    tokens: Annotated[int, Ge(1)] | str | None = None
    """Tokens in all, such as `5M`; rounded up to whole steps."""
    epochs: Annotated[float, Gt(0)] | None = None
    """Passes over the training rows; rounded up to whole steps."""
    batch_tokens: BatchTokens = AUTO
    """Tokens of one optimizer step over all ranks: rows times context. auto: by the tokens of the run."""
    micro_rows: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Rows of one forward pass on one rank; the rest is accumulated."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware has it, else fp32. Weights are always fp32."""
    fp8: bool = False
    """Multiply by block matrices in float8; bf16 elsewhere. For NVIDIA GPUs from Ada on, and wide models."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile for each block. auto: on CUDA; on a CPU it takes minutes and gains a few percent at best."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """Several processes: ddp, each holds everything; fsdp (FSDP2), each a part. auto: ddp while that fits."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass: less memory, a third more time."""
    spike_sigma: Annotated[float, Gt(0)] | None = 6.0
    """Skip a step whose loss is so many standard deviations above the last 128 applied ones; null: never."""
    timeout: Annotated[float, Gt(0)] = 300.0
    """Seconds without a step, a validation batch or a save after which a run with several processes counts as hung."""


@dataclass(frozen=True)
class SaveConfig:
    every: Period = 100
    """A checkpoint each so often, and at the end."""
    keep: Annotated[int, Ge(1)] = 2
    """Newest intact checkpoints kept, besides the best one."""
    keep_every: Period | None = None
    """Checkpoints whose step is a multiple of this are never removed; null: none."""
    background: bool | Literal["auto"] = "auto"
    """Write while training goes on, from a copy of the weights. auto: on CUDA."""
    payload: Literal["auto", "full", "sharded"] = "auto"
    """full: one file, written by one process; sharded: each process writes its part. auto: sharded under fsdp."""


@dataclass(frozen=True)
class TrackConfig:
    every: Period = 10
    """A row of metrics each so often."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: off, written locally, or sent."""
    project: str = "thimble"
    """wandb project."""
    entity: str | None = None
    """wandb user or team."""
    group: str | None = None
    """wandb group."""
    tags: tuple[str, ...] = ()
    """wandb tags."""
    tensorboard: bool = False
    """Write event files to `<run>/tensorboard/`."""
