"""What a run shows while it goes: a tqdm bar on a terminal, else plain lines now and then."""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from .meters import clock_text, seconds_left

PLAIN_INTERVAL = 2.0
"""Seconds between two progress lines where there is no terminal; evaluations and the last step are always shown."""


class Progress:
    """A tqdm bar on a terminal, else plain lines now and then."""

    def __init__(self, name: str, start: int, total: int) -> None:
        self._start, self._total, self._printed = start, total, float("-inf")
        self._since = start, time.monotonic()
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = tqdm(
                total=total, initial=start, desc=name, unit="step", mininterval=0.5, dynamic_ncols=True, smoothing=0.1,
                file=sys.stderr,
            )  # fmt: skip

    def move(self, step: int) -> None:
        """Move the bar to `step`; it is drawn at most twice a second. The pace is taken from the first one on, as that
        loads kernels, or compiles for a minute."""
        if self._since[0] == self._start:
            self._since = step, time.monotonic()
            if self._bar is not None:
                self._bar.initial = self._bar.n = self._bar.last_print_n = step
                self._bar.start_t = self._bar.last_print_t = time.time()  # its clock
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def show(self, row: Mapping[str, Any]) -> None:
        """Report a row: its training values on the bar or a plain line, its evaluation on a line of its own."""
        names = {"train/loss": "loss", "train/ppl": "ppl", "train/tokens_per_s": "tok/s"}
        shown = {label: row[key] for key, label in names.items() if row.get(key) is not None}
        step, values = row["step"], "  ".join(f"{k} {number_text(v)}" for k, v in shown.items())
        if self._bar is not None:
            if shown:
                self._bar.set_postfix({k: number_text(v) for k, v in shown.items()}, refresh=False)
            self.move(step)
        elif shown and (time.monotonic() - self._printed >= PLAIN_INTERVAL or step >= self._total):
            self._printed = time.monotonic()
            first, began = self._since
            left = seconds_left(first, step, self._total, self._printed - began)
            self.message(f"step {step}/{self._total}  {values}  {clock_text(left)} left")
        scores = [(k, row.get(f"val/{k}")) for k in ("nll", "ppl", "bpb", "accuracy")]
        if held_out := "  ".join(f"{k} {v:.4g}" for k, v in scores if v is not None):
            self.message(f"step {step}  held out:  {held_out}")

    def message(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def number_text(value: float) -> str:
    """A short number for people: 3.142, 812, 6.5k, 1.2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.4g}"
