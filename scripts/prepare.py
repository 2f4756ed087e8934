"""Prepare a corpus: `python -m scripts.prepare CONFIG [key.sub=value ...]`.

Trains or loads the tokenizer, encodes every document once, and plans the rows. Killed anywhere and run again it gives
the same bytes; `train.py` does the same when it finds nothing prepared. On many machines that share their files, either
`--engine ray`, or one process for each slice, such as in a Slurm array:

    python -m scripts.prepare CONFIG --slice $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT

The slice that ends last completes the corpus; should one be lost, run it again, or the command without `--slice`.
"""

import re
import sys
from argparse import Namespace
from collections.abc import Sequence

from configs import entry, load, parse

FLAGS = {
    "slice=I/N": "encode slice I of N, from 0/N on; the slice that ends last completes the corpus",
    "engine=ENGINE": "where to encode: local (default), in `data.workers` processes, or ray, on a cluster",
    "address=HOST:PORT": "the Ray cluster; without it, one is started on this machine",
    "repair": "make damaged files again from their sources",
}


@entry
def main(argv: Sequence[str]) -> None:
    args = parse(argv, prog="python -m scripts.prepare", description="Prepare the corpus of a config.", flags=FLAGS)
    _check(args)
    config = load(args.config, args.overrides)
    from data import Engine, Prepared, prepare, prepare_slice, repair

    if args.repair:
        mended = repair(config.data, config.model.context)
        print(*(f"mended {name}" for name in mended) if mended else ("nothing is damaged",), sep="\n")
    if args.slice:
        found = prepare_slice(config.data, config.model.context, *map(int, args.slice.split("/")))
    else:
        engine = Engine(args.engine or "local", args.address)
        found = prepare(config.data, config.model.context, engine=engine)
    if isinstance(found, Prepared):
        print(f"prepared {found.directory}")
        print(*found.summary(), sep="\n")
        print(f"card        {found.directory / 'card.html'}")
    else:
        print(f"slice {args.slice} is done; {len(found)} tasks of others are not: {_some(found)}")


def _check(args: Namespace) -> None:
    """Raise ValueError for flags that do not go together."""
    if args.slice and not re.fullmatch(r"\d{1,9}/\d{1,9}", args.slice):
        raise ValueError(f"--slice is I/N, such as 0/4, not {args.slice!r}")
    if args.engine not in (None, "local", "ray"):
        raise ValueError(f"--engine is local or ray, not {args.engine!r}")
    if args.slice and args.engine == "ray":
        raise ValueError("--slice and --engine ray both share out the tasks: use one of them")
    if args.address and args.engine != "ray":
        raise ValueError("--address is that of a Ray cluster: add --engine ray")


def _some(labels: Sequence[str]) -> str:
    """The first few of some labels."""
    return ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
