"""Where a run's numbers go: `metrics.jsonl`, the terminal, and on request wandb and tensorboard.

`metrics.jsonl` is the source of truth: a row that cannot be written there is an error. The other sinks are copies, and
nothing that goes wrong with one touches training: one warning, and the run goes on without it. wandb runs in a
process of its own, so that a slow, hanging or dying one never holds up a step or the end of a run.
"""

import contextlib
import itertools
import json
import netrc
import os
import queue
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import durable

from .config import TrackConfig
from .progress import Progress
from .rows import METRICS, SAMPLES, Mark, Rows, finite, read_metrics

__all__ = ["Tracker", "read_metrics"]

HANDED_OVER = "handed_over.json"
"""The `Mark` of a sink, in its own folder: after any start, with the sink on or off, it gets the rows that it lacks."""

WANDB_PATIENCE = {"offline": 15.0, "online": 60.0}
"""Seconds that `close` waits for wandb to finish."""


class Tracker:
    """The sinks of one run. On ranks above 0 (`enabled=False`) every method does nothing.

    `start_step` is the step of the checkpoint that the run goes on from, 0 without one: later rows are dropped.
    `config_tree` is the resolved configuration; `wandb_id` the one that the checkpoint holds. Raises OSError when
    the run directory cannot be written.

    wandb cannot take a row back: of steps that it got before a crash it keeps what it got first.
    """

    def __init__(
        self,
        run_dir: str | Path,
        config: TrackConfig,
        *,
        config_tree: Mapping[str, Any],
        name: str,
        total_steps: int,
        start_step: int = 0,
        wandb_id: str | None = None,
        enabled: bool = True,
    ) -> None:
        self.wandb_id = wandb_id
        self._enabled = enabled
        if not enabled:
            return
        run_dir = Path(run_dir)
        self._metrics = Rows(run_dir / METRICS, start_step)
        self._samples = Rows(run_dir / SAMPLES, start_step)
        self._progress = Progress(name, start_step, total_steps)
        rows, self._metrics.rows, self._samples.rows = self._metrics.rows, [], []
        self._board = _TensorBoard(run_dir, start_step, rows, self.message) if config.tensorboard else None
        self._wandb = None
        if config.wandb != "off":
            self.wandb_id = wandb_id or secrets.token_hex(4)
            options = {
                "project": config.project, "entity": config.entity, "group": config.group, "tags": list(config.tags),
                "name": name, "id": self.wandb_id, "resume": "allow", "config": finite(config_tree),
                "dir": str(run_dir),
            }  # fmt: skip
            self._wandb = _Wandb(config.wandb, options, rows, self.message)

    def log(self, step: int, tokens: int, metrics: Mapping[str, float]) -> None:
        """Write the one row of `step`; nan and infinities become null. Raises ValueError unless steps increase."""
        if not self._enabled:
            return
        last = self._metrics.last
        if last is not None and step <= last:
            raise ValueError(f"step {step} was already logged: the last row is of step {last}")
        row = finite({"step": step, "tokens": tokens, **metrics})
        self._metrics.append(row)
        if self._board:
            self._board.log(row)
        if self._wandb:
            self._wandb.put(row)
        self._progress.show(row)

    def samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append generated texts of `step`, one mapping each with the same keys, such as prompt and text."""
        if not self._enabled or not samples:
            return
        rows = [finite({"step": step, **sample}) for sample in samples]
        for row in rows:
            self._samples.append(row)
        if self._wandb:
            columns = list(rows[0])
            data = [[row.get(column) for column in columns] for row in rows]
            self._wandb.put({"step": step, "samples": {"columns": columns, "data": data}})

    def progress(self, step: int) -> None:
        """Move the bar to `step`; about a microsecond, unless the bar is due to be drawn."""
        if self._enabled:
            self._progress.move(step)

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        if self._enabled:
            self._progress.message(text)

    def sync(self) -> None:
        """Make all rows durable: to be called before the checkpoint that follows them is committed."""
        if self._enabled:
            self._metrics.sync()
            self._samples.sync()
            if self._board:
                self._board.flush()

    def close(self, exit_code: int) -> None:
        """Finish every sink; wandb gets `exit_code` and a bounded time. Calling it again is harmless."""
        if not self._enabled:
            return
        self._metrics.close()
        self._samples.close()
        self._progress.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.close(exit_code)
            self._wandb = None


class _TensorBoard:
    """Event files in `<run>/tensorboard`; what an earlier process wrote after `start_step` is marked as void.

    `rows` are all up to `start_step`; those that an earlier process did not write are handed over.
    """

    def __init__(
        self, run_dir: Path, start_step: int, rows: Iterable[Mapping[str, Any]], warn: Callable[[str], None]
    ) -> None:
        self._warn, self._writer = warn, None
        with self._guarded():
            from torch.utils.tensorboard import SummaryWriter

            folder = run_dir / "tensorboard"
            self._mark = Mark(folder / HANDED_OVER, "tensorboard")
            self._last = min(self._mark.step, start_step)
            self._writer = SummaryWriter(str(folder), purge_step=self._last + 1)
            self._mark.move(self._last)
            for row in [row for row in rows if row["step"] > self._last]:
                self.log(row)

    def log(self, row: Mapping[str, Any]) -> None:
        with self._guarded():
            for key, value in row.items():
                if self._writer is not None and key != "step" and value is not None:
                    self._writer.add_scalar(key, value, global_step=row["step"])
            self._last = row["step"]

    def flush(self) -> None:
        """Leave nothing in a buffer, so that after a kill the next start has nothing to hand over again."""
        with self._guarded():
            if self._writer is not None:
                self._writer.flush()
                self._mark.move(self._last)

    def close(self) -> None:
        self.flush()
        with self._guarded():
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _guarded(self) -> Any:
        try:
            yield
        except Exception as error:
            self._writer = None
            self._warn(f"tensorboard: {reason(error)}; going on without it")


class _Wandb:
    """One wandb run in a process of its own, fed through a pipe; see `_serve` for its side.

    Whatever wandb does there (asks, hangs, patches the interpreter, dies) stays there. If training is killed, the pipe
    closes and the run is still finished, as failed. `backlog` are the rows so far, of which that process drops those
    that the wandb run has.
    """

    def __init__(
        self, mode: str, options: dict[str, Any], backlog: Iterable[dict[str, Any]], warn: Callable[[str], None]
    ) -> None:
        self._mode, self._warn, self._broken, self._hint = mode, warn, False, ""
        self._first = itertools.chain([{"mode": mode, "options": options}], backlog)
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), root) if p)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer.tracking"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
        )  # fmt: skip
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=10_000)
        self._threads = [threading.Thread(target=t, name="wandb", daemon=True) for t in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def put(self, message: dict[str, Any] | None) -> None:
        """Hand a message over without waiting; dropped once wandb has failed."""
        try:
            if not self._broken:
                self._queue.put_nowait(message)
        except queue.Full:
            self._give_up(f"no answer for {self._queue.maxsize} rows")

    def close(self, exit_code: int) -> None:
        """Finish the run, waiting for a bounded time."""
        self.put({"exit": exit_code})
        self.put(None)
        if not self._broken:
            deadline = time.monotonic() + WANDB_PATIENCE[self._mode]
            for thread in self._threads:
                thread.join(max(deadline - time.monotonic(), 0))
            if any(thread.is_alive() for thread in self._threads):
                self._give_up(f"not finished after {WANDB_PATIENCE[self._mode]:.0f} s")
        self._process.kill()  # harmless when it has ended
        self._process.wait()
        if self._hint:
            self._warn(self._hint)

    def _send(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError), pipe:  # a closed pipe is reported by _receive
            for message in itertools.chain(self._first, iter(self._queue.get, None)):
                pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()

    def _receive(self) -> None:
        assert self._process.stdout is not None
        done = False
        for line in self._process.stdout:
            answer = json.loads(line)
            done |= "done" in answer
            self._hint = answer.get("hint", self._hint)
            if "warning" in answer:
                self._warn(f"wandb: {answer['warning']}")
            if "error" in answer:
                self._give_up(answer["error"])
        if not done:
            self._give_up("its process ended")

    def _give_up(self, why: str) -> None:
        if not self._broken:
            self._broken = True
            self._warn(f"wandb: {why}; going on without it, every row is in {METRICS}")


def _serve() -> None:
    """The wandb process: JSON messages come in on stdin (mode and options, then rows), remarks leave on stdout."""
    remarks = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what wandb itself prints is not a remark

    def say(**remark: Any) -> None:
        with contextlib.suppress(OSError):  # training may be gone already
            remarks.write(json.dumps(remark) + "\n")

    try:
        import wandb

        messages = map(json.loads, sys.stdin.buffer)
        start = next(messages)
        mark = Path(start["options"]["dir"]) / "wandb" / HANDED_OVER
        with _alone(mark, WANDB_PATIENCE[start["mode"]] / 3):
            run = _open(wandb, say, **start)
            run.finish(exit_code=_forward(wandb, run, messages, Mark(mark, start["options"]["id"])))
        say(done=True)
    except BaseException as error:  # also SystemExit, and KeyboardInterrupt
        say(error=reason(error))


@contextlib.contextmanager
def _alone(mark: Path, seconds: float) -> Iterator[None]:
    """Wait until the wandb process of a start that was killed is done with what it still had, at most `seconds`."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        while time.monotonic() < deadline:
            with contextlib.suppress(durable.Locked):
                stack.enter_context(durable.file_lock(mark.with_suffix(".lock"), wait=False))
                break
            time.sleep(0.1)
        yield


