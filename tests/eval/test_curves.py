"""The picture: any run has one, the same rows give the same bytes, and what it draws is what was logged."""

import math
import random
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import curves
from eval.curves import count_text, draw


def run(count: int, evaluations: int = 5, smoothing: float = 0.4) -> list[dict[str, Any]]:
    pick, rows = random.Random(0), []
    for i in range(1, count + 1):
        nll = 2.3 + 6 * math.exp(-6 * i / count) + pick.gauss(0, 0.05)
        row = {
            "step": i,
            "tokens": 8192 * i,
            "train/loss": nll + smoothing,
            "train/nll": nll,
            "train/ppl": math.exp(nll),
        }
        row |= {"train/lr": 0.02 * (1 - i / count), "train/grad_norm": math.exp(pick.gauss(0, 0.3))}
        if evaluations and i % max(count // evaluations, 1) == 0:
            row |= {"val/nll": nll + 0.1, "val/ppl": math.exp(nll + 0.1), "val/bpb": (nll + 0.1) / 1.75}
        rows.append(row)
    return rows


def size(path: Path) -> tuple[int, ...]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


def broken() -> list[dict[str, Any]]:
    rows = run(30)
    rows[3]["train/nll"] = rows[5]["train/ppl"] = None
    rows[7]["train/grad_norm"], rows[8]["train/grad_norm"] = math.inf, 0.0
    rows[9]["train/loss"], rows[29]["val/ppl"] = math.nan, math.inf
    rows[4]["train/lr"] = "?"
    return rows


@pytest.mark.parametrize(
    "rows",
    [
        [], run(1), run(1, 0), run(2), run(30, 0), run(30), broken(), run(30, 30, 0.0), run(100_000, 2000),
        [{"step": 0, "tokens": 0, "val/nll": 8.3}], [{"step": 1, "tokens": 8, "train/loss": 0.0, "train/lr": 0.0}],
        [row | {"train/loss": 5.0, "train/nll": 5.0} for row in run(9)],
    ],
    ids=["none", "one", "one-no-val", "two", "no-val", "usual", "broken", "plain", "long", "step-0", "zeros", "flat"],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_every_run_has_a_picture(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    draw(rows, tmp_path / "c.png", "a run", {"gzip -9": 1.7, "xz -9": 1.4})
    assert size(tmp_path / "c.png") == (1800, 1240)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib

    rows = run(30)
    draw(rows, tmp_path / "a.png", "a run", {"gzip -9": 1.7})
    with matplotlib.rc_context({"font.size": 30, "figure.dpi": 40, "axes.facecolor": "black", "savefig.dpi": 30}):
        draw(rows[::-1], tmp_path / "b.png", "a run", {"gzip -9": 1.7})  # any order, any user style
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    rows[-1]["val/nll"] += 0.2
    draw(rows, tmp_path / "c.png", "a run", {"gzip -9": 1.7})
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize(
    "bits", [(1.7, 1.4), (1.45, 1.42), (1.42, 1.45), (1.4, 1.4), (1.45, 1.3), (1.0, 1.02), (9.0, 0.2)]
)
def test_references_are_named_without_overlap(bits: tuple[float, float], tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.2), dpi=200)
    axes = figure.subplots(2, 2)[0, 0]
    FigureCanvasAgg(figure).draw()
    axes.set_ylim(2.0, 8.3)
    curves._draw_references(axes, run(30), dict(zip(("gzip -9", "xz -9"), bits, strict=True)))
    figure.canvas.draw()
    texts = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(texts) == {"gzip -9", "xz -9"}
    one, two = texts.values()
    assert not one.overlaps(two)
    frame = axes.get_window_extent()
    assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in (one, two))
    [nll, bpb] = [run(30)[-1][key] for key in ("val/nll", "val/bpb")]
    assert sorted(line.get_ydata()[0] for line in axes.lines) == pytest.approx(sorted(b * nll / bpb for b in bits))


def test_buckets_keep_mean_and_range() -> None:
    x, y = np.arange(10_000.0), np.sin(np.arange(10_000.0))
    y[1234] = 50
    mean_x, mean_y, low, high = curves._buckets(x, y)
    assert len(mean_x) == curves.POINTS and np.all(np.diff(mean_x) > 0)
    assert mean_y.mean() == pytest.approx(y.mean(), rel=1e-9)  # equal buckets here
    assert high.max() == 50 and low.min() == y.min()
    assert np.all(low <= mean_y) and np.all(mean_y <= high)


def test_series_takes_what_can_be_drawn() -> None:
    rows = [{"tokens": i, "k": v} for i, v in enumerate([1.0, None, math.nan, 0.0, -1.0, math.inf, 2])] + [
        {"tokens": 9}
    ]
    assert [list(a) for a in curves._series(rows, "k")] == [[0, 3, 4, 6], [1, 0, -1, 2]]
    assert [list(a) for a in curves._series(rows, "k", positive=True)] == [[0, 6], [1, 2]]


def test_a_spike_does_not_flatten_the_curve() -> None:
    y = np.linspace(9, 3, 1000)
    y[500] = 1e5
    assert curves._limits([y], log=False)[1] < 15


def test_numbers_as_people_write_them() -> None:
    values = (0, 0.02, 0.0001, 1, 500, 999.9, 8192, 1.2e6, 2.5e6, 1e10, 3e12)
    assert [count_text(v) for v in values] == [
        "0", "0.02", "1.0e-4", "1", "500", "1k", "8.19k", "1.2M", "2.5M", "10B", "3T",
    ]  # fmt: skip
