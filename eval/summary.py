"""The text that ends a run."""

from collections.abc import Mapping, Sequence

_COLUMNS = (("nll", "nats/token"), ("ppl", "perplexity"), ("bpb", "bits/byte"), ("accuracy", "accuracy"))


def summarize(
    *,
    name: str,
    step: int,
    tokens: int,
    seconds: float,
    tokens_per_s: float,
    scores: Mapping[str, float | None],
    compression: Mapping[str, float] | None = None,
    best: tuple[int, float] | None = None,
    paths: Mapping[str, object] | None = None,
    commands: Sequence[str] = (),
) -> str:
    """What a finished run reached, where its files are, and what to do next; several lines, no newline at the end.

    `scores` are the `val/...` values of the last evaluation (other keys are passed over), `compression` bits per byte
    of general compressors on the same text, `best` the saved step of the lowest val/nll with that value, `paths`
    label -> file, `seconds` wall time in all, `tokens_per_s` while training.
    """
    speed = f"median {tokens_per_s:,.0f} tokens/s in training"
    lines = [f"{name}: {step:,} steps, {tokens:,} tokens in {_duration(seconds)} ({speed})", ""]
    lines += _table(_rows(scores, compression or {}))
    if best is not None:
        lines += ["", f"best saved checkpoint: step {best[0]:,}, {best[1]:.4f} nats/token"]
    if paths:
        width = max(map(len, paths))
        lines += ["", *(f"{label:<{width}}  {path}" for label, path in paths.items())]
    if commands:
        lines += ["", "next:", *(f"  {command}" for command in commands)]
    return "\n".join(lines)


def _rows(scores: Mapping[str, float | None], compression: Mapping[str, float]) -> list[list[str]]:
    """Cells of the table: header, all held-out text, each source (when there are several), each value of a label
    (`label=value`), each compressor."""
    groups: dict[str, dict[str, float | None]] = {}
    for key, value in scores.items():
        if key.startswith("val/"):
            source, _, measure = key.removeprefix("val/").rpartition("/")
            groups.setdefault(source, {})[measure] = value
    sources = sorted(name for name in groups if name and "=" not in name)  # names of sources have no such sign
    values = sorted(name for name in groups if "=" in name)
    rows = [["held-out text", *(title for _, title in _COLUMNS)]]
    for name in ["", *(sources if len(sources) > 1 else []), *values]:
        found = groups.get(name, {})
        rows.append([f"  {name}" if name else "all", *(_cell(key, found.get(key)) for key, _ in _COLUMNS)])
    for label, bits in compression.items():
        rows.append([label, *(_cell(key, bits if key == "bpb" else None, blank="") for key, _ in _COLUMNS)])
    return rows


def _cell(measure: str, value: float | None, blank: str = "-") -> str:
    if value is None:
        return blank
    if measure == "accuracy":
        return f"{100 * value:.1f} %"
    return f"{value:.{2 if measure == 'ppl' else 4}f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """First column to the left, the others to the right, a rule under the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [f"{cell:>{w}}" if i else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02d} min" if hours else f"{minute} min {second:02d} s" if minute else f"{second} s"
