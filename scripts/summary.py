"""Sum a run up: `python -m scripts.summary RUN` redraws its curves and prints what it reached."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs import RunConfig, entry, load
from durable import atomic_write, step_of

if TYPE_CHECKING:
    from data import Prepared

RESULTS = "eval/final.json"


@entry
def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.summary", description="Sum a run up again.")
    parser.add_argument("run", type=Path, help="run directory")
    path: Path = parser.parse_args(argv).run
    config = load(path / "config.yaml")
    draw_curves(path, config.run.name)
    print(describe(path, config))


def conclude(path: Path, config: RunConfig, data: "Prepared", outcome: str) -> str:
    """Draw the curves of a run that ends and return what to tell about it; a finished one is compared first."""
    if outcome == "done":
        from eval import compressed

        (path / "eval").mkdir(exist_ok=True)
        atomic_write(path / RESULTS, json.dumps({"compression": compressed(data.val_documents())}, indent=1) + "\n")
    draw_curves(path, config.run.name)
    match outcome:
        case "stopped":
            return f"stopped and saved; the same command goes on ({path})"
        case "diverged":
            return (
                f"diverged: loss or gradients were not finite, step after step; {path} holds the last good checkpoint"
            )
    return describe(path, config)


def compression(path: Path) -> dict[str, float]:
    """Bits per byte of compressors on the run's held-out text; empty before the run is finished."""
    return json.loads((path / RESULTS).read_text())["compression"] if (path / RESULTS).is_file() else {}


def draw_curves(path: Path, name: str) -> None:
    """Draw `curves.png` from `metrics.jsonl`, with the compressors' bits per byte when they are known."""
    from eval import draw
    from trainer.tracking import read_metrics

    if rows := read_metrics(path):
        draw(rows, path / "curves.png", name, compression(path))


def describe(path: Path, config: RunConfig) -> str:
    """The summary of a run as text, from its files alone."""
    from eval import summarize
    from trainer.tracking import read_metrics

    rows = read_metrics(path)
    if not rows:
        raise ValueError(f"{path}: nothing was logged yet")
    last: dict[str, Any] = next((row for row in reversed(rows) if "val/nll" in row), {})
    speeds = [row["train/tokens_per_s"] for row in rows if row.get("train/tokens_per_s")]
    prompt = next((f" --prompt {shlex.quote(p)}" for p in reversed(config.eval.prompts) if p), "")
    text = summarize(
        name=config.run.name,
        step=rows[-1]["step"],
        tokens=rows[-1]["tokens"],
        seconds=rows[-1].get("time/elapsed") or 0.0,
        tokens_per_s=sorted(speeds)[len(speeds) // 2] if speeds else 0.0,
        scores={key: value for key, value in last.items() if key.startswith("val/")},
        compression=compression(path),
        best=best_step(path, rows),
        paths={
            file.stem: file
            for name in ("curves.png", "metrics.jsonl", "samples.jsonl")
            if (file := path / name).is_file() and file.stat().st_size
        },  # fmt: skip
        commands=[
            f"python -m scripts.generate {path}{prompt}",
            f"python -m scripts.evaluate {path}",
        ],
    )
    return f"{text}\n\n{last_sample(path)}".rstrip()


def best_step(path: Path, rows: Sequence[dict[str, Any]]) -> tuple[int, float] | None:
    """The step of the best checkpoint and its val/nll."""
    pointer = path / "checkpoints" / "best"
    if not pointer.is_file():
        return None
    step = step_of(Path(pointer.read_text().strip()))
    return next(((step, row["val/nll"]) for row in rows if row["step"] == step and row.get("val/nll")), None)


def last_sample(path: Path) -> str:
    """The newest generated text, under a heading."""
    from trainer.rows import SAMPLES, read_rows

    rows = read_rows(path / SAMPLES)
    if not rows:
        return ""
    text = "\n".join(f"  | {line}" for line in (rows[-1]["prompt"] + rows[-1]["text"]).splitlines())
    text = text or "  (empty: the model ended the document at once)"
    return f"sample at step {rows[-1]['step']}:\n{text}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
