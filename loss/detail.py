"""Numbers that cost another pass over the vocabulary: `detail=True` sums them, `metrics` makes means of the sums."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .rows import Rows, sum_dtype

BINS = 15
"""Equal bins of confidence for the calibration error (Guo et al. 2017, arXiv:1706.04599)."""
DECILES = 10
PLACES = 24
"""Bins of position: 0, 1, 2-3, 4-7, ... tokens after the document's beginning."""
WORST = 10


def decile_of(counts: Tensor) -> Tensor:
    """int64 (V,): for each id its tenth of the corpus, 0 the rarest ids; each tenth holds about as many tokens."""
    order = counts.argsort(stable=True)
    ranked = counts[order].double()
    middle = ranked.cumsum(0) - ranked / 2
    place = (DECILES * middle / ranked.sum().clamp_min(1)).long().clamp_max(DECILES - 1)
    return torch.empty_like(place).index_copy_(0, order, place)


def detail_sums(values: Mapping[str, Tensor], rows: Rows, deciles: Tensor | None) -> dict[str, Tensor]:
    """Sums over rows: `entropy` and `top5`, and by bins `calibration/...`, `decile/...` and `position/...`.

    The last two where there are corpus counts, and an input `position`.
    """
    valid = rows.valid[:, 0]
    exact = sum_dtype(valid.device)
    nll, correct = values["nll"], values["correct"]

    def binned(index: Tensor, bins: int, **what: Tensor) -> dict[str, Tensor]:
        empty = torch.zeros(bins, dtype=exact, device=index.device)
        return {name: empty.index_add(0, index, x.to(exact)) for name, x in what.items()}

    sums = {"entropy": values["entropy"].sum(dtype=exact), "top5": ((values["rank"] < 5) & valid).sum(dtype=exact)}
    confidence = values["confidence"]
    by_bin = binned(
        (confidence * BINS).long().clamp_max(BINS - 1), BINS, tokens=valid, confidence=confidence, correct=correct
    )
    sums |= {f"calibration/{name}": x for name, x in by_bin.items()}
    if deciles is not None:
        by_decile = binned(deciles[rows.targets[:, 0]], DECILES, tokens=valid, nll=nll)
        sums |= {f"decile/{name}": x for name, x in by_decile.items()}
    if "position" in rows.inputs:
        edges = 2 ** torch.arange(PLACES - 1, device=valid.device)
        place = torch.bucketize(rows.inputs["position"], edges, right=True)
        sums |= {f"position/{name}": x for name, x in binned(place, PLACES, tokens=valid, nll=nll).items()}
    return sums


def worst(nll: Tensor, count: int = WORST) -> dict[str, Tensor]:
    """The largest `nll` of a batch, worst first, and their `index` into the flattened batch."""
    flat = nll.flatten()
    values, index = flat.topk(min(count, len(flat)))
    return {"nll": values, "index": index}


def place_name(place: int) -> str:
    """Positions of a bin: `0`, `1`, `2-3`, ..."""
    low, high = (1 << place) >> 1, (1 << place) - 1
    return str(low) if low == high or place == 0 else f"{low}-{high}"
