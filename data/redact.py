"""Personal data out of texts: e-mail addresses and public IP addresses become reserved ones."""

from collections.abc import Sequence


def redact(text: str, kinds: Sequence[str]) -> tuple[str, int]:
    """(the text without what `kinds` name, how many places were changed)."""
    raise NotImplementedError
