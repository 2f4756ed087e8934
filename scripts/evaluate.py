"""Measure a trained model on its held-out rows, or on other text.

`python -m scripts.evaluate RUN [--checkpoint best] [--by LABEL] [--data FILE.jsonl] [--json OUT]`
"""

import argparse
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs import entry, load
from durable import atomic_write, find_checkpoint
from scripts.corpus import visible


@entry
def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate", description="Measure a trained model on all of its held-out rows."
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step (default: last)")
    parser.add_argument("--by", action="append", default=[], metavar="LABEL", help="scores by the values of a label "
                        "instead of by source; may be given again")  # fmt: skip
    parser.add_argument("--data", metavar="FILE.jsonl", help="measure on this text, with fields as in the run's config")
    parser.add_argument("--like", metavar="SOURCE", help="source of the config whose fields --data has (default: the "
                        "first with fields)")  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda or mps (default: the run's)")
    parser.add_argument("--detail", action="store_true", help="also calibration, frequency, position, worst targets")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers there")
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as in scripts.corpus
    result = measure(
        args.run, args.checkpoint, args.device, by=args.by, data=args.data, like=args.like, detail=args.detail
    )
    table = [("all", result), *((visible(name), row) for name, row in result["labels"].items())]
    width = max(len(name) for name in (result["checkpoint"], *(name for name, _ in table)))
    print(f"{result['checkpoint']:<{width}}  {'nll':>8}  {'ppl':>9}  {'bpb':>7}  {'accuracy':>8}  {'tokens':>10}")
    for name, row in table:
        bpb = f"{row['bpb']:>7.4f}" if "bpb" in row else f"{'-':>7}"
        numbers = f"{row['nll']:>8.4f}  {row['ppl']:>9.2f}  {bpb}  {row['accuracy']:>8.4f}"
        print(f"{name:<{width}}  {numbers}  {row['tokens']:>10,}")
    if args.detail:
        print("\n" + "\n".join(detail_lines(result["detail"])))
    if args.json:
        atomic_write(args.json, json.dumps(result, indent=1) + "\n")


def measure(
    run: Path, which: str, device_name: str | None, *, by: Sequence[str] = (), data: str | None = None,
    like: str | None = None, detail: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """`{"nll", "ppl", "bpb", "accuracy", "tokens", "labels": {name: the same}}` of a checkpoint, and which it was.

    The names are sources, or the values of the label that `by` names, as `label=value` when it names several. `data` is
    a file of other text. With `detail` also `"detail"`, see `Parts.detail`.
    """
    from assemble import State, build, set_up_process
    from data import prepare, prepare_file
    from loss import LossConfig
    from trainer.distributed import Place, Ranks, pick_device
    from trainer.spinning import Spinning

    checkpoint = find_checkpoint(run, which, warn=lambda reason: print(f"warning: {reason}", file=sys.stderr))
    # Scores are nll whatever was trained on: neither teacher nor tables are needed.
    config, place = replace(load(run / "config.yaml"), loss=LossConfig()), Place()
    config = replace(config, eval=replace(config.eval, by=tuple(by)))
    device = pick_device(device_name or config.run.device, place)
    set_up_process(config, place, device)
    state = State.read(checkpoint)
    with ExitStack() as stack:
        if data is None:
            corpus = prepare(config.data, config.model.context)
            if corpus.fingerprint != state.data:
                raise ValueError(f"{run} was trained on another corpus than the one prepared now")
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thimble-")))
            shutil.copy(checkpoint / "tokenizer.json", folder)
            corpus = prepare_file(data, config.data, by, folder, config.model.context, like)
            config = replace(config, data=corpus.config)
        parts = build(config, corpus, Ranks(place, device), device, state)
        parts.load(checkpoint, state)
        stack.enter_context(Spinning(device))
        table, labels = parts.score_groups()
        total = table.pop("")
        if by:
            table = {name if len(labels) == 1 else f"{label}={name}": row
                     for label, rows in labels.items() for name, row in rows.items()}  # fmt: skip
        more = {"detail": parts.detail()} if detail else {}
    return {**total, "checkpoint": checkpoint.name, "labels": table, **more}


def detail_lines(detail: dict[str, Any]) -> list[str]:
    """The detail as text."""
    means = detail["means"]
    lines = [
        f"top-5 accuracy {means['top5']:.4f}, entropy {means['entropy']:.4f} nats, "
        f"expected calibration error {means['ece']:.4f}",
        "",
        "confidence  accuracy      targets   (of the likeliest id, in 15 bins)",
        *(f"{sure:>10.3f}  {right:>8.3f}  {count:>11,}" for sure, right, count in detail["reliability"]),
    ]
    for kind, title in (("decile", "tenth of the corpus, 0 the rarest ids"), ("position", "tokens into the document")):
        rows = {name.rpartition("_")[2]: x for name, x in means.items() if name.startswith(f"nll/{kind}_")}
        lines += ["", f"{'nll':>7}   by {title}", *(f"{nll:>7.4f}   {name}" for name, nll in rows.items())]
    lines += ["", f"{'nll':>7}   worst targets, after their context"]
    return lines + [f"{row['nll']:>7.2f}   {row['target']!r} after {row['context']!r}" for row in detail["worst"]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
