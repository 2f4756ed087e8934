"""Prepare a corpus: `python -m scripts.prepare CONFIG [key.sub=value ...]`.

Trains or loads the tokenizer, encodes every document once, and plans the rows. Killed anywhere and run again it gives
the same bytes; `train.py` does the same when it finds nothing prepared.
"""

import sys
from collections.abc import Sequence

from configs import entry, load, parse


@entry
def main(argv: Sequence[str]) -> None:
    args = parse(argv, prog="python -m scripts.prepare", description="Prepare the corpus of a config.")
    config = load(args.config, args.overrides)
    from data import prepare

    prepared = prepare(config.data, config.model.context)
    print(f"prepared {prepared.directory}")
    print(*prepared.summary(), sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
