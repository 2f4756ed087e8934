"""What `python -m scripts.bench recipe` tells: a table, a picture and a page, all from what recipe.json holds."""

import math
import statistics
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from .measuring import QUICK, columns, failures
from .picture import Dots, dots
from .recipe import BASE, LEVERS, RUNS, SWEEP


class Row(NamedTuple):
    """A lever's runs: mean and sample standard deviation of the nll, and of its difference to the recipe's."""

    name: str
    nll: float
    spread: float
    apart: float
    apart_spread: float
    steps: int
    values: tuple[float, ...]


def rows_of(report: dict[str, Any]) -> list[Row]:
    """The recipe, then each lever by what it costs; a difference is one between runs of the same seed.

    A lever of which a run failed has none: the mean of those that went well would flatter it.
    """
    found = {
        name: {answer["seed"]: answer for answer in answers}
        for name, answers in report["answers"].get(RUNS, {}).items()
        if not any("failed" in answer for answer in answers)
    }
    base, made = found.get(BASE, {}), []
    for name, answers in found.items():
        both = [seed for seed in answers if seed in base]
        if both:
            nlls = tuple(answers[seed]["nll"] for seed in both)
            apart = [answers[seed]["nll"] - base[seed]["nll"] for seed in both]
            steps = answers[both[0]]["steps"]
            made.append(Row(name, statistics.fmean(nlls), deviation(nlls), statistics.fmean(apart), deviation(apart),
                            steps, nlls))  # fmt: skip
    return sorted(made, key=lambda row: (row.name != BASE, -row.apart))


def deviation(values: Any) -> float:
    """NaN for a single value, which says nothing about it."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def digits(deviation: float) -> str:
    return "-" if math.isnan(deviation) else f"{deviation:.4f}"


def table(report: dict[str, Any]) -> list[str]:
    """Lines for a terminal."""
    made: list[tuple[str, ...]] = [("", "nll", "sd", "against the recipe", "sd", "steps")]
    for row in rows_of(report):
        made.append((row.name, f"{row.nll:.4f}", digits(row.spread), f"{row.apart:+.4f}", digits(row.apart_spread),
                     str(row.steps)))  # fmt: skip
    quick = [QUICK] if report["settings"]["quick"] else []
    return ["", *quick, *columns(made), *([""] * bool(swept(report))), *swept(report), *failures(report)]


def swept(report: dict[str, Any]) -> list[str]:
    """A line for each sweep: what was tried with what came of it, and the best by a parabola through three."""
    found = [(*name.rsplit(" ", 1), answers[0]["nll"]) for name, answers in report["answers"].get(SWEEP, {}).items()
             if "nll" in answers[0]]  # fmt: skip
    lines = []
    for name, members in groupby(found, key=lambda each: each[0]):
        points = [(float(value), nll) for _, value, nll in members]
        best = f"; best {vertex(points):.3g}" if len(points) == 3 else ""
        lines.append(f"{name}: {', '.join(f'{value:g} {nll:.4f}' for value, nll in points)}{best}")
    return lines


def vertex(points: list[tuple[float, float]]) -> float:
    """Where a parabola through three points over the logarithm of x is lowest; an end of them if it has no bottom."""
    (a, fa), (b, fb), (c, fc) = ((math.log(x), y) for x, y in points)
    bend = ((fc - fb) / (c - b) - (fb - fa) / (b - a)) / (c - a)
    if bend <= 0:
        return min(points, key=lambda point: point[1])[0]
    lowest = (a + b) / 2 - (fb - fa) / (b - a) / (2 * bend)
    return math.exp(min(max(lowest, a), c))


def draw(report: dict[str, Any], path: Path) -> None:
    found = [Dots(row.name, row.values, row.name == BASE) for row in rows_of(report)]
    if found:
        told = "validation nll at the end, nats per character; points are seeds, bars one standard deviation"
        told = f"{QUICK}; {told}" if report["settings"]["quick"] else told
        dots(found, path, "What each lever of the recipe is worth", told)


def page(report: dict[str, Any]) -> str:
    """docs/recipe.md."""
    what = {lever.name: lever.what for lever in LEVERS} | {BASE: "as it is"}
    made = rows_of(report)
    lines = [
        f"| {row.name} | {what.get(row.name, '')} | {row.nll:.4f} | {digits(row.spread)} | {row.apart:+.4f} "
        f"| {digits(row.apart_spread)} | {row.steps} |"
        for row in made
    ]
    sweeps = "\n".join(f"- {line}" for line in swept(report)) or "(not measured: `--sweep`)"
    seeds = max((len(row.values) for row in made), default=0)
    return PAGE.format(
        quick=f"\n**{QUICK}**\n" if report["settings"]["quick"] else "", told=report["told"], date=report["date"],
        seeds=seeds, rows="\n".join(lines), sweeps=sweeps, command=report["command"],
        failed="".join(f"\n{line}\n" for line in failures(report)),
    )  # fmt: skip


PAGE = """\
# The recipe

