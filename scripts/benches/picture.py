"""Bars, for the pictures of benchmarks. The same numbers give the same bytes (with one matplotlib version)."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from eval.style import FAINT, GRID, INK, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any color vision can tell apart
_COLORS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00")


_SMALL, _SMALL_LINE = 8.5, 0.17
"""Size of a subtitle in points, and height of its lines in inches."""


class Heading:
    """A title and, below it, a subtitle of as many lines as it needs, in a picture `width` inches wide.

    `more` is the height in inches of all lines but the first.
    """

    def __init__(self, title: str, subtitle: str, width: float, left: float) -> None:
        self.title, self.left, self.width = title, left, width
        self.lines = list[str]()
        for word in subtitle.split():
            longer = f"{self.lines[-1]} {word}" if self.lines else word
            self.lines[-1:] = [longer] if inches(longer) < width - left - 0.1 else [*self.lines[-1:], word]
        self.more = _SMALL_LINE * max(len(self.lines) - 1, 0)

    def draw(self, figure: "Figure") -> None:
        x, height = self.left / self.width, figure.get_figheight()
        figure.text(x, 1 - 0.32 / height, self.title, fontsize=12, fontweight="bold", color=INK)
        for i, line in enumerate(self.lines):
            figure.text(x, 1 - (0.55 + i * _SMALL_LINE) / height, line, fontsize=_SMALL, color=FAINT)


def inches(text: str) -> float:
    """The width of a line of a subtitle, at most: letters that are fitted to pixels are up to 3 % wider."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(family=STYLE["font.family"], size=_SMALL)  # whatever a user's matplotlibrc says
    return 1.03 * TextPath((0, 0), text, prop=font).get_extents().x1 / 72


class Group(NamedTuple):
    """Bars side by side: a height for each name, or None with no bar, or a word that stands in its place."""

    label: str
    heights: Mapping[str, float | str | None]


class Panel(NamedTuple):
    title: str
    groups: Sequence[Group]
    line: float
    """Height of the horizontal line that bars are compared with."""


def bars(panels: Sequence[Panel], path: Path, title: str, subtitle: str) -> None:
    """Write a PNG of the panels, one below the other, in one scale; a name has the same color in each."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels for group in panel.groups for name in group.heights))
    widest = max(len(panel.groups) for panel in panels)
    width, left = max(7.5, 0.9 + widest * (0.3 + 0.29 * len(names))), 0.45
    heading = Heading(title, subtitle, width, left)
    height = 1.3 + heading.more + 2.4 * len(panels)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), dpi=200, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        column = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        figure.subplots_adjust(
            left=left / width, right=1 - 0.15 / width, top=1 - (1.25 + heading.more) / height, bottom=0.65 / height,
            hspace=0.62,
        )  # fmt: skip
        heading.draw(figure)
        colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(names)}
        shown = [h for panel in panels for group in panel.groups for h in group.heights.values()]
        top = 1.16 * max([*(h for h in shown if isinstance(h, int | float)), *(panel.line for panel in panels)])
        for panel, axes in zip(panels, column, strict=True):
            _draw(axes, panel, colors, top)
        figure.legend(
            [matplotlib.patches.Patch(color=color) for color in colors.values()], list(colors), ncols=len(colors),
            loc="upper left", bbox_to_anchor=(left / width, 1 - (0.66 + heading.more) / height), borderaxespad=0,
            frameon=False, fontsize=8.5, handlelength=1.0, handleheight=0.9, columnspacing=1.6, borderpad=0.2,
        )  # fmt: skip
        canvas.print_png(str(path), metadata={"Software": None})


def _draw(axes: "Axes", panel: Panel, colors: Mapping[str, str], top: float) -> None:
    from matplotlib.patheffects import withStroke

    step, halo = 0.84 / max(len(colors), 1), [withStroke(linewidth=2, foreground="white")]
    for x, group in enumerate(panel.groups):
        shown = [name for name in colors if group.heights.get(name) is not None]
        for k, name in enumerate(shown):
            height, place = group.heights[name], x + (k - (len(shown) - 1) / 2) * step
            if isinstance(height, str):
                axes.text(place, 0.02 * top, height, rotation=90, ha="center", va="bottom", fontsize=7, color="#B00020")
                continue
            assert height is not None
            axes.bar(place, height, width=0.9 * step, color=colors[name], zorder=2)
            text = f"{height:.2f}" if height < 9.995 else f"{height:.0f}"
            axes.text(
                place, height + 0.015 * top, text, ha="center", va="bottom", fontsize=7, color=INK, zorder=4,
                path_effects=halo,
            )  # fmt: skip
    axes.axhline(panel.line, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=3)
    tidy(axes, panel.title)
    axes.set_xlim(-0.5, len(panel.groups) - 0.5)
    axes.set_ylim(0, top)
    axes.set_xticks(range(len(panel.groups)), [group.label for group in panel.groups])


def tidy(axes: "Axes", title: str) -> None:
    """A title at the left, horizontal lines behind what is drawn, and no frame but the ground."""
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, pad=6)
    axes.tick_params(colors=FAINT, labelsize=8, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#BFBFBF")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


class Bar(NamedTuple):
    """One bar; ours stand out."""

    label: str
    length: float
    ours: bool


def rates(found: Sequence[Bar], path: Path, title: str, subtitle: str) -> None:
    """Write a PNG of horizontal bars, one below the other, each with its name and number."""
    rate_panels({"": found}, path, title, subtitle)


def rate_panels(panels: Mapping[str, Sequence[Bar]], path: Path, title: str, subtitle: str) -> None:
    """The same, several by their titles, each in a scale of its own."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts, gap = [max(len(found), 1) for found in panels.values()], 0.45
    width = 7.5
    heading = Heading(title, subtitle, width, 0.15)
    height = 1.05 + heading.more + 0.33 * sum(counts) + gap * (len(counts) - 1)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), dpi=200, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        column = figure.subplots(len(counts), 1, squeeze=False, height_ratios=counts)[:, 0]
        mean = 0.33 * sum(counts) / len(counts)
        top = heading.more + (0.75 if "" in panels else 0.95)
        figure.subplots_adjust(left=0.32, right=0.96, top=1 - top / height, bottom=0.1 / height, hspace=gap / mean)
        heading.draw(figure)
        for axes, (name, found) in zip(column, panels.items(), strict=True):
            if name:
                axes.set_title(name, loc="left", fontsize=9.5, color=INK, pad=4)
            _rate_bars(axes, found)
        canvas.print_png(str(path), metadata={"Software": None})


