"""What `python -m scripts.bench data` tells: tables and a picture, all from what bench_data.json holds."""

import statistics
from pathlib import Path
from typing import Any

from .data_contest import OURS, RAW, RECIPE
from .measuring import columns
from .picture import Bar, rates

AIM_RECIPE = 5.0
"""What this project aims at for tokenizing in two processes, in times of the datasets.map recipe."""
AIM_RAW = 0.8
"""The same, as a share of twice the rate of tiktoken alone in one process."""
AIM_LOADING = 50.0
"""Tokens that the loader gives, in times of what the quickstart takes."""
AIM_STARTUP = 1.0
"""Seconds of data set-up on a prepared corpus of a million documents."""


def speeds(report: dict[str, Any]) -> dict[str, float]:
    """Median bytes a second of each encoder that gave an answer, and the right number of tokens."""
    right = tokens(report)
    return {
        name: report["corpus"]["bytes"] / statistics.median(answer["seconds"] for answer in answers)
        for name, answers in report["encode"].items()
        if all(answer.get("tokens") == right for answer in answers)
    }


def tokens(report: dict[str, Any]) -> int:
    """What tiktoken alone, or else the first encoder, makes of the corpus."""
    answers = report["encode"].get(RAW) or next(iter(report["encode"].values()))
    return answers[0].get("tokens", 0)


def tables(report: dict[str, Any]) -> list[str]:
    """Lines of all that was measured."""
    return [*_encoding(report), "", *_aims(report), "", *_packing(report), "", *_rest(report)]


def _encoding(report: dict[str, Any]) -> list[str]:
    corpus, count, found = report["corpus"], tokens(report), speeds(report)
    rows, notes = [("tokenizing", "MB/s", "tokens/s", "peak", "spread")], []
    for name, answers in report["encode"].items():
        failed = next((answer["failed"] for answer in answers if "failed" in answer), None)
        if name not in found:
            notes.append(f"failed  {name}: {failed}" if failed else f"wrong   {name}: {answers[0]['tokens']:,} tokens")
            continue
        seconds = [answer["seconds"] for answer in answers]
        spread = (max(seconds) - min(seconds)) / statistics.median(seconds)
        peaks = [answer["peak"] for answer in answers if answer["peak"]]
        peak = f"{max(peaks) / 2**20:,.0f} MiB" if peaks else "-"
        rate = found[name]
        rows.append((name, f"{rate / 1e6:.2f}", f"{rate * count / corpus['bytes']:,.0f}", peak, f"{spread:.0%}"))
    repeats = report["settings"]["repeats"]
    what = f"{corpus['documents']:,} documents, {corpus['bytes'] / 1e6:.1f} MB, {count:,} tokens; medians of {repeats}"
    return ["", what, *columns(rows), *notes]


def _aims(report: dict[str, Any]) -> list[str]:
    """Each aim, what it came to, and whether it was met."""
    found, loads = speeds(report), report["loading"]
    rows = [("aim", "wanted", "found", "")]
    if OURS in found and RECIPE in found:
        rows.append(_aim("tokenizing / the datasets.map recipe", AIM_RECIPE, found[OURS] / found[RECIPE]))
    if OURS in found and RAW in found:
        rows.append(_aim("tokenizing / 2 x tiktoken alone", AIM_RAW, found[OURS] / found[RAW] / 2))
    slowest = min(load["tokens"] / load["seconds"] for load in loads.values())
    rows.append(_aim("loading / the quickstart's consumption", AIM_LOADING, slowest / report["consumption"]))
    start = report["startup"]
    met = "met" if start["seconds"] <= AIM_STARTUP else "missed"
    what = f"start-up with {start['documents']:,} documents, s"
    return columns([*rows, (what, f"<= {AIM_STARTUP:g}", f"{start['seconds']:.2f}", met)])


def _aim(what: str, wanted: float, value: float) -> tuple[str, str, str, str]:
    return what, f">= {wanted:g}", f"{value:.2f}", "met" if value >= wanted else "missed"


def _packing(report: dict[str, Any]) -> list[str]:
    rows = [("packing, rows of 2048", "pieces/s", "rows", "padding", "lost")]
    for mode, row in report["packing"]["modes"].items():
        rate = f"{row['pieces'] / row['seconds']:,.0f}"
        rows.append((mode, rate, f"{row['rows']:,}", f"{row['padding']:.3%}", f"{row['lost']:.2%}"))
    return columns(rows)


def _rest(report: dict[str, Any]) -> list[str]:
    rows = [("loading", "tokens/s", "of the quickstart's")]
    for name, load in report["loading"].items():
        rate = load["tokens"] / load["seconds"]
        shape = f"{name}: {load['rows']} x {load['context']}"
        rows.append((shape, f"{rate:,.0f}", f"{rate / report['consumption']:,.0f}x"))
    start, many, whole = report["startup"], report["many"], report["preparing"]
    lines = [
        f"preparing the corpus, with training of its tokenizer: {whole['seconds']:.1f} s, {_peak(whole)}",
        f"preparing {many['documents']:,} short documents, as bytes: {many['seconds']:.1f} s, {_peak(many)}",
        f"opening them again: {start['opened']:.2f} s, first batch after {start['seconds']:.2f} s, {_peak(start)}",
    ]
    return [*columns(rows), "", *lines]


def _peak(answer: dict[str, Any]) -> str:
    return f"peak {answer['peak'] / 2**20:,.0f} MiB" if answer["peak"] else "peak unknown"


def draw(report: dict[str, Any], path: Path) -> None:
    """The picture: a bar for each encoder, the fastest first."""
    found = sorted(speeds(report).items(), key=lambda item: -item[1])
    corpus = report["corpus"]
    rates(
        [Bar(name, rate / 1e6, name.startswith("ours")) for name, rate in found], path,
        "Tokenizing, MB of text a second",
        f"{corpus['documents']:,} documents, {corpus['bytes'] / 1e6:.0f} MB of Python, as many tokens from each; "
        f"{report['told'].rpartition('; ')[0]}",
    )  # fmt: skip
