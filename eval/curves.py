"""The picture of a run: loss, perplexity, learning rate and gradient norm over tokens.

The same rows give the same bytes (with one matplotlib version): no dates, no user style, no global state.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .style import FAINT, GRID, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 400
"""A curve with more points than this is shown as that many bucket means, with the range of each bucket behind."""

# Okabe and Ito's palette, which people with any color vision can tell apart
_TRAIN, _VAL, _OBJECTIVE = "#0072B2", "#D55E00", "#7F7F7F"


class _Curve(NamedTuple):
    """A curve in one panel: the metric, how it is called at its end, and how it looks."""

    key: str
    label: str
    color: str
    marked: bool = False


class _Panel(NamedTuple):
    title: str
    curves: tuple[_Curve, ...]
    log: bool


_PANELS = (
    _Panel(
        "loss (nats per token)",
        (
            _Curve("train/loss", "objective", _OBJECTIVE),
            _Curve("train/nll", "train", _TRAIN),
            _Curve("val/nll", "val", _VAL, marked=True),
        ),
        log=False,
    ),
    _Panel(
        "perplexity",
        (_Curve("train/ppl", "train", _TRAIN), _Curve("val/ppl", "val", _VAL, marked=True)),
        log=True,
    ),
    _Panel("learning rate", (_Curve("train/lr", "", _TRAIN),), log=False),
    _Panel("gradient norm", (_Curve("train/grad_norm", "", _TRAIN),), log=True),
)


def draw(
    rows: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str,
    references: Mapping[str, float] | None = None,
) -> None:
    """Write a PNG (1800 x 1240, meant to be shown at half of that) of a run's `metrics.jsonl` rows to `path`.

    `references` are bits per byte by label, such as what gzip reaches; the loss panel shows each at the loss that
    equals it, by the last evaluation's ratio of nll to bits per byte. Missing keys, nulls and non-finite values are
    left out, so a run of one row, or without evaluations, has its picture as well.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: (row["tokens"], row["step"]))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(9, 6.2), dpi=200, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        grid = figure.subplots(2, 2)
        figure.subplots_adjust(left=0.065, right=0.91, top=0.845, bottom=0.075, wspace=0.42, hspace=0.38)
        figure.text(0.065, 0.95, title, fontsize=12, fontweight="bold", color=INK)
        figure.text(0.065, 0.915, _subtitle(rows), fontsize=9, color=FAINT)
        for panel, axes in zip(_PANELS, grid.flat, strict=True):
            _draw_panel(axes, panel, rows, references or {})
        canvas.print_png(str(path), metadata={"Software": None})


def _draw_panel(
    axes: "Axes", panel: _Panel, rows: Sequence[Mapping[str, Any]], references: Mapping[str, float]
) -> None:
    labels: list[tuple[float, str, str]] = []
    shown: list[np.ndarray] = []
    for curve in panel.curves:
        x, y = _series(rows, curve.key, positive=panel.log)
        if not len(x) or (curve.key == "train/loss" and _same(rows)):
            continue
        end = _draw_curve(axes, curve, x, y)
        shown.append(y)
        last = float(y[-1]) if curve.marked else end
        labels.append((end, f"{curve.label} {_value(last)}".strip(), curve.color))
    _dress(axes, panel, rows, shown)
    if panel.curves[0].key == "train/loss" and shown:
        _draw_references(axes, rows, references)
    _label(axes, labels)


def _draw_curve(axes: "Axes", curve: _Curve, x: np.ndarray, y: np.ndarray) -> float:
    """Draw one curve; gives the height of its last drawn point."""
    if len(x) > POINTS:
        x, y, low, high = _buckets(x, y)
        axes.fill_between(x, low, high, color=curve.color, alpha=0.18, linewidth=0)
    marker = "o" if len(x) == 1 or (curve.marked and len(x) <= 40) else None
    axes.plot(x, y, color=curve.color, linewidth=1.5, marker=marker, markersize=3.2, solid_joinstyle="round")
    return float(y[-1])


