"""What `python -m scripts.bench train` tells: tables, aims and a picture, all from what bench_train.json holds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measuring import Aim, aim_lines, columns, failures, medians, spread, subtitle
from .picture import Bar, rate_panels

PEAK, OURS, AS_IT_IS = "GEMM", "ours bf16", "as it is"
MIB = 1 << 20
SPEED = {"nanoGPT fp32": 2.5, "nanoGPT bf16": 1.3}
"""What this project aims at for `ours bf16`, in times of another entrant."""
SPEED_OF_BEST = {"Trainer": 1.5, "litgpt": 1.5}
"""The same, in times of the best of a tool's entrants."""
SHARE = 0.55
"""The same, as a share of the measured bf16 peak."""
MEMORY = {50304: 0.6}
"""Memory of a step as a share of nanoGPT's at the same precision; 1 for other vocabularies."""
STEPS = "tokens/s  of whole steps: forward, loss, backward, clipping, optimizer; median of the rounds"
NOTES = f"""\
{STEPS}. Trainer's by a callback
          at the end of its steps, everybody's without the first two
peak      model FLOPs (6 N + 12 L D T a token) as a share of the fastest 1024 x 1024 product in that precision, of
          all rounds
rows      of the step that go through the model at once: ours by the default `train.micro_rows: auto`, which adds up
          gradients of what fits its budget; the others take all, by their defaults
step      memory at most, above what the process had before the model was made; process: of all of it. Ours tells
          glibc to keep freed memory, as a run does
AdamW     fused but for nanoGPT's, which asks for that on CUDA alone; weights decay by 0.1 everywhere
bf16      products in bf16 by autocast, weights in fp32; litgpt's bf16-true has weights and optimizer in bf16 too;
          nanoGPT's train.py has no autocast on a CPU: its bf16 is its step with autocast put in"""
ON_GPU = f"""\
{STEPS}, without the
          first six; the device is waited for where the clock starts and where it stops, not in between
peak      model FLOPs (6 N + 12 L D T a token) as a share of the fastest 8192 x 8192 product in that precision, of
          all rounds
rows      of the step that go through the model at once
step      most memory in tensors; process: most that torch's allocator kept
AdamW     fused everywhere; weights decay by 0.1"""
PEERS_ON_GPU = """\
compiled  by torch.compile, as nanoGPT's train.py and litgpt's pretrain.py do by default; Trainer on request. Ours
          compiles its blocks and its loss by default
bf16      products in bf16 by autocast, weights in fp32; litgpt's bf16-true has weights and optimizer in bf16 too"""
COMPILED = """\
compiled  by torch.compile: the whole model, of Trainer what it compiles, of ours each block, by train.compile=true. On
          a CPU it is our default and that of nanoGPT's README not to, and that of litgpt's pretrain.py to do so"""
EXACT_GELU = "GELU      the exact one by erf everywhere, which is nanoGPT's"
"""What `model.gelu=erf` does; reports from before it say nothing of it, as ours had the tanh form."""
CHOICES = """\
as it is  what a run does by default with the qwen3 preset and Muon, rows of one document each; each other line has
          one thing changed. The weights of fp32 are those of bf16; its products are TF32 unless deterministic"""


