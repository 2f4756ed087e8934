"""What is measured of every text while it is encoded, as columns of the store that bounds are held against."""

from collections.abc import Sequence

import numpy as np


def measure(texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """One float32 array (documents,) for each statistic of UTF-8 texts."""
    return {"chars": np.array([len(raw.decode()) for raw in texts], np.float32)}
