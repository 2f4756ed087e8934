"""The memory that `--dry-run` estimates for a training step, against a measured one: `python -m scripts.bench memory`.

Each case is measured in a process of its own, as the high-water mark of its resident memory above what it had before
the model was made, once small steps had loaded all libraries. glibc's allocator is told to return what is freed:
else it is its holes that are measured, and not what a step needs (`kept` shows that too, as training on CPUs runs).
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs import RunConfig, entry, load
from durable import atomic_write

MIB = 1 << 20
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}
SMALL = ("model.layers=1", "model.dim=32", "model.heads=2", "model.kv_heads=null", "model.context=32")
CASES: dict[str, tuple[str, int, int, int, tuple[str, ...]]] = {
    # name: (recipe, ids, rows of a micro-batch, micro-batches of a step, overrides)
    "tiny": ("tiny", 257, 32, 1, ()),
    "tiny, 256 rows, unfused": ("tiny", 257, 256, 1, ("loss.fused=off",)),
    "quickstart, fp32": ("quickstart", 4096, 8, 1, ("train.precision=fp32",)),
    "quickstart, bf16": ("quickstart", 4096, 8, 1, ("train.precision=bf16",)),
    "quickstart, 2 x 4 rows, adamw": ("quickstart", 4096, 4, 2, ("train.precision=fp32", "optim.name=adamw")),
    "quickstart, unfused": ("quickstart", 4096, 8, 1, ("train.precision=fp32", "loss.fused=off")),
    "quickstart, recomputed": ("quickstart", 4096, 16, 1, ("train.precision=fp32",
                               "train.activation_checkpointing=true")),
    "quickstart, 50k ids": ("quickstart", 50257, 4, 1, ("train.precision=fp32",)),
    "llama, 16 rows, 8k ids": ("quickstart", 8192, 16, 1, ("model.preset=llama", "train.precision=bf16")),
    "gpt2, 6 x 384": ("quickstart", 16384, 4, 2, ("model.preset=gpt2", "model.layers=6", "model.dim=384",
                      "model.heads=6", "model.context=512", "model.tie=true", "train.precision=fp32")),
    "small_gpu, 2 x 1 row": ("small_gpu", 8192, 1, 2, ("run.device=cpu", "train.precision=bf16")),
    "gpt_124m, 2 x 1 row": ("gpt_124m", 50257, 1, 2, ("run.device=cpu", "train.precision=fp32")),
}  # fmt: skip
QUICK = ("quickstart, fp32", "quickstart, unfused", "quickstart, recomputed")


@entry
def main(argv: Sequence[str]) -> int:
    if argv and argv[0] == "--child":
        print(json.dumps(child(argv[1], measured=argv[2] == "measured")))
        return 0
    parser = argparse.ArgumentParser(prog="python -m scripts.bench memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three of the cases")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here, as JSON")
    args = parser.parse_args(argv)
    if not Path("/proc/self/clear_refs").exists():
        raise ValueError("bench memory: the high-water mark of memory can be read on Linux only")
    rows = []
    print(f"{'MiB':<32}{'estimate':>10}{'measured':>10}{'error':>8}{'kept':>8}")
    for name in QUICK if args.quick else CASES:
        found = compare(name)
        rows.append(found)
        error = f"{found['estimate'] / found['measured'] - 1:+.1%}"
        numbers = f"{found['estimate']:>10,.0f}{found['measured']:>10,.0f}{error:>8}{found['kept']:>8,.0f}"
        print(f"{name:<32}{numbers}", flush=True)
    if args.out:
        atomic_write(args.out, json.dumps(rows, indent=1) + "\n")
    return 0


def compare(name: str) -> dict[str, Any]:
    """A case's estimate, measured peak and the peak when glibc keeps what is freed, in MiB."""
    return {
        "case": name,
        "estimate": ask(name, "estimate", {}),
        "measured": ask(name, "measured", RETURNING),
        "kept": ask(name, "measured", {}),
    }


def ask(name: str, what: str, environment: dict[str, str]) -> float:
    """What a process of its own answers, in MiB. Raises RuntimeError with its last words when it fails."""
    command = [sys.executable, "-m", "scripts.bench_memory", "--child", name, what]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout)) / MIB


def case_config(name: str, more: Sequence[str] = ()) -> RunConfig:
    recipe, _, rows, micro_batches, overrides = CASES[name]
    path = Path(__file__).resolve().parent.parent / "configs" / f"{recipe}.yaml"
    config = load(str(path), (*overrides, *more))
    tokens = rows * micro_batches * config.model.context
    return replace(config, train=replace(config.train, batch_tokens=tokens, micro_rows=rows, compile=False))


def child(name: str, *, measured: bool) -> int:
    """Bytes of a case, by running it or by going through it without contents."""
    import torch

    from scripts.plan_memory import step_memory
    from trainer.memory import keep_freed_memory

    device = torch.device("cpu")
    _, vocab_size, rows, micro_batches, _ = CASES[name]
    if not measured:
        return sum(step_memory(case_config(name), vocab_size, rows, micro_batches, device).values())
    if not RETURNING.items() <= os.environ.items():
        keep_freed_memory()
    steps(case_config(name, SMALL), 64, 1, 1)
    gc.collect()
    before = memory_now()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    steps(case_config(name), vocab_size, rows, micro_batches)
    return memory_now()["VmHWM"] - before


def steps(config: RunConfig, vocab_size: int, rows: int, micro_batches: int) -> None:
    """Build a learner and take two steps: the second has the optimizer's state from its beginning."""
    import torch

    from learner import build_learner
    from sizing import random_batch
    from trainer.distributed import Place, Ranks

    device = torch.device("cpu")
    learner = build_learner(config, vocab_size, Ranks(Place(), device), device)
    batch = random_batch(rows, config.model.context, vocab_size, device)
    for _ in range(2):
        for _ in range(micro_batches):
            learner.backward(learner.forward(batch).loss)
        learner.update(1e-9, torch.isfinite(learner.clip()))


def memory_now() -> dict[str, int]:
    """Bytes of resident memory: `VmRSS` now, `VmHWM` at most."""
    lines = (line.partition(":")[::2] for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(value.split()[0]) * 1024 for name, value in lines if name in ("VmRSS", "VmHWM")}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
