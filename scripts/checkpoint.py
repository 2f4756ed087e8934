"""Look after a run's checkpoints: `python -m scripts.checkpoint list|verify RUN`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from configs import entry
from durable import STATE, Damaged, list_checkpoints, step_of, verify


@entry
def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.checkpoint",
        description="list: what is there; verify: compare every file with its size and hash (exit 3 if one differs).",
    )
    parser.add_argument("verb", choices=("list", "verify"))
    parser.add_argument("run", type=Path, help="run directory")
    args = parser.parse_args(argv)
    found = list_checkpoints(args.run)
    if not found:
        raise ValueError(f"{args.run}: no checkpoints there")
    pointer = args.run / "checkpoints" / "best"
    best = pointer.read_text().strip() if pointer.is_file() else None
    damaged = []
    for path in found:
        size = sum(file.stat().st_size for file in path.iterdir())
        mark = "  best" if path.name == best else ""
        try:
            state = verify(path) if args.verb == "verify" else json.loads((path / STATE).read_text())
            verdict = f"{state['tokens']:>13,} tokens{'  intact' if args.verb == 'verify' else ''}"
        except (Damaged, OSError, ValueError, KeyError) as error:
            damaged.append(str(error))
            verdict = f"damaged: {error}"
        print(f"step {step_of(path):>8}  {size / 2**20:8.1f} MiB  {verdict}{mark}")
    if damaged:
        raise Damaged(f"{len(damaged)} of {len(found)} checkpoints damaged")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
