"""From one task to its shards: what a preparing process runs, here or in a worker. Never imports torch."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from durable import atomic_write

from ..cleaning.language import detect
from ..cleaning.measures import measure
from ..cleaning.redact import redact_document
from ..columns import BLANK, UNDECODABLE, pack_ids, pack_labels
from ..documents import Document
from ..errors import DataError
from ..reading.records import printable
from ..sources import Task, read
from ..store import FORMAT, Shard, find_shard, token_dtype, write_shard
from ..tokenizer import Encode, Tokenizer, load_file, tiktoken_encoder
from ..tokens.chat import encode_chat, ordinary_text


@dataclass
class TaskResult:
    """What one task gave: shards, (id, problem) of each document without any text to keep, how many texts were broken,
    and the first problem of all."""

    shards: list[Shard] = field(default_factory=list)
    unparsable: list[tuple[str, str]] = field(default_factory=list)
    undecodable: int = 0
    redacted: int = 0
    example: str | None = None


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know."""

    tokenizer_file: Path
    tokenizer_sha256: str
    folder: Path
    """Where shards go."""
    fast: bool
    """Encode with tiktoken, which has been verified."""
    shard_bytes: int
    """Text of one shard, unless one document is longer."""
    redact: tuple[str, ...] = ()
    """Kinds of personal data to replace."""
    detect_language: bool = False
    """Label documents that say nothing of their language."""


@dataclass(frozen=True)
class Text:
    """A document on its way into a shard."""

    document: Document
    raw: bytes
    """Its text, UTF-8."""

    @functools.cached_property
    def hash(self) -> bytes:
        """blake2b-128 of the text; of a conversation, of who said what."""
        turns = [(turn.role, turn.text) for turn in self.document.turns]
        return hashlib.blake2b(repr(turns).encode() if turns else self.raw, digest_size=16).digest()

    @property
    def flags(self) -> int:
        """See `store.COLUMNS`."""
        return UNDECODABLE * (self.document.problem is not None) + BLANK * (not (self.document.text or "").strip())


