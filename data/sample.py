"""Deterministic samples of a corpus: to train its tokenizer, to list its characters, to verify an encoder."""

import hashlib
from collections.abc import Iterator, Sequence

from .config import TokenizerConfig
from .errors import DataError
from .sources import Task, read
from .tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, load_file, train

CHUNK = 1 << 16
"""Characters that are drawn together: a long document is sampled throughout, not only at its start."""
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

    Every source gives in proportion to its size; one whose size is unknown counts as one sample and gives its start.
    """
    training = [task for task in tasks if task.side == "train"]
    sizes: dict[str, int] = {}
    for task in training:
        sizes[task.source] = sizes.get(task.source, 0) + task.size
    sizes = {source: size or sample_bytes for source, size in sizes.items()}
    fraction = min(1.0, sample_bytes / max(sum(sizes.values()), 1))
    left = {source: 1.1 * fraction * size + CHUNK for source, size in sizes.items()}  # sizes are estimates
    for task in training:
        if left[task.source] <= 0:
            continue
        for document in read(task):
            text = document.text or ""
            for start in range(0, len(text), CHUNK):
                if left[task.source] > 0 and _draw(task, document.id, start) < fraction:
                    chunk = text[start : start + CHUNK]
                    left[task.source] -= len(chunk)
                    yield chunk
            if left[task.source] <= 0:
                break


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
