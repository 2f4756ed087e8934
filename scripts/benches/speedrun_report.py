"""What `python -m scripts.bench speedrun` tells, all from what bench_speedrun.json holds."""

from pathlib import Path
from typing import Any

from .measuring import QUICK, Aim, aim_lines, columns, failures, medians, spread, subtitle
from .picture import Bar, rate_panels
from .speedrun import AS_WRITTEN, FIRST, PREPARED, SWEEP, TARGET, TUNED, WALL, chosen

TIMES = 8.0
"""What this project aims at for the README recipe, in times of ours."""
NOTES = """\
wall      of the whole process, from start to exit, median of the rounds; ours with another seed in each
nll       nats per character over the whole validation split (the last 10 % of the text), the worst of the rounds;
          ours as its metrics.jsonl tells, nanoGPT's of its ckpt.pt in windows of a block side by side
prepared  ours on a corpus that was tokenized before, as nanoGPT's data are by its prepare.py: the ratio that is
          quoted; first start: tokenizing is in the time too
bf16      nanoGPT's train.py has no autocast on a CPU whatever its dtype: here its copy has it
best rate the fewest of 500, 750, 1000, 1500 and 2000 iterations at which one of four rates reaches the loss, and the
          rate that is best there; all else, warm-up and evaluations too, as its README has it"""


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each entrant, the fastest first."""
    answers = report["answers"].get(WALL, {})
    seconds = medians(answers, "seconds")
    rows: list[tuple[str, ...]] = [("", "wall", "spread", "worst nll", "steps", "/ ours, prepared", "/ ours, first")]
    for name, taken in sorted(seconds.items(), key=lambda item: item[1]):
        ratios = (f"{taken / seconds[ours]:.2f}x" if ours in seconds else "-" for ours in (PREPARED, FIRST))
        rows.append((
            name, f"{taken:.2f} s", f"{spread([answer['seconds'] for answer in answers[name]]):.0%}",
            f"{worst(report, name):.4f}", str(answers[name][0].get("steps", "-")), *ratios,
        ))  # fmt: skip
    return rows


def worst(report: dict[str, Any], name: str) -> float:
    """The highest nll of an entrant's rounds; NaN when one has none."""
    found = [answer.get("nll", float("nan")) for answer in report["answers"][WALL][name]]
    return float("nan") if any(nll != nll for nll in found) else max(found)


def aims(report: dict[str, Any]) -> list[Aim]:
    """What was aimed at, and what was found: a time counts where every round reached the loss."""
    if report["settings"]["quick"] or report["settings"]["text"]:  # whose loss is another
        return []
    seconds = medians(report["answers"].get(WALL, {}), "seconds")
    made = [
        Aim(f"wall time of {AS_WRITTEN} / {ours}", TIMES, seconds[AS_WRITTEN] / seconds[ours])
        for ours in (PREPARED, FIRST)
        if ours in seconds and AS_WRITTEN in seconds and worst(report, ours) <= TARGET
    ]
    made += [Aim(f"worst nll of {ours}", TARGET, worst(report, ours), True) for ours in (PREPARED, FIRST)
             if ours in seconds]  # fmt: skip
    return made


def tried(report: dict[str, Any]) -> list[str]:
    """What the sweep found: a row for each number of iterations."""
    answers = [answer for each in report["answers"].get(SWEEP, {}).values() for answer in each if "nll" in answer]
    if not answers:
        return []
    rates = sorted({answer["rate"] for answer in answers})
    rows: list[tuple[str, ...]] = [("nanoGPT, bf16: nll by iterations and rate", *(f"{rate:g}" for rate in rates))]
    for count in sorted({answer["iterations"] for answer in answers}):
        nlls = {answer["rate"]: f"{answer['nll']:.4f}" for answer in answers if answer["iterations"] == count}
        rows.append((str(count), *(nlls.get(rate, "-") for rate in rates)))
    best = chosen(report)
    told = f"{TUNED}: {best[0]} iterations at {best[1]:g}" if best else f"no rate reaches {TARGET}"
    return ["", *columns(rows), told]


def tables(report: dict[str, Any]) -> list[str]:
    """Lines of all that was measured."""
    quick = [QUICK] * report["settings"]["quick"]
    return ["", *quick, *columns(table(report)), *tried(report), *aim_lines(aims(report)), "", NOTES,
            *failures(report)]  # fmt: skip


def draw(report: dict[str, Any], path: Path) -> None:
    """The picture: a bar for each entrant, the fastest first."""
    text = Path(report["settings"]["text"] or "tinyshakespeare").stem
    seconds = medians(report["answers"].get(WALL, {}), "seconds")
    found = [
        Bar(f"{name} (nll {worst(report, name):.3f})", s, name.startswith("ours"))
        for name, s in sorted(seconds.items(), key=lambda item: item[1])
    ]
    if found:
        rate_panels(
            {"": found}, path, "Seconds of a whole process, and the worst validation nll that it ends with",
            subtitle(report, f"characters of {text}, 4 layers, 128 wide, block 64"),
        )  # fmt: skip