class TaskEncoder:
    """Turns tasks into shards in one folder, with one tokenizer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = job.folder
        self.shard_bytes = job.shard_bytes
        self.tokenizer: Tokenizer = load_file(job.tokenizer_file)
        if self.tokenizer.sha256 != job.tokenizer_sha256:  # another process has begun anew
            raise DataError(
                f"{job.tokenizer_file} was made again, since sources have changed; run the same command again"
            )
        self.dtype = token_dtype(self.tokenizer.vocab_size)
        self.encode: Encode = tiktoken_encoder(self.tokenizer) if job.fast else self.tokenizer.encode_array

    def __call__(self, task: Task) -> TaskResult:
        """Write the task's shards, except those that an earlier attempt has finished."""
        result = TaskResult()
        for number, block in enumerate(self._blocks(task, result)):
            name = f"{task.label}-{number:03d}-{self._digest(task, block)}"
            shard = find_shard(self.folder, name)
            if shard is None:
                shard = write_shard(self.folder, name, *self._encode_block(task, block), task.source, task.side)
            result.shards.append(shard)
        return result

    def _blocks(self, task: Task, result: TaskResult) -> Iterator[list[Text]]:
        """Documents in shard-sized lists; what cannot be kept is counted in `result`."""
        block: list[Text] = []
        size = 0
        for document in read(task):
            if document.problem and result.example is None:
                result.example = f"{printable(document.id[:200])}: {document.problem}"
            if document.text is None:
                result.unparsable.append((document.id, document.problem or "no text"))
                continue
            result.undecodable += document.problem is not None
            document, redacted = self._cleaned(document)
            result.redacted += redacted
            assert document.text is not None
            raw = document.text.encode()
            if block and size + len(raw) > self.shard_bytes:
                yield block
                block, size = [], 0
            block.append(Text(document, raw))
            size += len(raw)
        if block:
            yield block

    def _cleaned(self, document: Document) -> tuple[Document, int]:
        """The document as it is kept, with its language, and how many places were redacted."""
        count = 0
        if self.job.redact:
            document, count = redact_document(document, self.job.redact)
        if self.job.detect_language and "language" not in document.labels:
            document = replace(document, labels={**document.labels, "language": detect(document.text or "")})
        return document, count

    def _digest(self, task: Task, block: list[Text]) -> str:
        """Names a shard by what it is made from: the tokenizer, the documents and how they are spelled."""
        spelling = f"{FORMAT} {self.tokenizer.sha256} {task.config.template} {task.config.train_on}"
        digest = hashlib.blake2b(spelling.encode(), digest_size=8)
        for text in block:
            document = text.document
            about = (document.id, document.problem, len(text.raw), sorted(document.labels.items()), document.weight)
            digest.update(f"\n{about!r}\n".encode())
            digest.update(text.hash)
        return digest.hexdigest()

    def _encode_block(
        self, task: Task, block: list[Text]
    ) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
        """(tokens, which of them are targets or None for all, columns) of one shard."""
        end = np.array([self.tokenizer.end_id], self.dtype)
        encoded = [self._encode_text(task, text) for text in block]
        documents = [text.document for text in block]
        columns = {
            "offsets": np.cumsum([0, *(len(ids) + 1 for ids, _, _ in encoded)], dtype=np.int64),
            "hash": np.frombuffer(b"".join(text.hash for text in block), "<u8").reshape(-1, 2),
            "nbytes": np.array([nbytes for _, _, nbytes in encoded], np.int64),
            "flags": np.array([text.flags for text in block], np.uint16),
            **pack_ids([document.id for document in documents]),
            **pack_labels([document.labels for document in documents]),
            **{f"stat:{name}": values for name, values in measure([text.raw for text in block]).items()},
        }
        weights = np.array([document.weight for document in documents], np.float32)
        if (weights != 1).any():
            columns["weight"] = weights
        tokens = np.concatenate([end, *(part for ids, _, _ in encoded for part in (ids, end))])
        return tokens, _joined_mask([(len(ids), mask) for ids, mask, _ in encoded]), columns

    def _encode_text(self, task: Task, text: Text) -> tuple[np.ndarray, np.ndarray | None, int]:
        """(ids, which of them are targets or None for all, bytes of text in them) of one document.

        Its bytes must be those that the ids stand for, or they are not its ids.
        """
        document, config = text.document, task.config
        assert document.text is not None
        nbytes = len(ordinary_text(document, config.template).encode()) if document.turns else len(text.raw)
        mask = None
        for encode in (self.encode, self.tokenizer.encode_array):
            if document.turns:
                ids, mask = encode_chat(document.turns, config.template, config.train_on, self.tokenizer, encode)
            else:
                ids = encode(document.text)
            if int(self.tokenizer.token_bytes[ids].sum()) == nbytes:
                return ids.astype(self.dtype), mask, nbytes  # below vocab_size, for which the type was chosen
        raise DataError(f"{printable(document.id[:200])}: the tokenizer loses bytes of this text; use a byte-level BPE")


def _joined_mask(masks: Sequence[tuple[int, np.ndarray | None]]) -> np.ndarray | None:
    """One mask for a shard, from (tokens, mask) of each document. The E after a conversation is a target when the
    token before it is one."""
    if all(mask is None or mask.all() for _, mask in masks):
        return None
    parts = [np.ones(size + 1, bool) if mask is None else np.append(mask, mask[-1]) for size, mask in masks]
    return np.concatenate([np.ones(1, bool), *parts])


def run_task(job: Job, task: Task, record: Path) -> None:
    """Write a task's shards and then its record, here or in a worker."""
    result = _encoder(job)(task)
    atomic_write(record, json.dumps(asdict(result)))


@functools.lru_cache(maxsize=1)  # loading a tokenizer takes longer than a small task
def _encoder(job: Job) -> TaskEncoder:
    return TaskEncoder(job)


def close_encoder() -> None:
    """Forget the tokenizer of the last task."""
    _encoder.cache_clear()
