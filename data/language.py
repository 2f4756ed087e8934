"""Which language a text is in, by an optional library."""


def detect(text: str) -> str:
    """The ISO 639-1 code of a text's language. Raises DataError when the library is not installed."""
    raise NotImplementedError
