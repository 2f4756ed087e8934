"""Vocabularies of tiktoken: a file of ranks, found by name where tiktoken keeps them, and the merges they stand for.

A `.tiktoken` file has one token a line, base64 and rank; the rank is the id, and of two neighbors that make a token the
pair whose token has the lowest rank is merged first. Nothing is downloaded.
"""

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError

_HOST = "https://openaipublic.blob.core.windows.net"  # only to name a file of the cache
_MOST = 1 << 24  # ids; more is no vocabulary
_END, _FIM = "<|endoftext|>", ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")


@dataclass(frozen=True)
class _Known:
    """A published vocabulary: its file, how it cuts text, and its special tokens."""

    file: str
    sha256: str
    pattern: str
    specials: Mapping[str, int]


_R50K = _Known(
    "r50k_base.tiktoken",
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "gpt2",
    {_END: 50256},
)
KNOWN = {
    "gpt2": _R50K,  # the same ids, published twice
    "r50k_base": _R50K,
    "p50k_base": _Known(
        "p50k_base.tiktoken",
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
        "gpt2",
        {_END: 50256},
    ),
    "cl100k_base": _Known(
        "cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        "gpt4",
        {_END: 100257, **{name: 100258 + i for i, name in enumerate(_FIM)}, "<|endofprompt|>": 100276},
    ),
    "o200k_base": _Known(
        "o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        "o200k",
        {_END: 199999, "<|endofprompt|>": 200018},
    ),
}
"""By name; the values are those of tiktoken's `openai_public`."""


@dataclass(frozen=True)
class Ranks:
    """Tokens and their ids."""

    ids: Mapping[bytes, int]
    origin: str
    """Named in messages."""
    pattern: str = "gpt4"
    """gpt2, gpt4 or o200k: how text is cut."""
    specials: Mapping[str, int] = field(default_factory=dict)

    def merges(self) -> Iterator[tuple[bytes, bytes]]:
        """The two tokens that make each longer one, first merge first.

        A token's own merges, by tokens of lower rank, leave two parts of it: those that its last merge joins. One that
        they leave in more parts cannot be made by merging, only found whole.
        """
        for token, rank in sorted(self.ids.items(), key=lambda item: item[1]):
            parts = [token[i : i + 1] for i in range(len(token))]
            while len(parts) > 2:
                found = [self.ids.get(left + right, rank) for left, right in zip(parts, parts[1:], strict=False)]
                best = min(found)
                if best >= rank:
                    break
                at = found.index(best)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            if len(parts) == 2:
                yield parts[0], parts[1]


def find_ranks(name: str) -> Path:
    """The file of a vocabulary, by path or name. Raises DataError that says where it was looked for."""
    known = KNOWN.get(name)
    if known is None:
        if Path(name).is_file():
            return Path(name)
        names = ", ".join(KNOWN)
        raise DataError(f"data.tokenizer.tiktoken: no file {name}, and not one of the names {names}")
    key = hashlib.sha1(f"{_HOST}/encodings/{known.file}".encode(), usedforsecurity=False).hexdigest()
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    places = [Path(cache or Path(tempfile.gettempdir()) / "data-gym-cache") / key, Path(f"{name}.tiktoken")]
    places += [Path(known.file)] if known.file != f"{name}.tiktoken" else []
    for path in places:
        if path.is_file():
            if hashlib.sha256(path.read_bytes()).hexdigest() != known.sha256:
                raise DataError(f"data.tokenizer.tiktoken: {path} is not the published {name}; copy it again")
            return path
    raise DataError(
        f"data.tokenizer.tiktoken: {name} is not here and nothing is downloaded; put {known.file} into the working "
        f"directory, or set TIKTOKEN_CACHE_DIR to a folder that has it as {key}"
    )


def read_ranks(name: str) -> Ranks:
    """The vocabulary of a name or file. A file that is not known by its content is cut like GPT-4's.

    Raises DataError when there is none or it cannot be read.
    """
    path = find_ranks(name)
    raw = path.read_bytes()
    ids: dict[bytes, int] = {}
    for number, line in enumerate(raw.splitlines(), 1):
        try:
            token, rank = line.split()
            ids[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            if line.strip():
                raise DataError(f"{path}: line {number} is not a base64 token and its rank") from None
    whole = sum(len(token) == 1 for token in ids) == 256 and b"" not in ids
    if not whole or len(set(ids.values())) < len(ids) or min(ids.values()) < 0 or max(ids.values()) >= _MOST:
        raise DataError(f"{path}: not a vocabulary of tiktoken: it needs all 256 bytes and one rank for each token")
    digest = hashlib.sha256(raw).hexdigest()
    known = next((known for known in KNOWN.values() if known.sha256 == digest), None)
    return Ranks(ids, str(path), known.pattern, known.specials) if known else Ranks(ids, str(path))