def shapes(report: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(key, rows, vocabulary) of each."""
    return [(key, int(key.partition("x")[0]), int(key.partition("x")[2])) for key in report["settings"]["shapes"]]


def speeds(report: dict[str, Any], shape: str) -> dict[str, float]:
    """Median tokens per second of each entrant that trained: one whose loss is not that of random tokens did not."""
    answers, vocab = report["answers"].get(shape, {}), int(shape.partition("x")[2])
    return {
        name: rate
        for name, rate in medians(answers, "tokens_per_s").items()
        if all(abs(answer["loss"] / math.log(vocab) - 1) < 0.2 for answer in answers[name])
    }


def share(report: dict[str, Any], shape: str, name: str) -> float | None:
    """Model FLOP/s of an entrant as a share of the measured peak of its precision."""
    answers, found = report["answers"][shape], products(report)
    gpt2 = next((answer["flops"] for answer in answers.get(PEAK, []) if "flops" in answer), None)
    if not found or name not in speeds(report, shape) or gpt2 is None:
        return None
    told = answers[name][0]
    best = max(answer["fp32" if told["precision"] == "fp32" else "bf16"] for answer in found)
    return speeds(report, shape)[name] * told.get("flops", gpt2) / best


def table(report: dict[str, Any], shape: str) -> list[tuple[str, ...]]:
    """A row for each entrant, the fastest first."""
    answers, found = report["answers"].get(shape, {}), speeds(report, shape)
    above, whole = medians(answers, "above"), medians(answers, "whole")
    name = AS_IT_IS if report["settings"].get("choices") else OURS
    base = found.get(name)
    head = ("", "tokens/s", "spread", f"{name} is", "of peak", "rows", "step MiB", "process MiB")
    rows: list[tuple[str, ...]] = [head]
    for name, rate in sorted(found.items(), key=lambda item: -item[1]):
        part = share(report, shape, name)
        rows.append((
            name, f"{rate:,.0f}", f"{spread([answer['tokens_per_s'] for answer in answers[name]]):.0%}",
            f"{base / rate:.2f}x" if base else "-", "-" if part is None else f"{part:.0%}",
            str(answers[name][0].get("micro_rows", "all")),
            f"{above[name] / MIB:,.0f}", f"{whole[name] / MIB:,.0f}",
        ))  # fmt: skip
    return rows


def aims(report: dict[str, Any]) -> list[Aim]:
    """What was aimed at, and what was found, for every shape; on a CPU, which the aims are about."""
    made: list[Aim] = []
    if not on_cpu(report):
        return made
    for shape, rows, vocab in shapes(report):
        found, at = speeds(report, shape), f"batch {rows}, vocabulary {vocab:,}"
        above = {n: m for n, m in medians(report["answers"].get(shape, {}), "above").items() if n in found}
        if OURS not in found:
            continue
        for name, wanted in SPEED.items():
            if name in found:
                made.append(Aim(f"{at}: tokens/s / {name}", wanted, found[OURS] / found[name]))
        for who, wanted in SPEED_OF_BEST.items():
            best = max((name for name in found if name.startswith(who)), key=found.__getitem__, default=None)
            if best:
                made.append(Aim(f"{at}: tokens/s / {best}, its best", wanted, found[OURS] / found[best]))
        if (part := share(report, shape, OURS)) is not None:
            made.append(Aim(f"{at}: share of the bf16 GEMM peak", SHARE, part))
        for precision in ("bf16", "fp32"):
            ours, theirs = above.get(f"ours {precision}"), above.get(f"nanoGPT {precision}")
            if ours and theirs:
                limit = MEMORY.get(vocab, 1.0)
                made.append(Aim(f"{at}: memory of a step / nanoGPT {precision}", limit, ours / theirs, at_most=True))
    return made


def on_cpu(report: dict[str, Any]) -> bool:
    return report["settings"].get("device", "cpu") == "cpu"


def notes(report: dict[str, Any]) -> list[str]:
    """What the columns and the entrants are."""
    if report["settings"].get("choices"):
        return [STEPS + "." if on_cpu(report) else ON_GPU, CHOICES]
    gelu = [EXACT_GELU] if report.get("gelu") == "erf" else []
    compiled = [COMPILED] if any("compiled" in name for each in report["answers"].values() for name in each) else []
    return [NOTES, *compiled, *gelu] if on_cpu(report) else [ON_GPU, PEERS_ON_GPU, *gelu]


def products(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What was measured of matrix products, in all rounds."""
    return [answer for each in report["answers"].values() for answer in each.get(PEAK, []) if "failed" not in answer]


def peaks(report: dict[str, Any]) -> str:
    """The measured peaks, in words."""
    answers, told = products(report), []
    for key in ("fp32", "bf16") if answers and on_cpu(report) else ("bf16",) if answers else ():
        rates = [answer[key] / 1e9 for answer in answers]
        told.append(f"{key} {min(rates):,.0f} to {max(rates):,.0f} GFLOP/s")
    return ", ".join(told)


def heading(report: dict[str, Any], rows: int, vocab: int) -> str:
    size = report["settings"]
    model = f"{size['layers']} layers, {size['dim']} wide, {size['heads']} heads, context {size['context']}"
    return f"{model}, batch {rows}, vocabulary {vocab:,}"


def wrong(report: dict[str, Any]) -> list[str]:
    """A line for each entrant whose loss tells that it did something else."""
    return [
        f"wrong   {name} ({shape}): a loss of {answers[0]['loss']:.3f}, not about ln {shape.partition('x')[2]}"
        for shape, each in report["answers"].items()
        for name, answers in each.items()
        if name not in speeds(report, shape) and answers and all("loss" in answer for answer in answers)
    ]


def tables(report: dict[str, Any]) -> list[str]:
    """Lines of all that was measured."""
    lines = []
    for shape, rows, vocab in shapes(report):
        lines += ["", heading(report, rows, vocab), *columns(table(report, shape))]
    told = peaks(report)
    return [*lines, *aim_lines(aims(report)), "", *notes(report), *([f"GEMM      {told}"] if told else []),
            *failures(report), *wrong(report)]  # fmt: skip


def draw(report: dict[str, Any], path: Path) -> None:
    """The picture: a bar for each entrant, the fastest first."""
    panels: dict[str, Sequence[Bar]] = {}
    for shape, rows, vocab in shapes(report):
        found = sorted(speeds(report, shape).items(), key=lambda item: -item[1])
        if found:
            panels[f"batch {rows}, vocabulary {vocab:,}"] = [
                Bar(n, rate, n.startswith(("ours", AS_IT_IS))) for n, rate in found
            ]
    size = report["settings"]
    model = f"{size['layers']} layers, {size['dim']} wide, context {size['context']}"
    if panels:
        rate_panels(panels, path, f"Training, tokens a second: {model}", subtitle(report))