def _rate_bars(axes: "Axes", found: Sequence[Bar]) -> None:
    places = range(len(found))
    axes.barh(places, [bar.length for bar in found], 0.62, color=[_COLORS[0] if bar.ours else GRID for bar in found])
    for place, bar in zip(places, found, strict=True):
        text = f"{bar.length:.1f}" if bar.length < 100 else f"{bar.length:,.0f}"
        axes.annotate(text, (bar.length, place), (4, 0), textcoords="offset points", va="center",
                      fontsize=8.5, color=INK)  # fmt: skip
    axes.set_yticks(places, [bar.label for bar in found], color=INK, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max((bar.length for bar in found), default=1.0))
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color("#BFBFBF")


class Curve(NamedTuple):
    """A panel of lines over a logarithmic x: points (x, y) of each name."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def curves(rows: Sequence[Sequence[Curve]], path: Path, title: str, subtitle: str) -> None:
    """Write a PNG of panels in rows; every y begins at 0."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = max(len(row) for row in rows)
    width, left = max(7.5, 2.6 * wide), 0.55
    heading = Heading(title, subtitle, width, left)
    height = 1.0 + heading.more + 2.3 * len(rows)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), wide, squeeze=False)
        figure.subplots_adjust(left=left / width, right=1 - 0.2 / width, top=1 - (1.0 + heading.more) / height,
                               bottom=0.35 / height, hspace=0.5, wspace=0.3)  # fmt: skip
        heading.draw(figure)
        for row, line in zip(rows, grid, strict=True):
            for panel, axes in zip(row, line, strict=False):
                _draw_curve(axes, panel)
            for axes in line[len(row) :]:
                axes.set_visible(False)
        canvas.print_png(str(path), metadata={"Software": None})


def _draw_curve(axes: "Axes", panel: Curve) -> None:
    tidy(axes, panel.title)
    places = sorted({x for points in panel.lines.values() for x, _ in points})
    for color, (name, points) in zip(_COLORS[:1] + _COLORS[2:], panel.lines.items(), strict=False):
        axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=3.5, linewidth=1.4, label=name)
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{x:,.0f}" if x < 10_000 else f"{x / 1000:,.0f}k" for x in places])
    axes.minorticks_off()
    axes.set_ylim(0, 1.1 * max((y for points in panel.lines.values() for _, y in points), default=1.0))
    if len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=7.5, borderpad=0.1)


class Dots(NamedTuple):
    """A row of measurements of one thing; `ours` is what the others are compared with."""

    label: str
    values: Sequence[float]
    ours: bool = False


def dots(rows: Sequence[Dots], path: Path, title: str, subtitle: str) -> None:
    """Write a PNG of rows: each value a point, their mean with a bar of one standard deviation to either side."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 7.5
    heading = Heading(title, subtitle, width, 0.15)
    height = 1.15 + heading.more + 0.26 * len(rows)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), dpi=200, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots()
        figure.subplots_adjust(
            left=0.27, right=0.97, top=1 - (0.72 + heading.more) / height, bottom=0.35 / height
        )  # fmt: skip
        heading.draw(figure)
        for place, row in enumerate(rows):
            mean, color = statistics.fmean(row.values), _COLORS[0] if row.ours else FAINT
            spread = statistics.stdev(row.values) if len(row.values) > 1 else 0.0
            axes.plot(row.values, [place] * len(row.values), ".", color=color, alpha=0.45, markersize=4)
            axes.errorbar(mean, place, xerr=spread, fmt="o", color=color, markersize=5, elinewidth=1.4, capsize=2.5)
            if row.ours:
                axes.axvline(mean, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK, fontsize=8.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(colors=FAINT, labelsize=8, length=0)
        axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color("#BFBFBF")
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        canvas.print_png(str(path), metadata={"Software": None})
