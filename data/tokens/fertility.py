"""How well a tokenizer fits a prepared corpus: bytes for each token, ids that nothing uses, tokens for each word."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..prepared import Prepared

_DOCUMENTS, _TOKENS = 200, 2000
"""What is read of each language: so many documents, of each at most so many tokens."""
_SHOWN = 20
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = frozenset(("zh", "ja", "th", "lo", "km", "my", "bo", "dz"))
"""Languages that put no space between words (ISO 639-1)."""


@dataclass(frozen=True)
class SourceSize:
    """One source as it was read; `tokens` without end tokens."""

    name: str
    documents: int
    bytes: int
    tokens: int


@dataclass(frozen=True)
class Fertility:
    """Tokens that a language takes, from a sample. `per_word` is None where no spaces part words."""

    name: str
    documents: int
    per_word: float | None
    per_character: float


@dataclass(frozen=True)
class Report:
    """What `lines` prints."""

    vocab_size: int
    sources: tuple[SourceSize, ...]
    unused: int
    """Ids that stand for text and are no target of any training row."""
    unused_examples: tuple[str, ...]
    longest: tuple[str, ...]
    """The tokens with the most bytes, longest first."""
    by: str
    """What `fertility` is told apart by: language or source."""
    fertility: tuple[Fertility, ...]


def tokenizer_report(prepared: Prepared) -> Report:
    """Counts are of the whole corpus, fertility of a sample of it."""
    store, pieces = prepared.store, prepared.tokenizer.pieces
    sizes: dict[str, list[int]] = {}
    for shard in store.shards:
        total = sizes.setdefault(shard.source, [0, 0, 0])
        for i, value in enumerate((shard.documents, shard.bytes, shard.tokens)):
            total[i] += value
    counts = prepared.token_counts()
    unused = [i for i, piece in enumerate(pieces) if piece and not counts[i]]
    longest = sorted((i for i, piece in enumerate(pieces) if piece), key=lambda i: (-len(pieces[i]), i))
    by, groups = _groups(prepared)
    return Report(
        vocab_size=len(pieces),
        sources=tuple(SourceSize(name, *size) for name, size in sizes.items()),
        unused=len(unused),
        unused_examples=tuple(_shown(pieces[i]) for i in unused[:_SHOWN]),
        longest=tuple(_shown(pieces[i]) for i in longest[:_SHOWN]),
        by=by,
        fertility=tuple(_fertility(prepared, name, documents) for name, documents in groups),
    )


def _groups(prepared: Prepared) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """(language or source, the documents of each: indices in store order); no empty ones."""
    store = prepared.store
    if "language" in store.label_names:
        code, names = store.label("language")
        return "language", [
            (name or "unknown", found)
            for i, name in enumerate((*names, ""))  # the last one is for those without
            if len(found := np.flatnonzero(code == (i if i < len(names) else -1)))
        ]
    source = np.repeat([shard.source for shard in store.shards], [shard.documents for shard in store.shards])
    return "source", [(name, found) for name in prepared.source_names if len(found := np.flatnonzero(source == name))]


def _fertility(prepared: Prepared, name: str, documents: np.ndarray) -> Fertility:
    """Of some documents, from all over them."""
    chosen = documents[np.unique(np.linspace(0, len(documents) - 1, _DOCUMENTS).astype(np.int64))]
    tokens = words = characters = 0
    for ids in _ids(prepared, chosen):
        text = prepared.tokenizer.decode(ids)
        tokens += len(ids)
        words += len(_WORD.findall(text))
        characters += len(text)
    spaced = re.split("[-_]", name.lower())[0] not in _UNSPACED
    return Fertility(name, len(chosen), tokens / max(words, 1) if spaced else None, tokens / max(characters, 1))


def _ids(prepared: Prepared, documents: np.ndarray) -> Iterator[list[int]]:
    """The first tokens of some documents."""
    store = prepared.store
    ends = np.cumsum([0, *(shard.documents for shard in store.shards)])
    offsets = store.column("offsets")
    for document in documents.tolist():
        shard = int(np.searchsorted(ends, document, "right")) - 1
        start, stop = offsets[shard][document - ends[shard] :][:2].tolist()
        yield store.tokens(shard)[start + 1 : min(stop, start + 1 + _TOKENS)].tolist()


def _shown(piece: bytes) -> str:
    """A token's text on one line, in quotes; bytes that are no text on their own as `\\\\xff`."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)[1:]


def lines(report: Report) -> list[str]:
    """The report, a fact a line."""
    ordinary = f"{report.unused:,} of {report.vocab_size:,} ids ({report.unused / report.vocab_size:.1%})"
    examples = f", such as {' '.join(report.unused_examples[:5])}" if report.unused else ""
    printed = [f"unused      {ordinary} are no target of a training row{examples}"]
    for size in report.sources:
        rate = size.bytes / max(size.tokens, 1)
        printed.append(
            f"source      {size.name}: {rate:.2f} bytes/token, {size.documents:,} documents, "
            f"{size.bytes:,} bytes, {size.tokens:,} tokens"
        )
    for fertility in report.fertility:
        per_word = "" if fertility.per_word is None else f"{fertility.per_word:.2f} tokens/word, "
        printed.append(
            f"{report.by:<11} {fertility.name}: {per_word}{fertility.per_character:.3f} tokens/character, "
            f"from {fertility.documents:,} documents"
        )
    return [*printed, f"longest     {' '.join(report.longest)}"]