What the parts of [configs/speedrun.yaml](../configs/speedrun.yaml) are worth, and what `auto` means.
{quick}
## Every lever

Each row is the speedrun with one thing changed: characters of Shakespeare, a model of 4 layers and 128 wide, the nll in
nats per character over the whole validation split at the end. Mean and standard deviation (sd) of {seeds} seeds; the
difference is taken between runs of the same seed; with 3 seeds one of less than 2.5 times its sd is nothing (Student's
t at 95 %), and one row in twenty passes that by chance. All rows take the same number of steps, but for those that say
otherwise, and stand in order of the difference.

| lever | what is changed | nll | sd | against the recipe | sd | steps |
|---|---|--:|--:|--:|--:|--:|
{rows}
{failed}
![Means and spreads](recipe.png)

`{command} --out docs` wrote this page, recipe.json and recipe.png on {date}: {told}. With `--resume` it
goes on where it was cut off.

## What `auto` means

`optim.rates` (all or each of its four) and `train.batch_tokens` are `auto` unless given: a config that says only how
large the model is and how long it is trained gets the values of [trainer/rules.py](../trainer/rules.py). Loading a
config puts the numbers in their place, so `--print-config`, `--dry-run` and a run's `config.yaml` show them, and that
file alone repeats the run. A run with a checkpoint keeps the numbers of its last start, also when it is made longer.

| value | rule |
|---|---|
| `rates.matrix` | 0.04 under Muon; 0.006 min(1, 128 / dim) under AdamW |
| `rates.embed` | 0.1 max(1, ids / 128)^(1/3); as `rates.head` where the embedding is the head too |
| `rates.head` | 0.03 min(1, 128 / dim) |
| `rates.vector` | 0.01 |
| `train.batch_tokens` | 7.3 D^0.383 for D tokens, in whole rows; 8192 where `train.epochs` says how long |

The exponent of the batch is that of [Bergsma et al.](https://arxiv.org/abs/2505.13738); it asks for few tokens, not for
little time, and larger steps are faster per token. The ids are those of the config: `data.tokenizer.train.vocab_size`,
128 for bytes and characters, 32,768 for a tokenizer in a file. The power is what 200 steps of the quickstart (4,096
ids) tell: there 0.3 for the embedding ended at 4.44 nats per token and 0.1 at 4.53. The rest was chosen by hand after
sweeps of the speedrun, one seed each: a place to begin, not an optimum. The nll of each value, and where a parabola
through three of them over the logarithm is lowest, or the end of the range where that lies outside:

{sweeps}

**Scale of Muon's updates.** An orthogonalized update of R rows and C columns is multiplied by sqrt(max(1, R / C)), and
the best rate moves little with the width. With 0.2 sqrt(max(R, C)) ([Moonlight](https://arxiv.org/abs/2502.16982)),
which keeps the size of an element of the update, the same updates need half of the rate at four times the width.

**Momentum.** By default Muon's momentum rises from 0.85 to 0.95 over 300 steps: short runs gain from the lower values,
and in long ones the rise is soon over.
"""
