"""The picture of a run that was killed again and again. The same numbers give the same bytes (one matplotlib)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.style import FAINT, INK, STYLE

from .picture import tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLEAN, KILLED, MARK = "#A9CCE3", "#0B3C5D", "#D55E00"


def draw_kills(figures: Mapping[str, Any], path: Path, subtitle: str) -> None:
    """Write a PNG: the losses of the killed run over those of the clean one, and how far it was over time.

    `figures` are those of the scenario of kills: `clean` and `killed` [(step, loss)], `progress` [[(second, step)]] of
    each start, `kills` [(last step, step of the checkpoint then)].
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(7.5, 5.6), dpi=200, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, height_ratios=(1.25, 1))
        figure.subplots_adjust(left=0.085, right=0.98, top=0.845, bottom=0.085, hspace=0.42)
        kills = len(figures["kills"])
        figure.text(0.02, 0.948, f"A run killed {kills} times", fontsize=12, fontweight="bold", color=INK)
        figure.text(0.02, 0.912, subtitle, fontsize=8.5, color=FAINT)
        _losses(above, figures)
        _progress(below, figures["progress"])
        canvas.print_png(str(path), metadata={"Software": None})


def _losses(axes: "Axes", figures: Mapping[str, Any]) -> None:
    steps = [step for step, _ in figures["clean"]]
    axes.plot(steps, [loss for _, loss in figures["clean"]], color=CLEAN, linewidth=5, solid_capstyle="round",
              label="never killed")  # fmt: skip
    axes.plot([step for step, _ in figures["killed"]], [loss for _, loss in figures["killed"]], color=KILLED,
              linewidth=1, label=f"killed {len(figures['kills'])} times")  # fmt: skip
    losses = dict(figures["killed"])
    hit = [at for at, _ in figures["kills"] if at in losses]
    axes.plot(hit, [losses[at] for at in hit], "x", color=MARK, markersize=5, markeredgewidth=1.3, label="kill -9")
    _tidy(axes, "loss at each step, in nats", "step")
    axes.set_xlim(0, steps[-1] + 1)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _progress(axes: "Axes", starts: Sequence[Sequence[tuple[float, int]]]) -> None:
    for i, start in enumerate(starts):
        seconds, steps = [second for second, _ in start], [step for _, step in start]
        axes.plot(seconds, steps, color=KILLED, linewidth=1.3, drawstyle="steps-post")
        if i + 1 < len(starts):
            again = starts[i + 1][0]
            axes.plot([seconds[-1], again[0]], [steps[-1], again[1]], color=MARK, linewidth=1)
            axes.plot(seconds[-1], steps[-1], "x", color=MARK, markersize=5, markeredgewidth=1.3)
    _tidy(axes, "the step that the killed run is at: flat while Python and torch start", "second")
    axes.set_xlim(0, starts[-1][-1][0])
    axes.set_ylim(bottom=0)


def _tidy(axes: "Axes", title: str, unit: str) -> None:
    tidy(axes, title)
    axes.set_xlabel(unit, loc="right", fontsize=8, color=FAINT, labelpad=2)
