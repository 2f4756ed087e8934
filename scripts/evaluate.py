"""Measure a trained model on its held-out rows: `python -m scripts.evaluate RUN [--checkpoint best] [--json OUT]`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs import entry, load
from durable import atomic_write, find_checkpoint


@entry
def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate", description="Measure a trained model on all of its held-out rows."
    )
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--checkpoint", default="last", help="last, best or a step (default: last)")
    parser.add_argument("--device", help="cpu, cuda or mps (default: the run's)")
    parser.add_argument("--detail", action="store_true", help="also calibration, frequency, position, worst targets")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers there")
    args = parser.parse_args(argv)
    result = measure(args.run, args.checkpoint, args.device, detail=args.detail)
    width = max(map(len, [result["checkpoint"], *result["labels"]]))
    print(f"{result['checkpoint']:<{width}}  {'nll':>8}  {'ppl':>9}  {'bpb':>7}  {'accuracy':>8}  {'tokens':>10}")
    for name, row in {"all": result, **result["labels"]}.items():
        numbers = f"{row['nll']:>8.4f}  {row['ppl']:>9.2f}  {row['bpb']:>7.4f}  {row['accuracy']:>8.4f}"
        print(f"{name:<{width}}  {numbers}  {row['tokens']:>10,}")
    if args.detail:
        print("\n" + "\n".join(detail_lines(result["detail"])))
    if args.json:
        atomic_write(args.json, json.dumps(result, indent=1) + "\n")


def measure(run: Path, which: str, device_name: str | None, *, detail: bool = False) -> dict[str, Any]:
    """`{"nll", "ppl", "bpb", "accuracy", "tokens", "labels": {source: the same}}` of a checkpoint, and which it was.

    With `detail` also `"detail"`, see `Parts.detail`.
    """
    from assemble import State, build, set_up_process
    from data import prepare
    from loss import LossConfig
    from trainer.distributed import Place, Ranks, pick_device

    checkpoint = find_checkpoint(run, which, warn=lambda reason: print(f"warning: {reason}", file=sys.stderr))
    # Scores are nll whatever was trained on: neither teacher nor tables are needed.
    config, place = replace(load(run / "config.yaml"), loss=LossConfig()), Place()
    device = pick_device(device_name or config.run.device, place)
    set_up_process(config, place, device)
    state = State.read(checkpoint)
    data = prepare(config.data, config.model.context)
    if data.fingerprint != state.data:
        raise ValueError(f"{run} was trained on another corpus than the one prepared now")
    parts = build(config, data, Ranks(place, device), device, state)
    parts.load(checkpoint, state)
    table = parts.score_sources()
    more = {"detail": parts.detail()} if detail else {}
    return {**table.pop(""), "checkpoint": checkpoint.name, "labels": table, **more}


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
