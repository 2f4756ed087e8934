"""Text to ids and back: byte-level BPE, bytes and characters, all stored as one `tokenizer.json`.

The definition of the ids is what the `tokenizers` library makes of that file. `fast_encoder` is the one seam
for a faster backend: tiktoken, used only after it gave the same ids on samples of the corpus and on hard strings.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from durable import atomic_write

from .documents import clean_text
from .errors import DataError

if TYPE_CHECKING:
    import tokenizers

Encode = Callable[[str], np.ndarray]

END = "<|endoftext|>"
_KNOWN_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>")
FILE = "tokenizer.json"

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word with the one character before it
    r"|\p{N}{1,3}"  # digits in groups of at most three
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation, with the line end after it
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends, indentation, other space
)
"""How text is cut before merges, after GPT-4's: written so that Oniguruma and Rust's regex agree on it."""
_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

HARD_STRINGS = (
    "", " ", "\n", "\r\n\r\n", "\x00", "\ufeff", "a\u0301e\u0301", "\u200d\U0001f469\u200d\U0001f4bb",
    "don't I'LL we'Ve 's 'x",
    "0123456789" * 7, "\t\t  x = 1\n\n\n    y", " \t \n \r ", "x" * 3000, " " * 3000, "=" * 3000, "\u4e2d\u6587" * 500,
    "def f(x):\n    return x**2  # \u00e9\n", "\u00a0\u2003\u3000\u0085\u2028a", "\ufffd\U0010ffff\ue000",
    END, f"a{END}b",
)  # fmt: skip


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """Printable character -> byte, as byte-level vocabularies spell bytes (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    return table | {chr(256 + rank): byte for rank, byte in enumerate(others)}


class Tokenizer:
    """A tokenizer.json that keeps every byte: `decode(encode(text)) == text`, and each id has a fixed byte count.

    Text that spells a special token is plain text. Lone surrogates become U+FFFD.
    """

    def __init__(self, text: str, origin: str = FILE) -> None:
        """Read a tokenizer.json's content. Raises DataError, naming `origin`, when it cannot keep bytes."""
        self.json = text
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        """Of the file's bytes."""
        try:
            self.spec: dict[str, Any] = json.loads(text)
            self.is_char = _check(self.spec)
            self.pieces, self.end_id = _pieces(self.spec, self.is_char)
        except (KeyError, TypeError, json.JSONDecodeError):
            raise DataError(f"{origin}: not a tokenizer.json") from None
        except DataError as error:
            raise DataError(f"{origin}: {error}") from None
        self.vocab_size = len(self.pieces)
        """Largest id + 1."""
        self.token_bytes = np.array([len(piece) for piece in self.pieces], np.int32)
        """UTF-8 bytes of each id, (vocab_size,); 0 for specials."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special token. Raises DataError for a character that a char tokenizer lacks."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as an integer array."""
        text, _ = clean_text(text)
        if self._table is None:
            (encoding,) = self.reference.encode_batch_fast([text], add_special_tokens=False)
            return np.array(encoding.ids, np.uint32)
        units = np.frombuffer(text.encode("utf-32-le"), "<u4") if self.is_char else np.frombuffer(text.encode(), "u1")
        ids = self._table[np.minimum(units, len(self._table) - 1)]
        if (ids < 0).any():
            raise DataError(f"the char tokenizer has no {chr(units[np.argmax(ids < 0)])!r}: it was not in the corpus")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of some ids; specials are left out and incomplete UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of some ids."""
        return b"".join([self.pieces[i] for i in ids])

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.json` into a directory, atomically."""
        atomic_write(Path(directory) / FILE, self.json)

    @functools.cached_property
    def reference(self) -> "tokenizers.Tokenizer":
        """The `tokenizers` object that defines the ids."""
        import tokenizers

        reference = tokenizers.Tokenizer.from_str(self.json)
        reference.encode_special_tokens = True
        reference.no_truncation()
        reference.no_padding()
        return reference

    @functools.cached_property
    def _table(self) -> np.ndarray | None:
        """Unit (byte or code point) -> id, -1 where there is none; None for a tokenizer with merges."""
        if self.is_char:
            points = {ord(piece.decode()): i for i, piece in enumerate(self.pieces) if piece}
            table = np.full(max(points, default=0) + 2, -1, np.int64)  # the last entry stands for all beyond
        elif not self.spec["model"]["merges"] and len(self.pieces) == 257:
            points = {piece[0]: i for i, piece in enumerate(self.pieces) if piece}
            table = np.full(256, -1, np.int64)
        else:
            return None
        table[list(points)] = list(points.values())
        return table


def _check(spec: dict[str, Any]) -> bool:
    """Whether this is a char tokenizer of ours; raises DataError unless it is one or byte-level BPE."""
    kind, steps = spec["model"]["type"], _steps(spec)
    if kind == "WordLevel" and all(len(word) == 1 for word in spec["model"]["vocab"] if word != END):
        return True
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    if kind != "BPE" or not byte_level:
        raise DataError(f"a {kind} tokenizer that is not byte-level cannot give every text back; use byte-level BPE")
    if spec.get("normalizer") is not None:
        raise DataError("its normalizer changes the text, so bytes cannot be counted exactly; remove the normalizer")
    if byte_level[0].get("add_prefix_space"):
        raise DataError("add_prefix_space puts a space before every text; set it to false")
    return False


def _steps(spec: dict[str, Any]) -> list[dict[str, Any]]:
    pre = spec.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    return list(pre["pretokenizers"]) if pre["type"] == "Sequence" else [pre]


def _pieces(spec: dict[str, Any], is_char: bool) -> tuple[list[bytes], int]:
    """(bytes of each id, id of the end-of-document token)."""
    alphabet = byte_alphabet()
    added = {token["content"]: token for token in spec["added_tokens"]}
    ids = {content: token["id"] for content, token in added.items()}
    ends = [ids[name] for name in _KNOWN_ENDS if name in ids]
    if not ends:
        raise DataError(f"it has no end-of-document token: add the special token {END}")
    vocab: dict[str, int] = spec["model"]["vocab"]
    pieces = [b""] * (max(max(vocab.values(), default=0), max(ids.values())) + 1)
    for word, i in vocab.items():
        if word not in added:
            pieces[i] = word.encode() if is_char else bytes([alphabet[letter] for letter in word])
    for content, token in added.items():
        pieces[token["id"]] = b"" if token["special"] or token["id"] in ends[:1] else content.encode()
    if not is_char and len({piece for piece in pieces if len(piece) == 1}) < 256:
        raise DataError("its vocabulary lacks some of the 256 bytes")
    return pieces, ends[0]


def load_file(path: str | Path) -> Tokenizer:
    """The tokenizer in one tokenizer.json. Raises DataError when it is missing or unusable."""
    try:
        return Tokenizer(Path(path).read_bytes().decode(), str(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a tokenizer.json") from None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a run directory, a checkpoint directory, a prepared corpus, or a tokenizer.json."""
    path = Path(path)
    inside_run = path.parent.parent if path.parent.name == "checkpoints" else path
    for candidate in (path, path / FILE, inside_run / FILE):
        if candidate.is_file():
            return load_file(candidate)
    raise DataError(f"{path}: no {FILE} there; give a run, a checkpoint, a prepared corpus or a {FILE}")


# Making tokenizers


def byte_tokenizer() -> Tokenizer:
    """Id = byte, and 256 ends a document."""
    return _build({letter: byte for letter, byte in sorted(byte_alphabet().items(), key=lambda item: item[1])})


def char_tokenizer(characters: Iterable[str]) -> Tokenizer:
    """One id for each character, in code point order, and the last id ends a document."""
    import tokenizers

    vocab = {letter: i for i, letter in enumerate(sorted(set(characters)))}
    model = tokenizers.models.WordLevel(vocab | {END: len(vocab)}, unk_token=END)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens([END])
    return Tokenizer(made.to_str())


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` ids: 256 bytes, merges learned from `texts`, and the end token, last.

    The same texts give the same tokenizer; few texts may give fewer ids than asked for.
    """
    import tokenizers

    made = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens([END])
    return Tokenizer(made.to_str())


def _build(vocab: dict[str, int]) -> Tokenizer:
    import tokenizers

    made = _byte_level(tokenizers.models.BPE(vocab, []))
    made.add_special_tokens([END])
    return Tokenizer(made.to_str())


def _byte_level(model: Any) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import pre_tokenizers

    made = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


# The fast path


def fast_encoder(tokenizer: Tokenizer, samples: Sequence[str]) -> tuple[Encode, str | None]:
    """(encoder, why it is not the fast one or None). The fast one gave the reference's ids on every sample."""
    if tokenizer._table is not None:
        return tokenizer.encode_array, None
    try:
        encode = tiktoken_encoder(tokenizer)
        for text in (*HARD_STRINGS, *(token["content"] for token in tokenizer.spec["added_tokens"]), *samples):
            if not np.array_equal(encode(text), tokenizer.encode_array(text)):
                raise ValueError(f"tiktoken gives other ids for {text[:40]!r}")
    except (ImportError, ValueError) as error:
        return tokenizer.encode_array, str(error)
    return encode, None


def tiktoken_encoder(tokenizer: Tokenizer) -> Encode:
    """An unverified tiktoken encoder. Raises ImportError or ValueError when there can be none."""
    import tiktoken

    specials = {token["content"] for token in tokenizer.spec["added_tokens"]}
    ranks = {tokenizer.pieces[i]: i for word, i in tokenizer.spec["model"]["vocab"].items() if word not in specials}
    encoding = tiktoken.Encoding("thimble", pat_str=_pattern(tokenizer.spec), mergeable_ranks=ranks, special_tokens={})

    def encode(text: str) -> np.ndarray:
        text, _ = clean_text(text)
        try:
            return encoding.encode_to_numpy(text, disallowed_special=())
        except BaseException as error:  # a Rust panic is not an Exception; a very long run of spaces causes one
            if not isinstance(error, (ValueError, RuntimeError)) and type(error).__name__ != "PanicException":
                raise
            return tokenizer.encode_array(text)

    return encode


def _pattern(spec: dict[str, Any]) -> str:
    match _steps(spec):
        case [{"type": "ByteLevel", "use_regex": True}]:
            return _GPT2_PATTERN
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False},
        ]:
            return pattern
    raise ValueError("its pre-tokenizer has no equivalent in tiktoken")
