"""What a scenario tells: how often a fault was injected, and what became of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from .runs import Runs


@dataclass
class Outcome:
    """What one fault did. A fault was survived when everything that was promised of it held."""

    injected: int = 0
    survived: int = 0
    lost: int | None = None
    """The most steps that one injection cost; None where no step can be lost."""
    seconds: float = 0.0
    detection: str = "-"
    """How often or how soon the fault was noticed, in words."""
    failures: list[str] = field(default_factory=list)
    """What did not hold, a line each."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What else was measured, as JSON."""

    @contextmanager
    def injection(self, what: str, count: int = 1) -> Iterator[None]:
        """Count what is injected inside; it is survived unless an exception says otherwise."""
        self.injected += count
        try:
            yield
        except Exception as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")
        else:
            self.survived += count

    def fail(self, why: str) -> None:
        """What was injected cannot be called survived after all."""
        self.failures.append(why)
        self.survived = 0

    def costs(self, steps: int) -> None:
        """An injection has cost so many steps of work."""
        self.lost = max(self.lost or 0, steps)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scenario:
    """A fault, and the function that injects it: `inject(runs, outcome, count)`."""

    fault: str
    """Its number."""
    name: str
    how: str
    """How it is injected, for readers."""
    promise: str
    """What must hold afterwards."""
    inject: Callable[[Runs, Outcome, int], None]
    count: int
    """How often in the report."""
    quick: int
    """How often for a first look, and in the tests."""

    def run(self, runs: Runs, count: int) -> Outcome:
        """Inject the fault `count` times; one that could not even be injected was not survived either."""
        outcome, began = Outcome(), time.monotonic()
        try:
            self.inject(runs, outcome, count)
        except Exception as error:
            outcome.injected += 1
            outcome.fail(f"{type(error).__name__}: {error}")
        outcome.seconds = time.monotonic() - began
        return outcome
