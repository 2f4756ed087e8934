"""Tasks on a Ray cluster, for corpora past one machine (extra `cluster`). Every node needs the same checkout and the
same files, sources and corpus, at the same paths."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..sources import TASK_BYTES
from .engines import RECYCLE_BYTES

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
}
RETRIES = 3
"""How often a call is repeated whose worker or node died, or that met an error of the file system."""
_WINDOW = 4  # calls in flight for each core
_OBJECT_STORE = 80 << 20  # bytes, of a cluster that is started here: no data goes through it


def run(function: Callable[..., None], calls: Sequence[tuple[Any, ...]], address: str | None) -> Iterator[int]:
    """Run `function(*call)` for every call on the cluster at `address` (None: one that is started here and ends here).

    Yields the index of each call as it is done. Raises DataError when a call does, or there is no Ray.
    """
    ray = _ray()
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    try:
        remote = ray.remote(
            num_cpus=1, max_retries=RETRIES, retry_exceptions=[OSError], scheduling_strategy="SPREAD",
            max_calls=RECYCLE_BYTES // TASK_BYTES,
        )(function)  # fmt: skip
        waiting = iter(enumerate(calls))
        running: dict[Any, int] = {}
        limit = max(1, int(_WINDOW * ray.cluster_resources().get("CPU", 1)))
        while True:
            while len(running) < limit and (following := next(waiting, None)) is not None:
                running[remote.remote(*following[1])] = following[0]
            if not running:
                return
            (done,), _ = ray.wait(list(running), num_returns=1)
            _check(ray, done)
            yield running.pop(done)
    finally:
        if own:
            ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads these when it is imported
    try:
        import ray
    except ImportError:
        raise DataError("--engine ray needs the ray package: pip install -e '.[cluster]'") from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    about: dict[str, Any] = {"runtime_env": {"env_vars": _ENVIRONMENT}, "log_to_driver": False}
    if address is None:
        about |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    else:
        _knock(address)
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, **about)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"no Ray cluster at {address or 'this machine'}: {reason}") from None


def _knock(address: str) -> None:
    """Raise DataError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise DataError(f"no Ray cluster at {address}: {error}; --address is HOST:PORT of its head node") from None


def _check(ray: Any, done: Any) -> None:
    """Raise what a call raised, without the frames of Ray; a call whose every try died is RuntimeError."""
    try:
        ray.get(done)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, DataError):
            raise DataError(str(cause)) from None
        if isinstance(cause, OSError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).strip().split("\n")[0]
        raise RuntimeError(f"a task was lost {RETRIES + 1} times ({reason}); the same command goes on") from None
