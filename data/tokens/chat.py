"""Conversations as tokens: how turns are spelled, and which tokens are targets.

    chatml   <|im_start|>role\\n content <|im_end|>\\n      without the spaces; two special tokens for each turn
    plain    role: content\\n\\n                          ordinary tokens only

Targets are the content of the turns to train on and what ends them: `<|im_end|>`, or the empty line. Each part is
encoded on its own, so that none of its tokens reaches into another, and as ordinary text: what somebody says cannot
spell a special token.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..documents import Document, Turn
from ..errors import DataError
from ..tokenizer import CHATML, Tokenizer


@dataclass(frozen=True)
class _Part:
    """Text, or the name of a special token."""

    text: str
    special: bool = False
    target: bool = False


def _parts(turns: Sequence[Turn], template: str, train_on: Sequence[str]) -> Iterator[_Part]:
    """A conversation as it is spelled."""
    start, end = CHATML
    for turn in turns:
        target = turn.role in train_on
        if template == "chatml":
            yield from (_Part(start, special=True), _Part(f"{turn.role}\n"), _Part(turn.text, target=target))
            yield from (_Part(end, special=True, target=target), _Part("\n"))
        else:
            yield from (_Part(f"{turn.role}: "), _Part(turn.text, target=target), _Part("\n\n", target=target))


def ordinary_text(document: Document, template: str) -> str:
    """All text of a document that is encoded: of a conversation, with its roles."""
    if not document.turns:
        return document.text or ""
    return "".join(part.text for part in _parts(document.turns, template, ()) if not part.special)


def encode_chat(
    turns: Sequence[Turn],
    template: str,
    train_on: Sequence[str],
    tokenizer: Tokenizer,
    encode: Callable[[str], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask): the ids of a conversation, and for each whether it is a target, bool of the same length.

    Raises DataError when the tokenizer lacks a special token of the template.
    """
    ids, targets = [np.zeros(0, np.uint32)], [False]
    for part in _parts(turns, template, train_on):
        if part.special and part.text not in tokenizer.specials:
            raise DataError(f"the tokenizer has no {part.text}, which the template {template} needs")
        ids.append(np.array([tokenizer.specials[part.text]]) if part.special else encode(part.text))
        targets.append(part.target)
    return np.concatenate(ids), np.repeat(targets, [len(own) for own in ids])


def chat_prompt(said: str, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """(ids of a chatml conversation up to where the answer to `said` begins, the id that ends the answer).

    Raises DataError when the tokenizer lacks the special tokens of chatml.
    """
    ids, _ = encode_chat([Turn("user", said)], "chatml", (), tokenizer, tokenizer.encode_array)
    start, end = (tokenizer.specials[name] for name in CHATML)
    return [*ids.tolist(), start, *tokenizer.encode("assistant\n")], end
