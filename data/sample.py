"""Deterministic samples of a corpus: to train its tokenizer, to list its characters, to verify an encoder."""

import hashlib
from collections.abc import Iterator, Sequence

from .config import TokenizerConfig
from .errors import DataError
from .sources import Task, read
from .tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, load_file, train

CHUNK = 1 << 16
"""Characters that are drawn together: a long document is sampled throughout, not only at its start."""
_TASKS, _SPREAD = 16, 8
"""The tokenizer's sample comes from at least so many tasks of a source, or all, and from so many times its bytes."""
_VERIFY_TASKS, _VERIFY_DOCUMENTS, _VERIFY_CHARACTERS = 16, 12, 20_000


def make_tokenizer(config: TokenizerConfig, tasks: Sequence[Task], progress: bool) -> Tokenizer:
    """The tokenizer that a config asks for. Held-out sources are not learned from, except which characters exist."""
    if config.file is not None:
        return load_file(config.file)
    if config.level == "byte":
        return byte_tokenizer()
    if config.level == "char":
        characters: set[str] = set()
        for task in tasks:
            for document in read(task):
                characters.update(document.text or "")
        return char_tokenizer(characters)
    if config.train is None:
        raise DataError("data.tokenizer needs exactly one of train, file, level")
    return train(_with_bar(training_sample(tasks, config.train.sample_bytes), progress), config.train.vocab_size)


def training_sample(tasks: Sequence[Task], sample_bytes: int) -> Iterator[str]:
    """Chunks of the training sources, about `sample_bytes` in all, drawn by a hash of their place in the corpus.

    Every source gives in proportion to its size; one whose size is unknown counts as one sample. What a `hash` or
    `tail` split will hold out is drawn from like the rest, since the split is made later and may change: the
    tokenizer's merges, though nothing else, are learned from held-out text too. `split.sources` are left out.
    """
    by_source: dict[str, list[Task]] = {}
    for task in tasks:
        if task.side == "train":
            by_source.setdefault(task.source, []).append(task)
    sizes = {source: sum(task.size for task in own) or sample_bytes for source, own in by_source.items()}
    fraction = min(1.0, sample_bytes / max(sum(sizes.values()), 1))
    for source, own in by_source.items():
        yield from _sample_source(own, fraction * sizes[source])


def _sample_source(tasks: Sequence[Task], wanted: float) -> Iterator[str]:
    """About `wanted` bytes: chunks from all over some tasks or, of streams, the starts of some."""
    chosen = _choose(tasks, wanted)
    size = sum(task.size for task in chosen)
    probability = min(1.0, wanted / size) if size else 1.0
    left = 1.1 * wanted + CHUNK  # sizes are estimates
    for rest, task in zip(range(len(chosen), 0, -1), chosen, strict=True):
        limit = left if size else left / rest
        left -= limit
        for document in read(task):
            text = document.text or ""
            for start in range(0, len(text), CHUNK):
                if limit > 0 and _draw(task, document.id, start) < probability:
                    chunk = text[start : start + CHUNK]
                    limit -= len(chunk)
                    yield chunk
            if limit <= 0:
                break
        left += limit
        if left <= 0:
            return


def _choose(tasks: Sequence[Task], wanted: float) -> list[Task]:
    """Enough tasks to draw `wanted` bytes from, in their order: all of a small source, a few of a huge one.

    They are drawn by a hash, so that a sample of a huge corpus does not cost a reading of all of it.
    """
    chosen: list[Task] = []
    size = 0
    for task in sorted(tasks, key=lambda task: _draw(task, "", -1)):
        if len(chosen) >= _TASKS and (size >= _SPREAD * wanted or not size):
            break
        chosen.append(task)
        size += task.size
    return sorted(chosen, key=lambda task: task.index)


def verification_sample(tasks: Sequence[Task]) -> list[str]:
    """The starts of some documents from all over the corpus."""
    step = -(-len(tasks) // _VERIFY_TASKS)
    texts = []
    for task in tasks[::step]:
        for _, document in zip(range(_VERIFY_DOCUMENTS), read(task), strict=False):
            texts.append((document.text or "")[:_VERIFY_CHARACTERS])
    return texts


def _draw(task: Task, identity: str, start: int) -> float:
    place = f"{task.label} {identity!r} {start}".encode()
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest()) / (1 << 64)


def _with_bar(texts: Iterator[str], progress: bool) -> Iterator[str]:
    from tqdm import tqdm

    with tqdm(desc="tokenizer", unit="B", unit_scale=True, disable=not progress) as bar:
        for text in texts:
            bar.update(len(text))
            yield text
