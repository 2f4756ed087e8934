"""Losses of one's own, named in YAML as `my_losses.py:phuber`.

Positional parameters say what a loss reads, keyword-only ones are its options in YAML, with their ranges.
"""

import math
from typing import Annotated

from annotated_types import Gt
from torch import Tensor


def phuber(lp: Tensor, *, tau: Annotated[float, Gt(1)] = 1000.0) -> Tensor:
    """Partially Huberized cross-entropy (Menon et al. 2020, "Can gradient clipping mitigate label noise?").

    -log p, but below p = 1 / tau its tangent, log tau + 1 - tau p: no target costs more than log tau + 1.
    """
    tangent = math.log(tau) + 1 - tau * lp.exp()
    return tangent.where(lp < -math.log(tau), -lp)
