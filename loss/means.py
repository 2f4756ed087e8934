"""From sums to means: the only place where that happens."""

import math
from collections.abc import Mapping
from typing import Any

from .detail import place_name


def metrics(sums: Mapping[str, Any]) -> dict[str, float]:
    """Means from sums over any number of batches and ranks, each a number, a tensor or, by bins, a list.

    nll       nats per target, plain and unweighted
    ppl       exp(nll)
    accuracy  share of targets that were the most likely id
    loss      weighted objective per target, and `term/...` what each of its parts adds, unweighted
    bpb       bits per UTF-8 byte, from `nll_text` (nats on targets that have bytes) and `bytes`, when given

    and from the sums of `detail`

    top5, entropy                       share among the five likeliest; nats
    ece                                 expected calibration error of the likeliest id
    nll/decile_<i>, nll/position_<a-b>  by frequency of the target (0 rarest), and by place in the document
    share/<term>                        each term's share of the sum of their sizes

    Without a target every mean is NaN.
    """
    bins = {name: _numbers(value) for name, value in sums.items() if "/" in name and not name.startswith("term/")}
    have = {name: float(value) for name, value in sums.items() if name not in bins}
    tokens = have.pop("tokens")
    text, size = have.pop("nll_text", None), have.pop("bytes", None)
    means = {name: value / tokens if tokens else math.nan for name, value in have.items()}
    if "correct" in means:
        means["accuracy"] = means.pop("correct")
    means["ppl"] = _exp(means["nll"])
    if text is not None and size is not None:
        means["bpb"] = text / (math.log(2) * size) if size else math.nan
    if "entropy" in means:
        means |= _shares(means)
    if bins:
        means |= _binned(bins, tokens)
    return means


def reliability(sums: Mapping[str, Any]) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, targets) of each bin of confidence that has any, from the sums of `detail`.

    Raises ValueError for sums without them.
    """
    if "calibration/tokens" not in sums:
        raise ValueError("these sums have no bins of confidence: call the objective with detail=True")
    columns = (_numbers(sums[f"calibration/{name}"]) for name in ("confidence", "correct", "tokens"))
    return [(sure / n, right / n, int(n)) for sure, right, n in zip(*columns, strict=True) if n]


def _binned(bins: Mapping[str, list[float]], tokens: float) -> dict[str, float]:
    means: dict[str, float] = {}
    if "calibration/tokens" in bins:
        gaps = zip(bins["calibration/confidence"], bins["calibration/correct"], strict=True)
        means["ece"] = sum(abs(sure - right) for sure, right in gaps) / tokens if tokens else math.nan
    for kind, name in (("decile", str), ("position", place_name)):
        if f"{kind}/tokens" in bins:
            pairs = zip(bins[f"{kind}/nll"], bins[f"{kind}/tokens"], strict=True)
            means |= {f"nll/{kind}_{name(i)}": nll / n for i, (nll, n) in enumerate(pairs) if n}
    return means


def _shares(means: Mapping[str, float]) -> dict[str, float]:
    sizes = {name.removeprefix("term/"): abs(x) for name, x in means.items() if name.startswith("term/")}
    total = sum(sizes.values())
    return {f"share/{name}": size / total if total else math.nan for name, size in sizes.items()}


def _numbers(value: Any) -> list[float]:
    return [float(x) for x in (value.tolist() if hasattr(value, "tolist") else value)]


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf
