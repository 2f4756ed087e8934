"""Which language a text is in, by an optional library (Lui and Baldwin, 2012; py3langid)."""

import functools
from collections.abc import Callable

from ..errors import DataError

UNKNOWN = "und"
"""ISO 639 for a text whose language cannot be told."""
_PREFIX = 2000  # characters that are looked at


def detect(text: str) -> str:
    """The ISO 639-1 code of the language of a text's start, or `und` when no letter is in it. Raises DataError when
    the library is not installed."""
    prefix = text[:_PREFIX]
    if not any(map(str.isalpha, prefix)):
        return UNKNOWN
    language, _ = _classifier()(prefix)
    return language


@functools.cache
def _classifier() -> Callable[[str], tuple[str, float]]:
    try:
        from py3langid import classify
    except ImportError:
        advice = "`pip install -e .[language]`, or set it to false"
        raise DataError(f"data.detect_language needs py3langid: {advice}") from None
    return classify
