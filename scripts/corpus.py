"""Look at a prepared corpus: `python -m scripts.corpus VERB CONFIG [key=value ...]`."""

import io
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import RunConfig, entry, load, parse
from durable import Damaged, atomic_write

if TYPE_CHECKING:
    from data import Prepared

PROG = "python -m scripts.corpus"


@dataclass(frozen=True)
class Verb:
    """What can be done with a corpus."""

    what: str
    act: Callable[[Any, RunConfig], None]
    flags: dict[str, str]


@entry
def main(argv: Sequence[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, VERBS)) + 2
        lines = "\n".join(f"  {name.ljust(width)}{verb.what}" for name, verb in VERBS.items())
        print(f"usage: {PROG} VERB CONFIG [key.sub=value ...]\n\n{lines}\n\nVERB --help shows the options of one.")
        if not argv:
            raise SystemExit(2)
        return
    name, *rest = argv
    if name not in VERBS:
        raise ValueError(f"no verb {visible(name)!r}; there are {', '.join(VERBS)}")
    verb = VERBS[name]
    args = parse(rest, prog=f"{PROG} {name}", description=f"Of a prepared corpus: {verb.what}.", flags=verb.flags)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 shows numbers, not a traceback
    verb.act(args, load(args.config, args.overrides))


def visible(text: str, limit: int = 200) -> str:
    """Text that a terminal may be given."""
    from data.card.page import visible

    return visible(text, limit)


def opened(args: Any, config: RunConfig) -> "Prepared":
    """The corpus of a config; a ValueError says how to prepare one that is not there."""
    from data import lookup

    found = lookup(config.data, config.model.context)
    if found is None:
        raise ValueError(not_prepared(args))
    return found


def not_prepared(args: Any) -> str:
    """What to do first."""
    return f"the corpus is not prepared; this does it: {prepare_command(args)}"


def prepare_command(args: Any) -> str:
    """What makes the corpus of these arguments."""
    return visible(shlex.join(["python", "-m", "scripts.prepare", args.config, *args.overrides]), 1000)


def verify(args: Any, config: RunConfig) -> None:
    from data.making.place import corpus_directory
    from data.store import Store

    store = Store.open(corpus_directory(config.data))
    if store is None:
        raise ValueError(not_prepared(args))
    found = store.damages()
    for damage in found:
        print(visible(damage, 1000))
    if found:
        mends = f"{prepare_command(args)} --repair` mends it while the sources are the same"
        raise Damaged(f"{len(found)} damaged; `{mends}, or delete {store.directory} to prepare it again")
    size = sum(sum(shard.sizes.values()) for shard in store.shards)
    print(f"{len(store.shards)} shards, {size / 1e6:.1f} MB: all as written")


def inspect(args: Any, config: RunConfig) -> None:
    from data.card.view import in_color, in_html, in_plain, view_rows

    when = args.color or "auto"
    if when not in ("auto", "always", "never"):
        raise ValueError(f"--color is auto, always or never, not {visible(when)!r}")
    prepared = opened(args, config)
    rows = view_rows(prepared, *chosen_rows(args, config, prepared), seed=config.run.seed)
    if args.html:
        atomic_write(Path(args.html), in_html(f"Rows of {', '.join(prepared.source_names)}", rows))
        print(args.html)
        return
    color = when == "always" or when == "auto" and sys.stdout.isatty()
    for line in in_color(rows) if color else in_plain(rows):
        print(line)


def chosen_rows(args: Any, config: RunConfig, prepared: "Prepared") -> tuple[str, list[int], list[int]]:
    """(side, row numbers, the epoch of each): from `--row` on, or those of a step in its order."""
    side, count = args.side or "train", number(args, "rows", 4, least=1)
    if side not in ("train", "val"):
        raise ValueError(f"--side is train or val, not {visible(side)!r}")
    if args.step is not None:
        if side == "val" or args.row is not None:
            raise ValueError("--step is of training rows in their order: leave out --side and --row")
        return side, *rows_of_step(number(args, "step", 0), count, config, prepared)
    total = (prepared.train if side == "train" else prepared.val).rows
    first = number(args, "row", 0)
    if first >= total:
        raise ValueError(f"--row {first}: the {side} side has {total} rows, from 0")
    numbers = list(range(first, min(first + count, total)))
    return side, numbers, [0] * len(numbers)


def rows_of_step(step: int, count: int, config: RunConfig, prepared: "Prepared") -> tuple[list[int], list[int]]:
    """(row numbers, the epoch of each) of at most `count` rows of a step of a run with this config."""
    import numpy as np

    from course import State, order_in_run, total_steps
    from learner import rows_per_step

    total, size = total_steps(config, prepared.train.rows, State()), rows_per_step(config)
    if step >= total:
        raise ValueError(f"--step {step}: the run has {total} steps, from 0")
    order, k = order_in_run(config, prepared, State(), total), np.arange(step * size, step * size + min(size, count))
    return order.row_ids(k).tolist(), order(k)[1].tolist()


def number(args: Any, name: str, default: int, least: int = 0) -> int:
    """The value of a flag that takes a count."""
    value = getattr(args, name)
    if value is None:
        return default
    if not value.isascii() or not value.isdecimal() or int(value) < least:
        raise ValueError(f"--{name} is a whole number of at least {least}, not {visible(value)!r}")
    return int(value)


def card(args: Any, config: RunConfig) -> None:
    from data.card.sections import write_card

    for path in write_card(opened(args, config)):
        print(path)


def dropped(args: Any, config: RunConfig) -> None:
    from data.cleaning.choose import dropped_documents

    limit = number(args, "limit", 1 << 62)
    shown, reasons = 0, dict[str, None]()
    for identity, source, reason in dropped_documents(opened(args, config)):
        reasons[reason.partition(":")[0]] = None
        if reason.startswith(args.reason or ""):
            if shown == limit:
                print(f"more than {limit}", file=sys.stderr)
                return
            shown += 1
            print(f"{visible(reason)}\t{visible(source)}\t{visible(identity, 1000)}")
    if not shown:
        why = f" for {visible(args.reason)!r}; reasons are {', '.join(reasons) or 'none'}" if args.reason else ""
        print(f"no document was left out{why}", file=sys.stderr)


def report(args: Any, config: RunConfig) -> None:
    from data.rows.packing import packing_report

    for line in packing_report(opened(args, config)).lines():
        print(visible(line, 1000))


def tokenizer(args: Any, config: RunConfig) -> None:
    from data.tokens.fertility import lines, tokenizer_report

    for line in lines(tokenizer_report(opened(args, config))):
        print(visible(line, 1000))


VERBS = {
    "verify": Verb("hash every file; says which are damaged (exit 3)", verify, {}),
    "inspect": Verb("show rows: tokens, documents, what is learned", inspect, {
        "row=N": "first row (0)",
        "rows=K": "how many (4)",
        "side=SIDE": "train or val (train)",
        "step=S": "the rows of training step S, in its order",
        "color=WHEN": "auto, always or never (auto: in a terminal)",
        "html=OUT": "write a page there instead",
    }),
    "card": Verb("write card.md and card.html into its folder, and print where", card, {}),
    "report": Verb("what each way of packing would make of the same documents", report, {}),
    "tokenizer": Verb("how well the tokenizer fits: bytes a token, unused ids, tokens a word", tokenizer, {}),
    "dropped": Verb("list the documents that are left out: reason, source, id", dropped, {
        "reason=REASON": "only those",
        "limit=N": "at most so many",
    }),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