def _forward(wandb: Any, run: Any, messages: Iterable[dict[str, Any]], mark: Mark) -> int:
    """Log what comes in, without what an earlier start handed over; returns the exit code of training."""
    had = mark.step
    for message in messages:
        if "exit" in message:
            return message["exit"]
        if message["step"] <= had:
            continue
        if "samples" in message:
            run.log({"step": message["step"], "samples": wandb.Table(**message["samples"])})
        else:
            run.log(message)
            mark.move(message["step"])
    return 1  # training went without a word


def _open(wandb: Any, say: Callable[..., None], mode: str, options: dict[str, Any]) -> Any:
    """Start the run; an online one that cannot be started is recorded offline instead."""
    if mode == "online":
        try:
            return _start(wandb, mode, options)
        except Exception as error:
            say(warning=f"{reason(error)}; recording offline instead")
            wandb.teardown()
    run = _start(wandb, "offline", options)
    say(hint=f"wandb: recorded offline; to send it: wandb sync {Path(run.dir).parent}")
    return run


def _start(wandb: Any, mode: str, options: dict[str, Any]) -> Any:
    wanted = {
        "console": "off", "quiet": True, "silent": True, "x_disable_stats": True, "x_disable_meta": True,
        "disable_git": True, "disable_code": True, "init_timeout": 20.0, "finish_timeout": WANDB_PATIENCE[mode] / 3,
    }  # fmt: skip
    known = getattr(wandb.Settings, "model_fields", wanted)  # settings come and go between versions
    settings = wandb.Settings(**{k: v for k, v in wanted.items() if k in known})
    session = wandb.setup(settings=settings).settings
    if mode == "online" and not _has_key(session):
        raise LookupError("no API key (`wandb login` stores one)")  # wandb itself would ask, on the terminal
    run = wandb.init(mode=mode, settings=settings, **options)
    run.define_metric("*", step_metric="step")
    return run


def _has_key(settings: Any) -> bool:
    if settings.api_key or settings.identity_token_file:
        return True
    host = urlsplit(settings.base_url).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def reason(error: BaseException) -> str:
    """One line on what went wrong, with anything that could be a key blanked out."""
    text = (str(error).strip().splitlines() or [""])[0]
    for secret in (os.environ.get("WANDB_API_KEY"), *re.findall(r"[\w-]{32,}", text)):
        text = text.replace(secret, "***") if secret else text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


if __name__ == "__main__":
    _serve()
