"""Started by torchrun with a directory: two ranks save checkpoints together, and each of them fails at times."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import durable
from durable import SaveFailed
from trainer.checkpoint import Saver
from trainer.distributed import Place, Ranks
from trainer.signals import end_process


def check(run: Path, ranks: Ranks, background: bool) -> None:
    told: list[str] = []
    saver = Saver(run, keep=2, keep_every=None, background=background, ranks=ranks, warn=told.append)

    def write(failing: int | None = None) -> Callable[[Path], None]:
        def act(directory: Path) -> None:
            (directory / f"part-{ranks.rank}").write_text("x" * 100)
            if ranks.rank == failing:
                raise OSError(errno.EIO, f"rank {failing}'s disk", str(directory))

        return act

    def save(step: int, failing: int | None = None, *, last: bool = False) -> list[int]:
        saver.save(step, write(failing), {"nll": float(step)}, 100, last=last)
        training = ranks.sum(torch.ones(1))  # goes on, on its own line
        assert training == 2
        saver.wait()
        ranks.barrier()
        return [durable.step_of(path) for path in durable.list_checkpoints(run)]

    assert save(1) == [1] and set(durable.verify(run / "checkpoints/step_00000001")["files"]) == {"part-0", "part-1"}
    assert save(2, failing=1) == [1] and save(3, failing=0) == [1]
    for failing in (0, 1):
        try:
            save(4, failing, last=True)
        except SaveFailed as error:
            assert f"rank {failing}'s disk" in str(error)
        else:
            raise AssertionError("not raised")
        ranks.barrier()
        assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best", "step_00000001"]
        ranks.barrier()
    said = [f"rank {number}'s disk" in line for number, line in zip((1, 0), told, strict=False)]
    assert said == ([True, True] if ranks.rank == 0 else []), told
    assert save(5) == [1, 5] and save(6) == [1, 5, 6] and save(7, last=True) == [1, 6, 7]
    with saver:  # what is under way when all leave is waited for
        saver.save(8, write(), {"nll": 8.0}, 100)
    assert ranks.rank > 0 or [durable.step_of(path) for path in durable.list_checkpoints(run)] == [1, 7, 8]
    ranks.barrier()


if __name__ == "__main__":
    ranks = Ranks(Place.from_environment(), torch.device("cpu"))
    for background in (False, True):
        folder = Path(sys.argv[1]) / str(background)
        folder.mkdir(exist_ok=True)
        check(folder, ranks, background)
    ranks.barrier()
    print("all as it should be")
    ranks.close()
    end_process(0)
