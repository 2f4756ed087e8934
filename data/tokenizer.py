"""Text to ids and back: byte-level BPE, bytes and characters, all stored as one `tokenizer.json`.

How one is made: `data.vocabulary`. The definition of the ids is what the `tokenizers` library makes of that file.
`fast_encoder` is the one seam for a faster backend: tiktoken, used only after it gave the same ids on samples of the
corpus and on hard strings.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from durable import atomic_write

from .config import DataConfig
from .documents import clean_text
from .errors import DataError
from .tokens.patterns import AGREED, GPT2, for_tiktoken

if TYPE_CHECKING:
    import tokenizers

Encode = Callable[[str], np.ndarray]

END = "<|endoftext|>"
_KNOWN_ENDS = (END, "<|end_of_text|>", "</s>", "<eos>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
FILE = "tokenizer.json"
_MOST = 1 << 24  # ids; more is no vocabulary

FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
"""Special tokens of `pack.fim`."""
CHATML = ("<|im_start|>", "<|im_end|>")
"""Special tokens of the template `chatml`."""

HARD_STRINGS = (
    "", " ", "\n", "\r\n\r\n", "\x00", "\ufeff", "a\u0301e\u0301", "\u200d\U0001f469\u200d\U0001f4bb",
    "don't I'LL we'Ve 's 'x",
    "0123456789" * 7, "\t\t  x = 1\n\n\n    y", " \t \n \r ", "x" * 3000, " " * 3000, "=" * 3000, "\u4e2d\u6587" * 500,
    "def f(x):\n    return x**2  # \u00e9\n", "\u00a0\u2003\u3000\u0085\u2028a", "\ufffd\U0010ffff\ue000",
    END, f"a{END}b", *FIM, *CHATML,
)  # fmt: skip


def needed_specials(config: DataConfig) -> tuple[str, ...]:
    """Special tokens that a config's packing and conversations need, besides the end token."""
    sources = (*config.sources.values(), *config.split.sources.values())
    chatml = any(source.messages and source.template == "chatml" for source in sources)
    return (*(FIM if config.pack.fim else ()), *(CHATML if chatml else ()))


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
        self.json, self.origin = text, origin
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        """Of the file's bytes."""
        try:
            self.spec: dict[str, Any] = json.loads(text)
            self.is_char = _check(self.spec)
            self.pieces, self.specials, self.end_id = _pieces(self.spec, self.is_char)
        except DataError as error:
            raise DataError(f"{origin}: {error}") from None
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
            raise DataError(f"{origin}: not a tokenizer.json") from None
        self.vocab_size = len(self.pieces)
        """Largest id + 1."""
        merges = self.spec["model"].get("merges")
        self.by_unit = self.is_char or (not merges and sum(map(bool, self.pieces)) == 256)
        """Whether each id is one byte or one character: nothing is merged."""
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
        """The `tokenizers` object that defines the ids. Raises DataError when the library cannot read the file."""
        import tokenizers

        try:
            reference = tokenizers.Tokenizer.from_str(self.json)
        except Exception as error:  # the class that the library raises
            reason = str(error).strip().split("\n")[0]
            raise DataError(f"{self.origin}: not a tokenizer.json ({reason})") from None
        reference.encode_special_tokens = True
        reference.no_truncation()
        reference.no_padding()
        return reference

    @functools.cached_property
    def _table(self) -> np.ndarray | None:
        """Unit (byte or code point) -> id, -1 where there is none; None for a tokenizer with merges."""
        if not self.by_unit:
            return None
        if self.is_char:
            points = {ord(piece.decode()): i for i, piece in enumerate(self.pieces) if piece}
            table = np.full(max(points, default=0) + 2, -1, np.int64)  # the last entry stands for all beyond
        else:
            points = {piece[0]: i for i, piece in enumerate(self.pieces) if piece}
            table = np.full(256, -1, np.int64)
        table[list(points)] = list(points.values())
        return table


def _check(spec: dict[str, Any]) -> bool:
    """Whether this is a char tokenizer of ours; raises DataError unless it is one or byte-level BPE."""
    kind, steps = spec["model"]["type"], _steps(spec)
    added = {token["content"] for token in spec["added_tokens"]}
    if kind == "WordLevel" and all(len(word) == 1 for word in spec["model"]["vocab"] if word not in added):
        return True
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    if kind != "BPE" or not byte_level:
        raise DataError(f"a {kind} tokenizer that is not byte-level cannot give every text back; use byte-level BPE")
    if spec.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        raise DataError("its normalizer changes the text, so bytes cannot be counted exactly; remove the normalizer")
    if byte_level[0].get("add_prefix_space"):
        raise DataError("add_prefix_space puts a space before every text; set it to false")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if spec["model"].get(option):
            raise DataError(f"its {option} does not give the same ids and bytes for the same text; set it to null")
    return False


def _steps(spec: dict[str, Any]) -> list[dict[str, Any]]:
    pre = spec.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    return list(pre["pretokenizers"]) if pre["type"] == "Sequence" else [pre]


