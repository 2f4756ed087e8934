"""The memory that `--dry-run` tells of a training step, against a measured one: `python -m scripts.bench memory`.

It tells two numbers. What a step's tensors take is an estimate; against it stands the peak of two steps when glibc's
allocator is told to return what is freed (`needed`), once small steps had loaded all libraries. What the process takes
is measured in a few steps, with libraries and what the allocator keeps; against it stands the peak of thirty steps,
also of rows with gaps, as in training.
Each number comes from a process of its own, as the high-water mark of its resident memory above what it had before
the model was made.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs import RunConfig, entry, load
from durable import atomic_write

from . import measuring

MIB = 1 << 20
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}
LONG = 30  # steps of training
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
WHAT = ("tensors", "needed", "dry run", "trained")
QUICK = ("quickstart, fp32", "quickstart, unfused", "quickstart, recomputed")


@entry
def main(argv: Sequence[str]) -> int:
    if argv and argv[0] == "--child":
        print(json.dumps({"bytes": child(argv[1], argv[2])}))
        return 0
    parser = argparse.ArgumentParser(prog="python -m scripts.bench memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three of the cases")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here, as JSON")
    args = parser.parse_args(argv)
    if not Path("/proc/self/clear_refs").exists():
        raise ValueError("bench memory: the high-water mark of memory can be read on Linux only")
    print(measuring.surroundings("cpu")["told"])
    rows = []
    titles = ("tensors", "needed", "error", "dry run", f"{LONG} steps", "error")
    print(f"{'MiB':<32}" + "".join(f"{title:>10}" for title in titles))
    for name in QUICK if args.quick else CASES:
        found = {what: ask(name, what) for what in WHAT}
        rows.append({"case": name, **found})
        pairs = ((found["tensors"], found["needed"]), (found["dry run"], found["trained"]))
        numbers = "".join(f"{told:>10,.0f}{real:>10,.0f}{told / real - 1:>+10.1%}" for told, real in pairs)
        print(f"{name:<32}{numbers}", flush=True)
    if args.out:
        atomic_write(args.out, json.dumps(rows, indent=1) + "\n")
    return 0


def ask(name: str, what: str) -> float:
    """What a process of its own answers, in MiB. Raises RuntimeError with its last words when it fails."""
    environment = RETURNING if what == "needed" else None
    answer = measuring.ask("scripts.benches.memory", "--child", name, what, environment=environment)
    if "failed" in answer:
        raise RuntimeError(f"{name}: {answer['failed']}")
    return answer["bytes"] / MIB


def case_config(name: str, more: Sequence[str] = ()) -> RunConfig:
    recipe, _, rows, micro_batches, overrides = CASES[name]
    path = measuring.ROOT / "configs" / f"{recipe}.yaml"
    config = load(str(path), (*overrides, *more))
    tokens = rows * micro_batches * config.model.context
    return replace(config, train=replace(config.train, batch_tokens=tokens, micro_rows=rows, compile=False))


def child(name: str, what: str) -> int:
    """Bytes of a case: one of `WHAT`."""
    import torch

    from learner import build_learner
    from scripts.plan import try_out
    from scripts.plan_memory import step_memory
    from trainer.distributed import Place, Ranks
    from trainer.memory import Gauge, keep_freed_memory

    device, config = torch.device("cpu"), case_config(name)
    _, vocab_size, rows, micro_batches, _ = CASES[name]
    if what == "tensors":
        return sum(step_memory(config, vocab_size, rows, micro_batches, device).values())
    if what == "needed":
        train(case_config(name, SMALL), 64, 1, 1)
    else:
        keep_freed_memory()
    gauge = Gauge(device)
    if what == "dry run":
        peak = try_out(build_learner(config, vocab_size, Ranks(Place(), device), device), vocab_size, gauge).peak
    else:
        train(config, vocab_size, micro_batches, 2 if what == "needed" else LONG)
        peak = gauge.peak()
    assert peak is not None  # `main` has looked
    return peak


def train(config: RunConfig, vocab_size: int, micro_batches: int, steps: int) -> None:
    """Build a learner and take steps: from the second on, the optimizer's state is there from the beginning."""
    import torch

    from learner import build_learner
    from scripts.plan import with_gaps
    from sizing import random_batch
    from trainer.distributed import Place, Ranks

    device = torch.device("cpu")
    learner = build_learner(config, vocab_size, Ranks(Place(), device), device)
    batch = random_batch(learner.micro_rows, config.model.context, vocab_size, device)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for _ in range(micro_batches):
            learner.backward(learner.forward(with_gaps(batch, generator)).loss)
        learner.update(1e-9, torch.isfinite(learner.clip()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
