"""The picture of losses: what each costs, and how it pushes, by the probability of the target."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import FAINT, GRID, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which people with any color vision can tell apart; dashes tell curves apart without color.
_COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), "-", (0, (5, 1.5, 1, 1.5)), "-", (0, (2, 1.2)), (0, (7, 1.5, 1, 1.5)))
_TICKS = {1e-5: "10⁻⁵", 1e-4: "10⁻⁴", 1e-3: "10⁻³"} | {p: f"{p:g}" for p in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999)}


def draw_losses(
    p: Sequence[float], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: str | Path, note: str = ""
) -> None:
    """Write a PNG (1800 x 820, meant to be shown at half of that) to `path`.

    p       probabilities of the target, rising, between 0 and 1
    curves  by label: the loss in nats and its push on the target's logit, -d loss / d logit, at each p
    note    one line under the title
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(9, 4.1), dpi=200, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.045, right=0.835, top=0.78, bottom=0.125, wspace=0.16)
        figure.text(0.045, 0.93, "Losses by the probability of the target", fontsize=12, fontweight="bold", color=INK)
        figure.text(0.045, 0.873, note, fontsize=9, color=FAINT)
        for i, (label, (loss, push)) in enumerate(curves.items()):
            look: dict[str, Any] = {
                "color": _COLORS[i % len(_COLORS)],
                "linestyle": _DASHES[i % len(_DASHES)] if i < len(_COLORS) else ":",
                "linewidth": 1.7,
                "label": label,
            }
            left.plot(p, loss, **look)
            right.plot(p, push, **look)
        _dress(left, "loss (nats)", p)
        _dress(right, "push on the target's logit, \N{MINUS SIGN}∂loss/∂logit", p)
        right.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
        right.legend(
            loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=8.5, labelcolor=INK,
            handlelength=2.6, labelspacing=0.75, borderaxespad=0,
        )  # fmt: skip
        canvas.print_png(str(path), metadata={"Software": None})


def _dress(axes: "Axes", title: str, p: Sequence[float]) -> None:
    """Title, scales, ticks and grid of one panel."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

    axes.set_title(title, loc="left", fontsize=9.5, color=INK, pad=7)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BFBFBF")
    axes.tick_params(colors=FAINT, labelsize=8.5, length=0)
    axes.tick_params(axis="x", length=3, color="#BFBFBF")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xscale("logit")  # room for both ends: targets that surprise, and targets that are known
    low, high = float(np.min(p)), float(np.max(p))
    axes.set_xlim(low, high)
    shown = [tick for tick in _TICKS if low * 0.99 <= tick <= high * 1.0001]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([_TICKS[tick] for tick in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("p(target)", fontsize=8.5, color=FAINT, labelpad=2)
