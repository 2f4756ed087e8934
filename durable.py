"""Files that survive a crash: atomic writes, hashes, locks, and finding the newest intact checkpoint.

Standard library only, so that every part may import it. A checkpoint is a directory `step_<8 digits>` whose
`state.json`, written last, lists the sha256 and size of every other file, and its own; a directory without a valid list
is not one.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STATE = "state.json"
REPLACED = ".old"
_SEAL = ',\n "self": "'
_STEP = re.compile(rf"step_(\d{{8,}})(?:{re.escape(REPLACED)})?")


class Damaged(Exception):
    """Data or a checkpoint on disk is not what was written."""


class SaveFailed(Exception):
    """Checkpoints cannot be written; the message names the place and the reason."""


class Locked(ValueError):
    """Another process holds the lock."""


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, data: str | bytes) -> None:
    """Replace `path` by `data`: a reader, or a crash, sees the old content or the new, never a part.

    An OSError names `path`, also when the disk is full.
    """
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(tmp, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp, path)
    except BaseException as error:
        tmp.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    fsync_directory(path.parent)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created when missing); the kernel drops it if the process dies.

    `wait=False` raises `Locked`, naming the holder, when another process has it.
    """
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise Locked(f"{path.parent} is in use by {holder}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def commit_directory(tmp: Path, final: Path, state: dict[str, Any]) -> None:
    """Turn the files in `tmp` into the checkpoint `final`: hash list last, fsync, read back, rename.

    `state` is stored beside the hash list in `state.json`. Raises `Damaged` if what was read back differs: before the
    rename, so that what bears a checkpoint's name has been read once.
    """
    files = {}
    for path in sorted(p for p in tmp.iterdir() if p.name != STATE):
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        flush(path)
    body = {**state, "files": files}
    atomic_write(tmp / STATE, _seal(json.dumps(body, indent=1)))
    verify(tmp)
    old = final.with_suffix(REPLACED)
    if final.exists():  # the same step, saved before: it steps aside, since a rename cannot replace a full directory
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)  # killed here, the run still has it: `list_checkpoints`
    os.rename(tmp, final)
    fsync_directory(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Force a file to its disk and out of memory, so that what is read next comes from there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _seal(text: str) -> str:
    """A JSON object with the sha256 of its bytes as a last entry, so that no byte can change unseen."""
    return f'{text[:-2]}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}"\n}}'


def verify(directory: Path, *, contents: bool = True) -> dict[str, Any]:
    """The checkpoint's `state.json`, after every listed file was found with its size and, for `contents`, its hash.

    Raises `Damaged` with the first difference.
    """
    try:
        text = (directory / STATE).read_bytes().decode()  # as it is: line ends count
        state = json.loads(text)
        files, _ = dict(state["files"]), state.pop("self")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{directory}: no readable {STATE} ({type(error).__name__})") from None
    except OSError as error:
        raise _damage(error, f"{directory}: no readable {STATE} ({type(error).__name__})") from None
    if text != _seal(text.rpartition(_SEAL)[0] + "\n}"):
        raise Damaged(f"{directory / STATE}: its own hash differs")
    for name, want in files.items():
        path = directory / name
        if not path.is_file():
            raise Damaged(f"{path}: missing")
        if path.stat().st_size != want["bytes"]:
            raise Damaged(f"{path}: {path.stat().st_size} bytes, not {want['bytes']}")
        try:
            same = not contents or sha256(path) == want["sha256"]
        except OSError as error:
            raise _damage(error, f"{path}: {error.strerror}") from None
        if not same:
            raise Damaged(f"{path}: sha256 differs")
    return state


def _damage(error: OSError, message: str) -> Exception:
    """`Damaged` for what a disk or a stray hand did; the error itself for trouble that passes, such as permissions."""
    lost = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)
    return Damaged(message) if error.errno in lost else error


def step_of(directory: Path) -> int:
    """The step in a checkpoint directory's name, or -1."""
    match = _STEP.fullmatch(directory.name)
    return int(match[1]) if match else -1


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint directories of a run, oldest first, intact or not.

    One that was about to be replaced by a new one of its step, `step_N.old`, counts while there is no `step_N`.
    """
    folder = run / "checkpoints"
    found = (
        {step_of(p): p for p in sorted(folder.iterdir(), reverse=True) if step_of(p) >= 0} if folder.is_dir() else {}
    )
    return [found[step] for step in sorted(found)]


def last_step(run: Path) -> int:
    """Step of the run's newest checkpoint, intact or not; 0 without one."""
    return max([0, *map(step_of, list_checkpoints(run))])


def newest_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint and why newer ones were passed over; None when the run has none at all.

    Raises `Damaged` when there are checkpoints and not one is intact: never a silent fresh start.
    """
    reasons: list[str] = []
    for path in reversed(list_checkpoints(run)):
        try:
            verify(path)
            return path, reasons
        except Damaged as error:
            reasons.append(str(error))
    if reasons:
        raise Damaged(f"{run}: no loadable checkpoint of {len(reasons)}: " + "; ".join(reasons))
    return None, reasons


def find_checkpoint(path: str | Path, which: str = "last", warn: Callable[[str], None] = lambda _: None) -> Path:
    """A verified checkpoint: `path` itself, or of the run at `path` the one that `which` names.

    `which` is `last` (the newest intact one; `warn` hears of damaged newer ones), `best` or a step. Raises ValueError
    when there is none such, `Damaged` when it is not intact.
    """
    path = Path(path)
    if (path / STATE).is_file():
        verify(path)
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: no such run or checkpoint")
    if which == "last":
        newest, passed_over = newest_checkpoint(path)
        for reason in passed_over:
            warn(f"damaged checkpoint passed over: {reason}")
        if newest is None:
            raise ValueError(f"{path}: no checkpoint yet")
        return newest
    have = {step_of(p): p for p in list_checkpoints(path)}
    pointer = path / "checkpoints" / "best"
    name = which
    if which == "best":
        if not pointer.is_file():
            raise ValueError(f"{path}: no best checkpoint yet")
        name = pointer.read_text().strip().removeprefix("step_")
    if not name.isdecimal() or int(name) not in have:
        steps = ", ".join(str(s) for s in have) or "none"
        raise ValueError(f"{path}: no checkpoint {which!r}; there are last, best and steps {steps}")
    try:
        verify(have[int(name)])
    except Damaged as error:
        raise Damaged(f"damaged: {error}; `--checkpoint last` takes the newest intact one") from None
    return have[int(name)]
