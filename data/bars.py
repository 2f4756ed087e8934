"""The progress of long work: a bar on a terminal, elsewhere, as in a log, a plain line now and then."""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines, and before the first: what is shorter says nothing."""


class Lines:
    """Where tqdm writes when nobody can see a line change: each state on a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Lines are written whole."""


def on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def bar(what: str, *, shown: bool, total: int | None = None, done: int = 0) -> "tqdm[Any]":
    """The progress of `what` in bytes: `total` of them, None when that is not known, of which some are `done`."""
    from tqdm import tqdm

    share = "{percentage:.0f}% of {total_fmt}, {remaining} left" if total else "{n_fmt}"
    plain: dict[str, Any] = {} if on_terminal() else {
        "file": Lines(), "mininterval": PLAIN_INTERVAL, "delay": PLAIN_INTERVAL,
        "bar_format": f"{{desc}}: {share}, {{rate_fmt}}",
    }  # fmt: skip
    return tqdm(total=total, initial=done, desc=what, unit="B", unit_scale=True, disable=not shown, **plain)


def advance(shown: "tqdm[Any]", nbytes: int) -> None:
    """So much more is done. An estimated total grows with it, as tqdm drops one that is passed."""
    if shown.total is not None:
        shown.total = max(shown.total, shown.n + nbytes)
    shown.update(nbytes)


def clock(what: str, *, shown: bool) -> "tqdm[Any]":
    """The time since it began, of work that tells nothing of its progress, drawn anew at each `refresh`."""
    from tqdm import tqdm

    plain: dict[str, Any] = {} if on_terminal() else {"file": Lines(), "delay": PLAIN_INTERVAL}
    return tqdm(bar_format="{desc}: {elapsed}", desc=what, disable=not shown, **plain)
