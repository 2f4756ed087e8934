"""Look after a run's checkpoints: `python -m scripts.checkpoint list|verify|average|prune RUN`."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs import entry, load
from durable import Damaged, commit_directory, file_lock, find_checkpoint, list_checkpoints, sha256, step_of, verify

if TYPE_CHECKING:
    from torch import Tensor

    from model import Transformer

TOKENIZER = "tokenizer.json"
VERBS = {
    "list": "what is there: step, size, tokens, nll on the validation rows; the best, and what is never removed",
    "verify": "compare every file with its size and hash; exit code 3 if one differs",
    "average": "write the mean of the weights of several checkpoints to a new directory, which loads like a checkpoint",
    "prune": "remove all but the newest intact ones, the best and the permanent",
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.checkpoint", description="Look after the checkpoints of a run."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    made = {verb: verbs.add_parser(verb, help=told, description=told) for verb, told in VERBS.items()}
    for verb in made.values():
        verb.add_argument("run", type=Path, help="run directory")
    average, prune = made["average"], made["prune"]
    average.add_argument("out", type=Path, help="directory to make")
    which = average.add_mutually_exclusive_group(required=True)
    which.add_argument("--last", type=int, metavar="N", help="the newest N intact ones")
    which.add_argument("--steps", metavar="STEP,STEP", help="those of these steps")
    prune.add_argument(
        "--keep", type=int, metavar="N", help="newest intact ones that stay; default: the run's save.keep"
    )
    prune.add_argument("--dry-run", action="store_true", help="only tell what would go")
    return parser


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments().parse_args(argv)
    if not list_checkpoints(args.run):
        raise ValueError(f"{args.run}: no checkpoints there")
    if args.verb == "average":
        average(args.run, args.out, last=args.last, steps=args.steps)
    elif args.verb == "prune":
        prune(args.run, args.keep, dry_run=args.dry_run)
    else:
        show(args.run, contents=args.verb == "verify")


def show(run: Path, *, contents: bool) -> None:
    """Print a line for each checkpoint. Raises `Damaged` at the end if one is."""
    pointer = run / "checkpoints" / "best"
    best = pointer.read_text().strip() if pointer.is_file() else None
    found, damaged = list_checkpoints(run), 0
    for path in found:
        try:
            state = verify(path, contents=contents)
        except Damaged as error:
            damaged += 1
            told = f"  damaged: {error}"
        else:
            nll = state.get("nll")
            score = f"  nll {nll:.4f}" if isinstance(nll, float) else " " * 12
            marks = [("intact", contents), ("best", path.name == best), ("permanent", state.get("permanent"))]
            told = f"{state.get('tokens', 0):>15,} tokens{score}  {'  '.join(name for name, holds in marks if holds)}"
        print(f"step {step_of(path):>8}  {mebibytes(path):8.1f} MiB{told}".rstrip())
    for path in sorted((run / "checkpoints").glob("*.damaged")):
        print(f"{path.name}  {mebibytes(path):.1f} MiB, set aside when the run went on from an earlier one")
    if damaged:
        raise Damaged(f"{damaged} of {len(found)} checkpoints damaged")


def mebibytes(directory: Path) -> float:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 2**20


def prune(run: Path, keep: int | None, *, dry_run: bool) -> None:
    """Remove what is superfluous, as a run does it after each save; not while one is going on."""
    from trainer.shelf import Shelf

    keep = load(run / "config.yaml").save.keep if keep is None else keep
    if keep < 1:
        raise ValueError("--keep must be at least 1")
    with file_lock(run / "run.lock", wait=False):
        shelf = Shelf(run)
        gone = shelf.superfluous(keep)
        sizes = {path: mebibytes(path) for path in gone}
        for path in gone:
            print(f"{'would remove' if dry_run else 'removed'} step {step_of(path)}  {sizes[path]:.1f} MiB")
            if not dry_run:
                shelf.remove(path)
        if not dry_run:
            shelf.point_to_best()
    kept = len(list_checkpoints(run)) - len(gone) * dry_run
    print(f"{sum(sizes.values()):.1f} MiB {'would be ' * dry_run}free, {kept} checkpoints {'would ' * dry_run}stay")


def average(run: Path, out: Path, *, last: int | None, steps: str | None) -> None:
    """Write the mean of the weights of the chosen checkpoints, with the tokenizer, to `out`."""
    from model import read_model, save_model

    if out.exists():
        raise ValueError(f"{out} exists; choose another place")
    chosen = newest(run, last) if last is not None else named(run, steps or "")
    models = map(read_model, chosen)
    model = next(models)
    total = {name: weight.float() for name, weight in model.state_dict().items()}
    for path, other in zip(chosen[1:], models, strict=True):
        check_alike(chosen[0], model, path, other)
        for name, weight in other.state_dict().items():
            total[name] = total[name] + weight.float()
    tmp = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        save_model(model, tmp, mean(total, len(chosen), model))
        shutil.copy(chosen[0] / TOKENIZER, tmp / TOKENIZER)
        taken = [step_of(path) for path in chosen]
        commit_directory(tmp, out, {"step": max(taken), "average": taken})
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    print(f"{out}: the mean of the weights of steps {', '.join(map(str, taken))}")


def mean(total: "dict[str, Tensor]", count: int, model: "Transformer") -> "dict[str, Tensor]":
    """Sums divided by `count`, in the number formats of the model's weights."""
    return {name: (total[name] / count).to(weight.dtype) for name, weight in model.state_dict().items()}


def check_alike(first: Path, model: "Transformer", path: Path, other: "Transformer") -> None:
    """Raise ValueError for two checkpoints whose weights do not mean the same."""
    if (model.config, model.vocab_size) != (other.config, other.vocab_size):
        raise ValueError(f"{path} holds a model of another shape than {first}")
    if sha256(first / TOKENIZER) != sha256(path / TOKENIZER):
        raise ValueError(f"{path} has another tokenizer than {first}")


def newest(run: Path, count: int) -> list[Path]:
    """The newest `count` intact checkpoints, oldest first. Raises ValueError when there are fewer."""
    found: list[Path] = []
    for path in reversed(list_checkpoints(run)):
        if len(found) == count:
            break
        try:
            verify(path)
            found.insert(0, path)
        except Damaged as error:
            print(f"warning: damaged checkpoint passed over: {error}", file=sys.stderr)
    if count < 1 or len(found) < count:
        raise ValueError(
            f"--last {count}: {run} has {len(found)} intact checkpoints" if count > 0 else "--last is 1 or more"
        )
    return found


def named(run: Path, steps: str) -> list[Path]:
    """The checkpoints of the steps in a comma-separated list, each once."""
    return list(dict.fromkeys(find_checkpoint(run, step.strip()) for step in steps.split(",")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
