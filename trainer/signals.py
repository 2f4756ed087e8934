"""SIGTERM and SIGINT ask a run to save and stop; a second one ends it at once."""

import os
import signal
from types import FrameType

EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command goes on
EXIT_KILLED = 130


class StopRequest:
    """Truthy once a signal has come. Installed for the length of a `with` block."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(EXIT_KILLED)
        self.asked = True

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self._ask) for number in self.signals}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
