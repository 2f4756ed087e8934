"""How a run ends: SIGTERM and SIGINT ask it to save and stop, asked again it ends at once; and a process's last act."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_KILLED = 130
_SAME_REQUEST = 1.0
"""Seconds in which a second signal is the first one again: a launcher and its process group both pass it on."""


def end_process(code: int) -> NoReturn:
    """Leave with an exit code; one of several ranks does so without taking the interpreter apart.

    A thread of gloo's may still hold the result of the last collective, and if it lets go of it while the interpreter
    is torn down, the process aborts: a finished run would look like a crash.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


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
