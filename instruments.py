"""What watches and records a run while it trains, in one place for the loop."""

from dataclasses import dataclass

from assemble import Parts
from course import State
from trainer.checkpoint import Saver
from trainer.distributed import Ranks
from trainer.guard import FP16_LIMIT, LIMIT, Guard
from trainer.keeper import Keeper
from trainer.meters import Throughput
from trainer.signals import StopRequest
from trainer.tracking import Tracker
from trainer.watchdog import Watchdog
from trainer.window import Window


@dataclass
class Instruments:
    """What watches and records a run while it trains."""

    guard: Guard
    window: Window
    meter: Throughput
    tracker: Tracker
    keeper: Keeper
    watchdog: Watchdog
    stop: StopRequest
    ranks: Ranks
    timeout: float
    """Seconds without a step after which a run of several processes hangs; its first step may take longer."""
    settled: bool = False

    @classmethod
    def of(
        cls, parts: Parts, state: State, tracker: Tracker, saver: Saver, watchdog: Watchdog,
        stop: StopRequest,
    ) -> "Instruments":  # fmt: skip
        """Those of a run that is in `state`."""
        learner, config = parts.learner, parts.config
        guard = Guard(
            learner.device, sigma=config.train.spike_sigma,
            limit=FP16_LIMIT if learner.precision.name == "fp16" else LIMIT, **state.guard,
        )  # fmt: skip
        sums = state.sums if learner.ranks.rank == 0 else dict.fromkeys(state.sums, 0.0)
        meter = Throughput(
            learner.flops_per_token, learner.peak_flops, world_size=learner.ranks.world_size, device=learner.device,
            elapsed=state.seconds,
        )  # fmt: skip
        window = Window(learner.device, sums)
        keeper = Keeper(saver, sharded=parts.sharded)
        return cls(guard, window, meter, tracker, keeper, watchdog, stop, learner.ranks, config.train.timeout)

    def beat(self) -> None:
        """A step is done."""
        if not self.settled:  # the first one took its time
            self.ranks.settle(1.5 * self.timeout)  # after the watchdog, which shows where each rank hangs
            self.settled = True
        self.watchdog.beat()
        self.keeper.saver.check()

    def asked(self) -> bool:
        """Whether any rank was asked to stop; the same on all of them, which wait for each other here."""
        self.watchdog.beat()
        return self.ranks.any(bool(self.stop))
