"""A run's checkpoints on disk: which is the best, which are kept, and what a crash has left behind."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from durable import REPLACED, Damaged, atomic_write, list_checkpoints, step_of, verify

TMP, TRASH, DAMAGED = ".tmp", ".trash", ".damaged"
PERMANENT = "permanent"
"""Key in `state.json`: true in a checkpoint that is never removed."""


class Shelf:
    """The checkpoints of one run. Each is read once to compare its hashes; later looks compare sizes."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "checkpoints"
        self._read: set[Path] = set()

    def place(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.folder / f"step_{step:08d}"

    def trust(self, path: Path) -> None:
        """Take note that a checkpoint has just been verified."""
        self._read.add(path)

    def state(self, path: Path, *, contents: bool = True) -> dict[str, Any] | None:
        """What a checkpoint's `state.json` says; None when it is damaged. `contents=False` leaves out the hashes."""
        try:
            state = verify(path, contents=contents and path not in self._read)
        except Damaged:
            self._read.discard(path)
            return None
        if contents:
            self._read.add(path)
        return state

    def best(self) -> Path | None:
        """The intact checkpoint with the lowest nll, the earliest of several."""
        scored = []
        for path in list_checkpoints(self.run):
            nll = (self.state(path, contents=False) or {}).get("nll")
            if isinstance(nll, float) and math.isfinite(nll):
                scored.append((nll, step_of(path), path))
        return next((path for _, _, path in sorted(scored) if self.state(path) is not None), None)

    def point_to_best(self) -> None:
        """Make the pointer that `durable.find_checkpoint` follows agree with what is there."""
        pointer, best = self.folder / "best", self.best()
        if best is None:
            pointer.unlink(missing_ok=True)
            return
        name = self.place(step_of(best)).name
        if not pointer.is_file() or pointer.read_text().strip() != name:
            atomic_write(pointer, name + "\n")

    def superfluous(self, keep: int) -> list[Path]:
        """What may go, oldest first: all but the newest `keep` intact ones, what lies between, the best, the permanent.

        Nothing while there are fewer intact ones.
        """
        newest_first = list_checkpoints(self.run)[::-1]
        intact = 0
        while newest_first and intact < keep:
            intact += self.state(newest_first.pop(0)) is not None
        best = self.best()
        return [path for path in newest_first[::-1] if path != best and not self._permanent(path)]

    def _permanent(self, path: Path) -> bool:
        return (self.state(path, contents=False) or {}).get(PERMANENT) is True

    def prune(self, keep: int) -> list[int]:
        """Remove what is superfluous; the steps that are gone."""
        gone = self.superfluous(keep)
        for path in gone:
            self.remove(path)
        return [step_of(path) for path in gone]

    def remove(self, path: Path) -> None:
        """Under another name first: a crash never leaves half a checkpoint that looks like one."""
        self._read.discard(path)
        trash = path.with_suffix(TRASH)
        _delete(trash)
        path.rename(trash)
        _delete(trash)

    def leftovers(self) -> Iterator[Path]:
        """What a crash or a failed removal has left: no checkpoint, and of no use."""
        counted = set(list_checkpoints(self.run))
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            if path.suffix in (TMP, TRASH, REPLACED) and path not in counted:
                yield path

    def sweep(self) -> None:
        """Remove leftovers."""
        for path in list(self.leftovers()):
            _delete(path)

    def go_on_from(self, step: int) -> None:
        """Tidy up for a run that goes on from `step`, which has been verified.

        Leftovers are removed; newer checkpoints, which were damaged, are set aside as `.damaged`.
        """
        self.sweep()
        for path in list_checkpoints(self.run):
            if step_of(path) > step:
                aside = path.with_suffix(DAMAGED)
                _delete(aside)
                path.rename(aside)
                self._read.discard(path)
            elif path.suffix == REPLACED:
                path.rename(path.with_suffix(""))
            if step_of(path) == step:
                self.trust(self.place(step))
        if self.folder.is_dir():
            self.point_to_best()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
