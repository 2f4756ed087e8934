"""Train, and start again what was preempted or crashed: `python -m scripts.launch CONFIG [--nproc N] [key=value ...]`.

One process is `train.py` itself, several are its ranks under torchrun. What ended for good is not started again: done
(0), bad input (2), damaged (3), diverged (4). Stop signals are passed on and end the launcher with the run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import durable
from configs import entry, load, parse
from trainer.rundir import EXIT_CODES
from trainer.signals import PARENT, StopRequest

TRAIN: tuple[str, ...] = (str(Path(__file__).resolve().parent.parent / "train.py"),)
FLAGS = {
    "nproc=N": "processes on this node (default 1)",
    "nnodes=N": "nodes, on each of which this command is given (default 1); more than one need --rdzv",
    "rdzv=HOST:PORT": "where the nodes meet: one of them, and a port that is free there",
    "address=ADDR": "this node's own address, where its host name does not lead to it",
    "max-restarts=K": "restarts without progress after which to give up (default 3)",
    "backoff=S": "seconds before a new start, doubled while there is no progress (default 5)",
    "grace=S": "seconds that ranks have to save after a stop signal before they are killed (default 110)",
}
FINAL = tuple(EXIT_CODES[state] for state in ("done", "bad_input", "damaged", "diverged"))
LONGEST_PAUSE = 300.0
"""Seconds."""
LAST_WORDS = 2.0
"""Seconds that rank 0 may take to write how the run ended, when ranks on other nodes have left."""
LONGEST_WAIT = 600
"""Seconds that nodes wait for each other before they are started."""


@entry
def main(argv: Sequence[str]) -> int:
    args = parse(argv, prog="python -m scripts.launch", description=(__doc__ or "").splitlines()[0], flags=FLAGS)
    config = load(args.config, args.overrides)
    nproc, nnodes = number("nproc", args.nproc, 1), number("nnodes", args.nnodes, 1)
    if (nnodes > 1) != (args.rdzv is not None):
        raise ValueError("--nnodes above 1 and --rdzv go together: all nodes have to meet somewhere")
    train = [*TRAIN, args.config, *args.overrides]
    several = nproc * nnodes > 1
    if several:
        grace, name = number("grace", args.grace, 110), config.run.name
        train = [*torchrun(nproc, nnodes, args.rdzv, args.address, name, grace), *train]
    run = Path(config.run.dir) / config.run.name
    supervisor = Supervisor([sys.executable, *train], run, hides_codes=several)
    return supervisor.run(number("max-restarts", args.max_restarts, 3, 0), number("backoff", args.backoff, 5, 0))


def number(flag: str, given: str | None, default: int, least: int = 1) -> int:
    if given is None:
        return default
    if not given.isdecimal() or int(given) < least:
        raise ValueError(f"--{flag} is a whole number from {least}, not {given}")
    return int(given)


def torchrun(nproc: int, nnodes: int, rdzv: str | None, address: str | None, name: str, grace: int) -> list[str]:
    """torchrun, up to the script. It looks at its ranks ten times a second, and never starts them anew."""
    meeting = ["--standalone"] if rdzv is None else ["--rdzv-backend=nodes", f"--rdzv-endpoint={rdzv}"]
    if rdzv is not None:
        meeting += [f"--rdzv-id={name}", *([f"--local-addr={address}"] if address else [])]
        # torchrun looks for the place among the addresses of this host's name alone, and waits a minute for it
        here = ["is_host=1"] if address == rdzv.rpartition(":")[0] else []
        meeting.append(f"--rdzv-conf={','.join([f'read_timeout={LONGEST_WAIT}', *here])}")
    return [
        "-m", "trainer.agent", f"--nnodes={nnodes}", f"--nproc-per-node={nproc}", *meeting,
        "--max-restarts=0", "--monitor-interval=0.1", f"--shutdown-timeout={grace}",
        f"--signals-to-handle={','.join(number.name for number in StopRequest.signals)}",
    ]  # fmt: skip


@dataclass
class Ended:
    """How one start of a run ended."""

    code: int
    """The run's own exit code; 128 + n where signal n killed it."""
    began: bool
    """Whether it got so far as to write its status."""
    progress: bool
    """Whether it left a newer checkpoint than it found."""


class Supervisor:
    """Starts a command again until it ends for good, a signal ends it, or it keeps failing without progress.

    hides_codes  the command, torchrun, does not know its ranks' codes once it was told to stop: status.json does
    """

    def __init__(self, command: Sequence[str], run: Path, *, hides_codes: bool) -> None:
        self.command, self.path, self.hides_codes = command, run, hides_codes
        self.child: subprocess.Popen[bytes] | None = None
        self.asked: signal.Signals | None = None

    def run(self, max_restarts: int, backoff: float) -> int:
        """Returns the exit code of the last start."""
        passed_on = {number: signal.signal(number, self._pass_on) for number in (*StopRequest.signals, signal.SIGHUP)}
        try:
            return self._supervise(max_restarts, backoff)
        finally:
            for number, handler in passed_on.items():
                signal.signal(number, handler)

    def _supervise(self, max_restarts: int, backoff: float) -> int:
        in_vain = 0
        while True:
            ended = self._start()
            in_vain = 0 if ended.progress else in_vain + 1
            if ended.code in FINAL:
                return ended.code
            if self.asked:  # if it came before there was anything to save, then nothing is lost
                return ended.code if ended.began else EXIT_CODES["stopped"]
            told = f"ended with code {ended.code} at step {durable.last_step(self.path)}"
            if in_vain > max_restarts:
                self._say(f"{told}; {in_vain} starts have brought no new checkpoint: giving up")
                return ended.code
            pause = min(LONGEST_PAUSE, backoff * 2.0 ** max(0, in_vain - 1))
            self._say(f"{told}; starting again in {pause:g} s")
            self._rest(pause)
            if self.asked:
                return EXIT_CODES["stopped"]

    def _start(self) -> Ended:
        """Run the command to its end, in a session of its own: what a terminal sends comes through this process."""
        step, status = durable.last_step(self.path), self._status()
        environment = {**os.environ, PARENT: str(os.getpid())}
        with subprocess.Popen(self.command, start_new_session=True, env=environment) as self.child:
            if self.asked:  # since the last look, and before there was somebody to tell
                self.child.send_signal(self.asked)
            code = self.child.wait()
        written = self._last_status() if self.asked and self.hides_codes else self._status()
        if self.hides_codes and written != status:
            said = written.get("exit")
            if self.asked or said in FINAL:  # rank 0 may be on another node, and the ranks here have only lost it
                code = EXIT_CODES["failed"] if said is None else said
        return Ended(128 - code if code < 0 else code, written != status, durable.last_step(self.path) > step)

    def _last_status(self) -> dict:
        """What the run says of itself, once it has said how it ended or could have: rank 0 may be on another node."""
        until = time.monotonic() + LAST_WORDS
        while (status := self._status()).get("exit", 0) is None and time.monotonic() < until:
            time.sleep(0.05)
        return status

    def _rest(self, seconds: float) -> None:
        """Sleep until then, or until a signal comes."""
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Ask the run to stop; a terminal that is gone (SIGHUP) is no other reason than SIGTERM."""
        self.asked = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        if self.child is not None:
            self.child.send_signal(self.asked)

    def _status(self) -> dict:
        """What the run says of itself; empty when it says nothing."""
        try:
            said = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def _say(self, text: str) -> None:
        print(f"launch: {self.path} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
