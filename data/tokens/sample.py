"""Deterministic samples of a corpus: to train its tokenizer, to list its characters, to verify an encoder."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence

from ..bars import PLAIN_INTERVAL, advance, bar, clock, on_terminal
from ..cleaning.redact import redact_document
from ..config import TOKENIZERS, DataConfig, TrainTokenizerConfig
from ..documents import Document, clean_text
from ..errors import DataError
from ..sources import Task, read
from ..tokenizer import END, Tokenizer, load_file
from .chat import ordinary_text
from .ranks import read_ranks
from .vocabulary import all_specials, byte_tokenizer, char_tokenizer, ranks_tokenizer, train, with_specials

CHUNK = 1 << 16
"""Characters that are drawn together: a long document is sampled throughout, not only at its start."""
_TASKS, _SPREAD = 16, 8
"""The tokenizer's sample comes from at least so many tasks of a source, or all, and from so many times its bytes."""
_VERIFY_TASKS, _VERIFY_DOCUMENTS, _VERIFY_CHARACTERS = 32, 12, 2_000


def make_tokenizer(config: DataConfig, tasks: Sequence[Task], progress: bool) -> Tokenizer:
    """The tokenizer that a config asks for. Held-out sources are not learned from, except which characters exist."""
    how, specials = config.tokenizer, all_specials(config)
    if how.file is not None:
        tokenizer = with_specials(load_file(how.file), specials)
        tokenizer.encode(END)  # what the library refuses is refused here, not in a worker
        return tokenizer
    if how.tiktoken is not None:
        return ranks_tokenizer(read_ranks(how.tiktoken), specials)
    if how.level == "byte":
        return byte_tokenizer(specials)
    if how.level == "char":
        characters: set[str] = set()
        for task in tasks:
            for document in read(task):
                characters.update(_text(task, document, config.redact))
        return char_tokenizer(characters, specials)
    if how.train is None:
        raise DataError(f"data.tokenizer needs exactly one of {', '.join(TOKENIZERS)}")
    return _learn(tasks, how.train, specials, config.redact, progress)


def _learn(
    tasks: Sequence[Task], how: TrainTokenizerConfig, specials: Sequence[str], redacted: Sequence[str], progress: bool
) -> Tokenizer:
    """Train, with a bar while the sample is read and then a clock while merges are learned."""
    with contextlib.ExitStack() as learning:

        def texts() -> Iterator[str]:
            total = min(how.sample_bytes, sum(task.size for task in tasks if task.side == "train")) or None
            with bar("sample", shown=progress, total=total) as reading:
                for text in training_sample(tasks, how.sample_bytes, how.max_document_bytes, redacted):
                    advance(reading, len(text.encode()))
                    yield text
            learning.enter_context(_clock("learn merges", progress))

        return train(texts(), how, specials)


@contextlib.contextmanager
def _clock(what: str, progress: bool) -> Iterator[None]:
    """A line that counts the seconds of work that tells nothing of its progress."""
    done, interval = threading.Event(), 1.0 if on_terminal() else PLAIN_INTERVAL
    with clock(what, shown=progress) as line:

        def tick() -> None:
            while not done.wait(interval):
                line.refresh()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            if line.format_dict["elapsed"] >= PLAIN_INTERVAL:  # a log was told that it had begun
                line.refresh()


def training_sample(
    tasks: Sequence[Task], sample_bytes: int, document_bytes: int | None = None, redacted: Sequence[str] = ()
) -> Iterator[str]:
    """Chunks of the training sources, about `sample_bytes` in all and at most `document_bytes` of one document, drawn
    by a hash of their place in the corpus, without what is to be redacted.

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
        yield from _sample_source(own, fraction * sizes[source], document_bytes, redacted)


def _sample_source(
    tasks: Sequence[Task], wanted: float, document_bytes: int | None, redacted: Sequence[str]
) -> Iterator[str]:
    """About `wanted` bytes: chunks from all over some tasks or, of streams, the starts of some."""
    chosen = _choose(tasks, wanted)
    size = sum(task.size for task in chosen)
    probability = min(1.0, wanted / size) if size else 1.0
    left = 1.1 * wanted + CHUNK  # sizes are estimates
    for rest, task in zip(range(len(chosen), 0, -1), chosen, strict=True):
        limit = left if size else left / rest
        left -= limit
        for document in read(task):
            text = _text(task, document, redacted)
            room = document_bytes
            for start in range(0, len(text), CHUNK):
                if limit > 0 and room != 0 and _draw(task, f"{document.id!r} {start}") < probability:
                    chunk = text[start : start + CHUNK]
                    if room is not None:
                        raw = clean_text(chunk)[0].encode()[:room]
                        chunk, room = raw.decode(errors="ignore"), room - len(raw)
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
    for task in sorted(tasks, key=lambda task: _draw(task, f"task {task.index}")):
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


def _text(task: Task, document: Document, redacted: Sequence[str]) -> str:
    """What the store will hold of a document's text."""
    if redacted:
        document, _ = redact_document(document, redacted)
    return ordinary_text(document, task.config.template)


def _draw(task: Task, place: str) -> float:
    """A number in [0, 1) for a place in a source, however the source is cut into tasks."""
    named = f"{task.side} {task.source} {place}".encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest()) / (1 << 64)
