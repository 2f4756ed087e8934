"""Mixed precision: fp32 weights, and products in bf16 or fp16 where the hardware is made for it."""

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch

Name = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Name, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(name: str, device: torch.device) -> Name:
    """What `auto` means on `device`; any other name is returned as it is."""
    if name != "auto":
        return name  # type: ignore[return-value]
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; without, bf16 is slower than fp32."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16"}) or (platform.machine() == "aarch64" and "bf16" in flags)


class Precision:
    """Autocast for the forward pass and, for fp16 alone, a loss scale that keeps small gradients from vanishing."""

    def __init__(self, name: Name, device: torch.device):
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.name])

    def state(self) -> dict:
        return self.scaler.state_dict()

    def load_state(self, state: dict) -> None:
        if state:
            self.scaler.load_state_dict(state)
