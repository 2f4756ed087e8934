"""What `python -m scripts.bench loss` tells: tables, notes and a picture, all from what bench_loss.json holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .loss_contest import PLAIN, TORCH
from .measuring import subtitle
from .picture import Group, Panel, bars

Row = dict[str, Any]  # one measurement of one case

# What this project aims at for `ours fused` on a CPU, in times of plain, at these sizes (rows, width, vocabulary).
AIM = {("fp32", False): 1.0, ("fp32", True): 0.9, ("bf16", False): 0.6, ("bf16", True): 0.5}  # dtype, smoothing
AIM_MEMORY = 1 / 8
AIM_SIZES = {"time": [(2048, 512, 10000), (2048, 512, 50304)], "memory": [(8192, 512, 50304)]}
ALLOCATORS = {
    "default": "the process's own allocator",
    "kept": "an allocator that keeps freed memory, as in every Thimble run on a CPU",
    "cuda": "torch's own allocator",
}
NOTES = f"""\
x       in times of plain: F.linear + F.cross_entropy, for bf16 under autocast, with parameters in fp32
{TORCH}: the best of its options in each row, named at the right with what the others came to, measured
        twice. It is `whole`, which is plain, or in chunks, for which autocast does nothing, so that bf16 copies are
        made by hand, and which know no label smoothing."""
AIM_NOTE = "aim     what this project aims at for `ours fused` at this size"


def tables(report: dict[str, Any]) -> list[str]:
    """Lines of the tables of what has been measured."""
    lines, settings = [], report["settings"]
    if report["time"]:
        what = f"{settings['rows']:,} rows, width {settings['width']}, medians of {settings['repeats']}"
        lines += ["", f"time of forward + backward: {what}", *table(report["time"], "time")]
    if report["memory"]:
        what = f"{settings['memory_rows']:,} rows, width {settings['width']}"
        lines += ["", f"peak memory above inputs and gradients: {what}", *table(report["memory"], "memory")]
    return lines


def notes(report: dict[str, Any]) -> list[str]:
    """What a reader of the tables needs to know, and what went wrong."""
    used = dict.fromkeys(row["allocator"] for row in report["time"])
    spread = max(row["spread"] for row in report["time"])
    aimed = any(aim(row, kind) for kind in ("time", "memory") for row in report[kind])
    lines = ["", NOTES, *([AIM_NOTE] if aimed else []), *(f"{name:<8}{ALLOCATORS[name]}" for name in used)]
    lines.append(
        f"spread  up to {spread:.0%}: (max - min) / median of a contestant's repeats, a few % on a quiet machine"
    )
    for group in report["checks"]:
        told = f"{group['dtype']}, eps {group['eps']:g}"
        for name, found in group["entrants"].items():
            if found["wrong"]:
                lines.append(f"wrong   {name.rstrip('/')} ({told}): {found['wrong']}; not measured")
    for row in (*report["time"], *report["memory"]):
        for name, reason in row["failures"].items():
            lines.append(f"failed  {name.rstrip('/')} ({label(row)}): {reason}")
    return lines


def label(row: Row) -> str:
    return f"{row['dtype']}, V {row['vocab']:,}, eps {row['eps']:g}"


def table(rows: Sequence[Row], kind: str) -> list[str]:
    """Lines of a table with a row for each measurement and a column for each contestant."""
    names = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    words = 2 if kind == "time" else 1  # leading columns that are not numbers
    aims = [aim(row, kind) for row in rows]
    columns = ["dtype", "allocator"][:words] + ["V", "eps", *names, *(["aim"] if any(aims) else [])]
    columns.append(f"options of {TORCH}")
    lines = [columns]
    for row, wanted in zip(rows, aims, strict=True):
        cells = [row["dtype"], row.get("allocator", "")][:words] + [f"{row['vocab']:,}", f"{row['eps']:g}"]
        for name in names:
            ratio, value = row["ratios"].get(name, "-"), row["values"].get(name)
            told = ratio if value is None else amount(value, kind)
            cells.append(f"{told} {ratio:5.2f}x" if isinstance(ratio, float) and name != PLAIN else str(told))
        lines.append([*cells, *([wanted or "-"] if any(aims) else []), options(row)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {*range(words), len(columns) - 1}
    return [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        .rstrip()
        for line in lines
    ]  # fmt: skip


def amount(value: float, kind: str) -> str:
    if kind == "memory":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value * 1e3:,.0f} ms" if value >= 0.1 else f"{value * 1e3:.3g} ms"


def aim(row: Row, kind: str) -> str:
    if row["device"] != "cpu" or (row["rows"], row["width"], row["vocab"]) not in AIM_SIZES[kind]:
        return ""
    return f"{AIM[row['dtype'], row['eps'] > 0] if kind == 'time' else AIM_MEMORY:g}x"


def options(row: Row) -> str:
    """The best options of linear_cross_entropy in a row, and what the others came to, in times of plain."""
    tried, chosen = row["tried"], row["best"].get(TORCH)
    variants = {name: value for name, value in tried.items() if name.startswith(f"{TORCH}/")}
    base = tried.get(row["best"].get(PLAIN))
    others = [f"{name.partition('/')[2]} {v / base:.2f}x" for name, v in variants.items() if name != chosen and base]
    return "; ".join(filter(None, [(chosen or "").partition("/")[2], ", ".join(others)])) or "-"


def draw(report: dict[str, Any], path: Path) -> None:
    """The picture: every other contestant's ratio to plain, times and memory one below the other."""
    settings, panels = report["settings"], []
    for allocator in dict.fromkeys(row["allocator"] for row in report["time"]):
        rows = [row for row in report["time"] if row["allocator"] == allocator]
        panels.append(Panel(f"time, {settings['rows']:,} rows; {ALLOCATORS[allocator]}", _groups(rows, "time"), 1.0))
    if report["memory"]:
        title = f"peak memory above inputs and gradients, {settings['memory_rows']:,} rows"
        panels.append(Panel(title, _groups(report["memory"], "memory"), 1.0))
    bars(
        panels, path, "Linear head and loss, forward + backward: ratio to plain (less is better)",
        subtitle(report, f"plain is F.linear + F.cross_entropy; width {settings['width']}"),
    )  # fmt: skip


def _groups(rows: Sequence[Row], kind: str) -> list[Group]:
    groups = []
    for row in rows:
        base = row["values"].get(PLAIN)
        told = f"plain {amount(base, kind)}" if base else "no plain"
        name = f"{row['dtype']}, V {row['vocab']:,}\neps {row['eps']:g}\n{told}"
        groups.append(Group(name, {n: ratio for n, ratio in row["ratios"].items() if n != PLAIN}))
    return groups
