"""The one error that bad input to this package raises."""


class DataError(ValueError):
    """Sources, a tokenizer or a data config that cannot be used: one line, saying what would work."""