def _draw_references(axes: "Axes", rows: Sequence[Mapping[str, Any]], references: Mapping[str, float]) -> None:
    """Dashed lines at the losses that equal the references, named at the right on the side where the curve is not."""
    from matplotlib.patheffects import withStroke

    _, nll = _series(rows, "val/nll")
    _, bpb = _series(rows, "val/bpb", positive=True)
    if not len(nll) or not len(bpb) or not references:
        return
    low, high = axes.get_ylim()
    heights = {label: float(bits * nll[-1] / bpb[-1]) for label, bits in references.items()}
    heights = {label: height for label, height in heights.items() if height < 2 * high}  # never flattens the curves
    if not heights:
        return
    air = 0.1 * (max(high, *heights.values()) - min(low, *heights.values()))
    low, high = min(low, min(heights.values()) - air), max(high, max(heights.values()) + air)
    axes.set_ylim(low, high)
    before, right = math.inf, 0.99
    for label, height in sorted(heights.items(), key=lambda item: item[1]):
        right = right - 0.16 if abs(height - before) < 0.09 * (high - low) else 0.99  # beside the one below
        before, beaten = height, nll[-1] <= height
        axes.axhline(height, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            label, (right, height), xycoords=("axes fraction", "data"),
            xytext=(0, 2.5 if beaten else -2.5), textcoords="offset points", ha="right",
            va="bottom" if beaten else "top", fontsize=7.5, color=FAINT,
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip


def _dress(axes: "Axes", panel: _Panel, rows: Sequence[Mapping[str, Any]], shown: Sequence[np.ndarray]) -> None:
    """Title, scales, ticks and grid of one panel."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_title(panel.title, loc="left", fontsize=9.5, color=INK, pad=7)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BFBFBF")
    axes.tick_params(colors=FAINT, labelsize=8.5, length=0, which="both")
    axes.tick_params(axis="x", length=3, color="#BFBFBF")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    last = max((row["tokens"] for row in rows), default=0)
    axes.set_xlim(0, 1.012 * max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: count_text(v)))
    axes.set_xlabel("tokens", fontsize=8.5, color=FAINT, labelpad=2)
    if not shown:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=FAINT)
        return
    low, high = _limits(shown, panel.log)
    if panel.log:
        axes.set_yscale("log")
        decades = math.log10(high / low)
        subs = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0) if decades > 1.3 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: count_text(v)))
    axes.set_ylim(low, high)


def _limits(shown: Sequence[np.ndarray], log: bool) -> tuple[float, float]:
    """Bounds with a little air; on a linear scale rare spikes may leave the picture rather than flatten it."""
    low, high = min(float(y.min()) for y in shown), max(float(y.max()) for y in shown)
    if log:
        air = max((high / low) ** 0.06, 1.15)
        return low / air, high * air
    usual = max(max(float(y[0]), 1.2 * float(np.quantile(y, 0.995))) for y in shown)
    high = max(min(high, usual), low)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.25 * high else low - air), high + air


def _label(axes: "Axes", labels: Sequence[tuple[float, str, str]]) -> None:
    """Write each label beside the right end of its curve, moved apart where they would overlap."""
    low, high = axes.transData.transform([(0, v) for v in axes.get_ylim()])[:, 1]
    gap = 0.062 * (high - low)
    ordered = sorted(labels, key=lambda item: item[0])
    places: list[float] = []
    for height, _, _ in ordered:
        y = float(axes.transData.transform((0, height))[1])
        places.append(max(min(max(y, low), high), places[-1] + gap) if places else min(max(y, low), high))
    excess = max(places[-1] - high, 0) if places else 0
    for i in range(len(places) - 1, -1, -1):  # push back down what left at the top
        ceiling = high if i == len(places) - 1 else places[i + 1] - gap
        places[i] = min(places[i], ceiling) if excess else places[i]
    for place, (_, text, color) in zip(places, ordered, strict=True):
        axes.text(
            1.015, (place - low) / (high - low), text, transform=axes.transAxes, color=color, va="center", fontsize=8.5
        )  # fmt: skip


def _series(rows: Sequence[Mapping[str, Any]], key: str, positive: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values of the rows that hold a finite (and positive, on request) number under `key`."""
    pairs = [(row["tokens"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    x, y = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    good = np.isfinite(y) & ((y > 0) | (not positive))
    return x[good], y[good]


def _buckets(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean position, mean, least and largest of `POINTS` runs of neighbors; the last point stays what it is."""
    starts = np.linspace(0, len(x), POINTS, endpoint=False).astype(int)  # strictly increasing, as len(x) > POINTS
    counts = np.diff(np.append(starts, len(x)))
    mean_x, mean_y = np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts
    return mean_x, mean_y, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def _same(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the objective is the plain nll all along, so that one curve tells both."""
    pairs = [(row.get("train/loss"), row.get("train/nll")) for row in rows]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    return bool(both) and all(math.isclose(a, b, rel_tol=1e-3) for a, b in both)


def _subtitle(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "no rows yet"
    facts = [f"{rows[-1]['step']:,} steps", f"{count_text(rows[-1]['tokens'])} tokens"]
    for key, text in (("val/nll", "val nll {:.3f}"), ("val/ppl", "ppl {:.2f}"), ("val/bpb", "{:.3f} bits per byte")):
        _, y = _series(rows, key)
        facts += [text.format(y[-1])] if len(y) else []
    return "  ·  ".join(facts)


def _value(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) < 1e-2:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.2f}" if abs(value) < 100 else count_text(value)


def count_text(value: float) -> str:
    """A number as people write it on an axis: 0.02, 500, 8.2k, 1.2M, 10B."""
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3g}"
