"""SIGTERM and SIGINT ask a run to save and stop; asked again, it ends at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_KILLED = 130
_SAME_REQUEST = 1.0
"""Seconds in which a second signal is the first one again: a launcher and its process group both pass it on."""


class Stopped(BaseException):
    """A signal came where there was nothing to save."""


class StopRequest:
    """Truthy once a signal has come. Handles signals for the length of a `with` block.

    Inside `polling()` a signal is only noted, and whoever polls has to act; elsewhere it raises `Stopped` from the
    main thread. A later second signal calls `last_words` and ends the process with code 130.
    """

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, last_words: Callable[[], None] = lambda: None) -> None:
        self.last_words = last_words
        self.asked_at: float | None = None
        self.polled = False

    def __bool__(self) -> bool:
        return self.asked_at is not None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked_at is None:
            self.asked_at = now
            if not self.polled:
                raise Stopped(f"stopped by {signal.Signals(number).name}")
        elif now - self.asked_at > _SAME_REQUEST:
            try:
                self.last_words()
            finally:
                os._exit(EXIT_KILLED)

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Signals wait to be asked for."""
        self.polled = True
        try:
            yield
        finally:
            self.polled = False

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self._ask) for number in self.signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
