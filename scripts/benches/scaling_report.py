"""What `python -m scripts.bench scaling` tells: tables, an aim and pictures, all from what bench_scaling.json holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .measuring import Aim, aim_rows, columns, failures, medians, subtitle
from .picture import Curve, curves
from .scaling import AXES, GEMM, ONE, TWO, line

MIB = 1 << 20
RANKS = 0.95
"""What this project aims at for two ranks of one thread, in tokens per second of one rank of two."""
TITLES = {"dim": "width", "layers": "layers", "context": "context", "vocab": "vocabulary", "rows": "rows of a step"}
NOTES = """\
shapes    qwen3, Muon, precision auto, random tokens in memory: whole steps, median of the rounds
peak      model FLOPs (6 N + 12 L D T a token) as a share of the fastest 1024 x 1024 bf16 product of all rounds
step      memory at most, above what the process had before the model was made
ranks     the same 10M-parameter shape and rows a step; two processes average gradients by gloo
corpus    random ids in documents of 1,000 on average, u16; opened: until the first batch, importing not counted;
          order and load: of a token, files in the page cache; step: of a token of a training step with its rows;
          memory: of the opened corpus, without its mapped files"""
Table = list[tuple[str, ...]]


def axis(report: dict[str, Any], name: str) -> list[tuple[int, float, float, float | None]]:
    """(value, tokens per second, bytes of a step, share of the peak) of each shape that was measured."""
    answers = report["answers"].get("shapes", {})
    speeds, above = medians(answers, "tokens_per_s"), medians(answers, "above")
    products, found = [answer["bf16"] for answer in answers.get(GEMM, []) if "bf16" in answer], []
    for key, shape in line(name, report["settings"]["quick"]).items():
        if key in speeds:
            told = answers[key][0]
            half = told["precision"] == "bf16" and products
            part = speeds[key] * told["flops"] / max(products) if half else None
            found.append((getattr(shape, name), speeds[key], above[key], part))
    return found


def shape_tables(report: dict[str, Any]) -> Iterator[Table]:
    """A table for each axis."""
    for name in AXES:
        rows: Table = [(TITLES[name], "tokens/s", "of peak", "step MiB")]
        for value, speed, above, part in axis(report, name):
            share = "-" if part is None else f"{part:.0%}"
            rows.append((f"{value:,}", f"{speed:,.0f}", share, f"{above / MIB:,.0f}"))
        if len(rows) > 1:
            yield rows


def rank_table(report: dict[str, Any]) -> Table:
    answers = report["answers"].get("ranks", {})
    speeds, above = medians(answers, "tokens_per_s"), medians(answers, "above")
    rows: Table = [("10M parameters", "tokens/s", "step MiB of a process")]
    return rows + [(name, f"{speed:,.0f}", f"{above[name] / MIB:,.0f}") for name, speed in speeds.items()]


def corpus_table(report: dict[str, Any]) -> Table:
    answers = report["answers"].get("corpus", {})
    opened, ordered, loaded, trained = (
        medians(answers, key) for key in ("opened", "ordered", "loaded", "trained")
    )  # fmt: skip
    planned, memory = medians(answers, "planned"), medians(answers, "memory")
    rows: Table = [("corpus", "tokens", "planned", "opened", "order", "load", "step", "memory MiB")]
    for name in opened:
        rows.append((
            name, f"{answers[name][0]['tokens']:,}", f"{planned[name]:.2f} s", f"{opened[name]:.2f} s",
            f"{ordered[name] * 1e9:,.1f} ns", f"{loaded[name] * 1e9:,.1f} ns", f"{trained[name] * 1e6:,.2f} us",
            f"{memory[name] / MIB:,.0f}",
        ))  # fmt: skip
    return rows


def aims(report: dict[str, Any]) -> list[Aim]:
    """What was aimed at, and what was found."""
    speeds = medians(report["answers"].get("ranks", {}), "tokens_per_s")
    return [Aim(f"tokens/s of {TWO} / {ONE}", RANKS, speeds[TWO] / speeds[ONE])] if {ONE, TWO} <= speeds.keys() else []


def all_tables(report: dict[str, Any]) -> list[Table]:
    """Those of the parts that were measured."""
    others = [table for table in (rank_table(report), corpus_table(report)) if len(table) > 1]
    return [*shape_tables(report), *others, *([aim_rows(aims(report))] if aims(report) else [])]


def tables(report: dict[str, Any]) -> list[str]:
    """Lines of all that was measured."""
    lines = [text for table in all_tables(report) for text in ("", *columns(table))]
    return [*lines, "", NOTES, *failures(report)]


def draw(report: dict[str, Any], path: Path) -> None:
    """The picture: speed and memory along each axis, and what a token costs as the corpus grows."""
    rows: list[list[Curve]] = []
    found = {name: axis(report, name) for name in AXES}
    if any(found.values()):
        rows = [
            [Curve(f"tokens/s by {TITLES[n]}", {"": [(p[0], p[1]) for p in points]}) for n, points in found.items()],
            [Curve(f"step MiB by {TITLES[n]}", {"": [(p[0], p[2] / MIB) for p in points]})
             for n, points in found.items()],
        ]  # fmt: skip
    answers = report["answers"].get("corpus", {})
    panels = {"us a token, step": ("trained", 1e6), "ns a token, load": ("loaded", 1e9),
              "ns a token, order": ("ordered", 1e9), "s to open": ("opened", 1.0)}  # fmt: skip
    last = [
        Curve(f"{title}, by MB", {"": [(float(name.split()[0]), value * unit) for name, value in each.items()]})
        for title, (key, unit) in panels.items()
        if (each := medians(answers, key))
    ]
    if rows or last:
        curves([*rows, *([last] if last else [])], path, "How training scales", subtitle(report))