def _pieces(spec: dict[str, Any], is_char: bool) -> tuple[list[bytes], dict[str, int], int]:
    """(bytes of each id, special tokens and their ids, id of the one that ends a document)."""
    alphabet = byte_alphabet()
    added = {token["content"]: token for token in spec["added_tokens"]}
    ids = {content: token["id"] for content, token in added.items()}
    ends = [ids[name] for name in _KNOWN_ENDS if name in ids]
    if not ends:
        raise DataError(f"it has no end-of-document token: add the special token {END}")
    vocab: dict[str, int] = spec["model"]["vocab"]
    if not all(type(i) is int and 0 <= i < _MOST for i in (*vocab.values(), *ids.values())):
        raise DataError(f"its ids are not whole numbers from 0 to {_MOST - 1}")
    pieces = [b""] * (max(max(vocab.values(), default=0), max(ids.values())) + 1)
    for word, i in vocab.items():
        if word not in added:
            pieces[i] = word.encode() if is_char else bytes([alphabet[letter] for letter in word])
    specials = {word: i for word, i in ids.items() if added[word]["special"] or i == ends[0]}
    for word, i in ids.items():
        pieces[i] = b"" if word in specials else word.encode()
    if not is_char and len({piece for piece in pieces if len(piece) == 1}) < 256:
        raise DataError("its vocabulary lacks some of the 256 bytes")
    if shared := specials.keys() & vocab.keys() and specials.keys() & _merged(spec):
        raise DataError(f"merges can spell the special token {min(shared)}, so text could hold it; use another name")
    return pieces, specials, ends[0]


def _merged(spec: dict[str, Any]) -> set[str]:
    """Every word that a merge makes."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in spec["model"].get("merges", ()))
    return {left + right for left, right in pairs}


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


# The fast path


def fast_encoder(tokenizer: Tokenizer, samples: Sequence[str]) -> tuple[Encode, str | None]:
    """(encoder, why it is not the fast one or None). The fast one gave the reference's ids on every sample."""
    if tokenizer._table is not None:
        return tokenizer.encode_array, None
    try:
        encode = tiktoken_encoder(tokenizer)
        texts = [*HARD_STRINGS, *(token["content"] for token in tokenizer.spec["added_tokens"]), *samples]
        if _pattern(tokenizer.spec) not in AGREED:
            texts += _every_character()
        wanted = tokenizer.reference.encode_batch_fast(
            [clean_text(text)[0] for text in texts], add_special_tokens=False
        )
        for text, encoding in zip(texts, wanted, strict=True):
            if encode(text).tolist() != encoding.ids:
                raise ValueError(f"tiktoken gives other ids for {text[:40]!r}")
    except (ImportError, ValueError) as error:
        return tokenizer.encode_array, str(error)
    return encode, None


def _every_character() -> list[str]:
    """Each character up to U+2FFFF beside a letter, a digit, a space, a line end and itself."""
    points = [chr(point) for point in range(0x30000) if not 0xD800 <= point < 0xE000]
    spelled = [f"a{point} {point}1{point}{point}\n" for point in points]
    return ["".join(spelled[start : start + 512]) for start in range(0, len(spelled), 512)]


def tiktoken_encoder(tokenizer: Tokenizer) -> Encode:
    """A tiktoken encoder, unverified but for its merges. Raises ImportError or ValueError when there can be none."""
    import tiktoken

    _check_merges(tokenizer)
    added = {token["content"] for token in tokenizer.spec["added_tokens"]}
    whole = sorted(added - tokenizer.specials.keys())  # found in a text before anything else, which tiktoken cannot
    ranks = {tokenizer.pieces[i]: i for word, i in tokenizer.spec["model"]["vocab"].items() if word not in added}
    pattern = for_tiktoken(_pattern(tokenizer.spec))
    encoding = tiktoken.Encoding("thimble", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def encode(text: str) -> np.ndarray:
        text, _ = clean_text(text)
        if any(word in text for word in whole):
            return tokenizer.encode_array(text)
        try:
            return encoding.encode_to_numpy(text, disallowed_special=())
        except BaseException as error:  # a Rust panic is not an Exception; a very long run of spaces causes one
            if not isinstance(error, (ValueError, RuntimeError)) and type(error).__name__ != "PanicException":
                raise
            return tokenizer.encode_array(text)

    return encode


def _check_merges(tokenizer: Tokenizer) -> None:
    """Raise ValueError unless merges by rank, as tiktoken makes them, are those of the reference, whatever the text.

    tiktoken merges any two neighbors that are a token together, that with the lowest id first. Where it first does so
    without a merge of the reference, this would leave the two apart in a text that is that token alone, too.
    """
    model = tokenizer.spec["model"]
    if model.get("ignore_merges"):  # a token that is a whole pre-token needs none: nothing is known of it
        return
    own, vocab, added = (
        tokenizer.reference.model,
        model["vocab"],
        {token["content"] for token in tokenizer.spec["added_tokens"]},
    )
    made = [vocab["".join(merge.split(" ") if isinstance(merge, str) else merge)] for merge in model.get("merges", ())]
    if any(first >= second for first, second in zip(made, made[1:], strict=False)):
        raise ValueError("its merges are not in the order of the ids that they make")
    for word, i in vocab.items():
        if word not in added and [token.id for token in own.tokenize(word)] != [i]:
            raise ValueError(f"its merges do not make its token {word!r}")


def _pattern(spec: dict[str, Any]) -> str:
    match _steps(spec):
        case [{"type": "ByteLevel", **step}] if step.get("use_regex", True):
            return GPT2
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False},
        ]:
            return pattern
    raise ValueError("its pre-tokenizer has no equivalent in tiktoken")
