"""What `auto` means for sizes of the optimizer: pure functions of model and run. No torch.

Fitted to short runs of the qwen3 preset, of 172 to 250 thousand tokens, mostly one seed each: a place to begin, not an
optimum, and least of all for the table of positions in gpt2, which takes the embedding's rate.
`python -m scripts.bench recipe --sweep` measures what each number rests on.
"""

from .config import Rates

ANY_BATCH = 8192
"""Tokens of a step where the length of the run is not known."""


def batch_tokens(context: int, tokens: int | None, steps: int | None) -> int:
    """Tokens of a step for a run of so many tokens or, where that is None, steps; whole rows.

    7.3 D^0.383 of D tokens: the exponent of Bergsma et al. 2025 (arXiv:2505.13738), and what was the largest batch here
    that needs hardly more tokens than a smaller one. D of S steps is S times the batch itself.
    """
    wanted, scale, power = float(ANY_BATCH), 7.3, 0.383
    if tokens is not None:
        wanted = scale * tokens**power
    elif steps is not None:
        wanted = (scale * steps**power) ** (1 / (1 - power))
    return context * max(1, round(wanted / context))


def rates(optimizer: str, dim: int, tie: bool, vocabulary: int) -> Rates:
    """Peak rates by role for a model `dim` wide of a vocabulary of about so many ids.

    Muon's updates are scaled by shape (`trainer.muon.shape_factor`), so that its rate is the same for all widths; that
    of a head, whose inputs grow in number, falls as 1 / dim, and a tied embedding is a head too. AdamW moves each
    weight of a matrix by its rate whatever the width: there it falls as well. The more ids there are, the fewer steps
    each one's embedding has.
    """
    narrow = min(1.0, 128 / dim)
    head = 0.03 * narrow
    embed = 0.1 * max(1.0, vocabulary / 128) ** (1 / 3)
    matrix = 0.04 if optimizer == "muon" else 0.006 * narrow
    found = {"matrix": matrix, "embed": head if tie else embed, "head": head, "vector": 0.01}
    return Rates(**{role: float(f"{rate:.2g}") for role, rate in found.items()})  # more digits would mean nothing
