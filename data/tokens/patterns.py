"""Regular expressions that cut text before merges, written so that Oniguruma and Rust's regex agree on them."""

_UPPER, _LOWER, _UNCASED = r"\p{Lu}\p{Lt}", r"\p{Ll}", r"\p{Lm}\p{Lo}\p{M}"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's: numbers whole, line ends apart from punctuation."""
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}{_UNCASED}]*[{_LOWER}{_UNCASED}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}{_UNCASED}]+[{_LOWER}{_UNCASED}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""GPT-4o's: words are also cut where lower case ends."""


def gpt4(digits: int = 3) -> str:
    """GPT-4's, with digits in groups of at most so many."""
    return (
        r"'(?i:[sdmt]|ll|ve|re)"  # English contractions
        r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word with the one character before it
        rf"|\p{{N}}{{1,{digits}}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation, with the line end after it
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends, indentation, other space
    )


BY_NAME = {"gpt2": GPT2, "gpt4": gpt4(), "o200k": O200K}
AGREED = frozenset((*BY_NAME.values(), gpt4(1), gpt4(2)))
"""Those that are known to cut every character alike in both libraries."""
_SPACE = r"|\s+(?!\S)|\s+"  # how all of them end


def for_tiktoken(pattern: str) -> str:
    """The same pattern as tiktoken matches it fastest; one that is not known is left alone.

    Since one alternative looks ahead, tiktoken tries all of them one by one in a backtracking machine. Those before it
    as one group are left to a finite automaton, which makes encoding a sixth faster.
    """
    return f"(?:{pattern.removesuffix(_SPACE)}){_SPACE}" if pattern in AGREED else pattern
