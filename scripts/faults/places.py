"""What else happens to a run's directory: a second process on it (F19)."""

import signal
import time

from .damage import contents
from .runs import SHORT, Runs, check, check_code
from .scenario import Outcome


def locked(runs: Runs, outcome: Outcome, count: int) -> None:
    """F19: `count` times a second process on the run of a live one, then a start after its holder was killed."""
    first = runs.start(*runs.arguments("held", *SHORT))
    try:
        while not (runs.runs / "held" / "status.json").exists() and first.poll() is None:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it holds the run as long as it takes
        for number in range(count):
            before = contents(runs.runs / "held")
            with outcome.injection(f"second process {number + 1}"):
                ended = runs.finish("held", *SHORT)
                check_code(ended, 2)
                check(f"in use by process {first.pid}" in ended.told, f"it did not say by whom: {ended.told}")
                check(contents(runs.runs / "held") == before, "it changed the run")
        first.send_signal(signal.SIGCONT)
        told = first.communicate()[1]
        with outcome.injection("the first process, unharmed"):
            check(first.returncode == 0, f"the first process ended with {first.returncode}: {told[-1000:]}")
            runs.check_same(runs.clean(*SHORT), "held")
    finally:
        first.kill()
    outcome.detection = f"{outcome.survived}/{outcome.injected}"
