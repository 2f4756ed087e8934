"""Bars of long work, as a log shows them."""

import time

import pytest

from data import bars


@pytest.mark.parametrize("total", [4000, None])
def test_a_log_gets_lines_now_and_then(
    total: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One when the interval has passed, not one an update; and how it ended."""
    monkeypatch.setattr(bars, "PLAIN_INTERVAL", 0.2)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with bars.bar("encode", shown=True, total=total, done=1000) as bar:
        for count in (500, 500):
            bar.update(count)
        time.sleep(0.25)
        bar.update(1000)
        for _ in range(50):
            bar.update(20)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and "\r" not in err and len(lines) == 2
    starts = ("encode: 75% of 4.00k, 00:0", "encode: 100% of 4.00k, 00:00 left, ") if total else (
        "encode: 3.00k, ", "encode: 4.00k, ",
    )  # fmt: skip
    assert all(line.startswith(start) and line.endswith("B/s") for line, start in zip(lines, starts, strict=True))


def test_an_estimated_total_grows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bars, "PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with bars.bar("sample", shown=True, total=1000) as bar:
        bars.advance(bar, 900)
        bars.advance(bar, 600)
    assert capsys.readouterr().err.splitlines()[-1].startswith("sample: 100% of 1.50k, ")


def test_a_clock_ticks_in_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with bars.clock("learn merges", shown=True) as line:
        assert capsys.readouterr().err == ""
        line.refresh()
        assert capsys.readouterr().err == "learn merges: 00:00\n"
