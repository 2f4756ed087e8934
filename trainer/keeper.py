"""Saving a model and its optimizer: what is copied when, and that nothing poisoned is ever stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .checkpoint import Saver
from .payload import Payload, Tensors, snapshot


class Keeper:
    """Hands tensors to a `Saver`: copied only if training goes on meanwhile, into the same memory each time."""

    def __init__(self, saver: Saver, *, sharded: bool) -> None:
        """`sharded`: each rank writes its part; otherwise rank 0 writes all."""
        self.saver, self.sharded = saver, sharded
        self._copy: Payload | None = None

    def save(
        self,
        step: int,
        model: Tensors,
        optimizer: Tensors,
        others: Callable[[Path], None],
        state: dict[str, Any],
        *,
        last: bool,
    ) -> bool:
        """Save the checkpoint of `step`; `others` writes, on rank 0, what else is in it. For the rest see `Saver.save`.

        False, and nothing is saved, when a value is not finite on any rank. A save in the background looks for that
        in the background, and fails; the next one, in the foreground, tells.
        """
        self.saver.wait()  # its copy is free from here on
        ranks, beside = self.saver.ranks, self.saver.beside(last=last)
        held = snapshot(model, optimizer, ranks, sharded=self.sharded, copy=beside, into=self._copy)
        if beside:
            self._copy = held
        elif ranks.any(not held.finite()):
            return False

        def write(directory: Path) -> None:
            if beside and not held.finite():
                raise ValueError("a weight, or what the optimizer keeps, is not finite")
            held.write(directory)
            if ranks.rank == 0:
                others(directory)

        self.saver.save(step, write, state, held.nbytes, last=last)
        return True
