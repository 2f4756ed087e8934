"""How a run ends: SIGTERM, SIGINT and SIGUSR1 ask it to save and stop, asked again it ends at once; its last act."""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_KILLED = 130
PARENT = "THIMBLE_PARENT"
"""Variable with the process id of what launched a process that must not outlive it."""
_SAME_REQUEST = 1.0
"""Seconds in which a second signal is the first one again: a launcher and its process group both pass it on."""


def end_process(code: int) -> NoReturn:
    """Leave with an exit code; one of several ranks does so without taking the interpreter apart.

    A thread of gloo's may still hold the result of the last collective, and if it lets go of it while the interpreter
    is torn down, the process aborts: a finished run would look like a crash. And a rank that has lost another should
    not take seconds to leave, since its launcher waits for that.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def end_with_parent() -> None:
    """From now on this process is killed when what launched it is gone: `PARENT` says who, and torchrun does it too.

    A rank without a launcher would go on alone, hold the lock of its run, and nobody could stop it. Linux only; a
    process that somebody started in a shell is left alone.
    """
    parent = os.environ.get(PARENT)
    if sys.platform != "linux" or (parent is None and "TORCHELASTIC_RUN_ID" not in os.environ):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if parent is not None and os.getppid() != int(parent):  # gone before the call
        os.kill(os.getpid(), signal.SIGKILL)


def run_process(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Call `main` with the arguments of this process, and end it with the code that this returns."""
    end_with_parent()
    try:
        code = main(sys.argv[1:])
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    end_process(code)


class Stopped(BaseException):
    """A signal came where there was nothing to save."""


class StopRequest:
    """Truthy once a signal has come. Handles signals for the length of a `with` block.

    Inside `polling()` a signal is only noted, and whoever polls has to act; elsewhere it raises `Stopped` from the
    main thread. A later second signal calls `last_words` and ends the process with code 130, from a thread: the main
    one may be waiting for other ranks, where Python's handlers get no turn.
    """

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    """The last is what a batch system sends ahead of a time limit, since it sends SIGTERM itself when time is up."""

    def __init__(self, last_words: Callable[[], None] = lambda: None) -> None:
        self.last_words = last_words
        self.asked = False
        self.polled = False

    def __bool__(self) -> bool:
        return self.asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            if not self.polled:
                raise Stopped(f"stopped by {signal.Signals(number).name}")

    def _wait_for_second(self) -> None:
        """Read the numbers of signals, which the interpreter writes as they come, until there is an end to them."""
        first: float | None = None
        while numbers := self.numbers.recv(64):
            if not set(numbers) & set(self.signals):
                continue
            now = time.monotonic()
            if first is None and self.polled and os.environ.get("RANK", "0") == "0":
                print("\nstopping: this step ends, then the run is saved; again ends it at once", file=sys.stderr)
            first = first or now
            if now - first > _SAME_REQUEST:
                try:
                    self.last_words()
                finally:
                    os._exit(EXIT_KILLED)

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Signals wait to be asked for; also after an error, which is not to be taken for an answer to them.

        A launcher that sees one rank fail asks the others to stop while they still say what they make of it.

        The main thread leaves them to the one that waits for a second: what is started from here inherits that, and a
        terminal's Ctrl-C, which goes to all of a process group, would end a C++ compiler and with it the run.
        """
        self.polled = True
        signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        yield
        signal.pthread_sigmask(signal.SIG_SETMASK, self.taken)
        self.polled = False

    def __enter__(self) -> "StopRequest":
        self.numbers, self.written = socket.socketpair()
        self.written.setblocking(False)
        self.fd_before = signal.set_wakeup_fd(self.written.fileno(), warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._wait_for_second, name="second signal", daemon=True)
        self.thread.start()
        self.taken = signal.pthread_sigmask(signal.SIG_BLOCK, ())  # as it is
        self.before = {number: signal.signal(number, self._ask) for number in self.signals}
        return self

    def __exit__(self, *error: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.taken)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.fd_before)
        self.written.close()
        self.thread.join()
        self.numbers.close()
