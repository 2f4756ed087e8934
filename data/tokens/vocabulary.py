"""Making tokenizers: bytes, characters, learned merges, vocabularies of tiktoken, and special tokens for each.

Ids are the text's own, then specials in the order given, and last `<|endoftext|>`; what was made elsewhere keeps its
ids, and specials that it lacks come after them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config import DataConfig, TrainTokenizerConfig
from ..documents import clean_text
from ..errors import DataError
from ..tokenizer import END, HARD_STRINGS, Tokenizer, byte_alphabet, needed_specials
from .patterns import BY_NAME, GPT2, gpt4
from .ranks import Ranks

if TYPE_CHECKING:
    import tokenizers


def all_specials(config: DataConfig) -> tuple[str, ...]:
    """The special tokens of a config besides the end token. Raises DataError for a name that cannot be one."""
    for name in config.tokenizer.specials:
        if len(name) < 2 or name.isspace() or clean_text(name)[1]:
            raise DataError(f"data.tokenizer.specials: {name!r} cannot be one; write such as '<|name|>'")
    wanted = (*config.tokenizer.specials, *needed_specials(config))
    return tuple(dict.fromkeys(name for name in wanted if name != END))


def byte_tokenizer(specials: Sequence[str] = ()) -> Tokenizer:
    """Id = byte; specials and the end token follow."""
    import tokenizers

    vocab = {letter: byte for letter, byte in sorted(byte_alphabet().items(), key=lambda item: item[1])}
    made = _byte_level(tokenizers.models.BPE(vocab, []), gpt4())
    made.add_special_tokens([*specials, END])
    return Tokenizer(made.to_str())


def char_tokenizer(characters: Iterable[str], specials: Sequence[str] = ()) -> Tokenizer:
    """One id for each character, in code point order, then specials and the end token."""
    import tokenizers

    words = [*sorted(set(characters)), *specials, END]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=END)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens([*specials, END])
    return Tokenizer(made.to_str())


def train(texts: Iterable[str], how: TrainTokenizerConfig, specials: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE of at most `how.vocab_size` ids, merges learned from `texts`.

    The same texts give the same tokenizer; few texts may give fewer ids than asked for. Raises DataError when the ids
    do not suffice for bytes and specials, or `how.pattern` is none.
    """
    import tokenizers

    made = _byte_level(tokenizers.models.BPE(), checked_pattern(how, specials))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=how.vocab_size - len(specials) - 1,
        min_frequency=how.min_frequency,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens([*specials, END])
    return Tokenizer(made.to_str(), "data.tokenizer.train")


def checked_pattern(how: TrainTokenizerConfig, specials: Sequence[str]) -> str:
    """The regular expression that cuts text. Raises DataError when it does not compile or leaves characters out, or the
    ids do not suffice for bytes and specials."""
    if how.vocab_size < 257 + len(specials):
        need = 257 + len(specials)
        raise DataError(f"data.tokenizer.train.vocab_size: {how.vocab_size} ids; bytes and specials alone need {need}")
    if how.pattern == "gpt4":
        return gpt4(how.digits)
    if how.pattern == "gpt2":
        return GPT2
    import tokenizers
    from tokenizers import pre_tokenizers

    try:
        outside = pre_tokenizers.Split(tokenizers.Regex(how.pattern), "removed", invert=True)
    except Exception as error:  # the class that the library raises
        reason = str(error).strip().split("\n")[0]
        message = f"neither gpt4 nor gpt2, and no regular expression ({reason})"
        raise DataError(f"data.tokenizer.train.pattern: {how.pattern!r} is {message}") from None
    for text in HARD_STRINGS:
        covered = "".join(piece for piece, _ in outside.pre_tokenize_str(text)) if text else ""
        if covered != text:
            lost = next((a for a, b in zip(text, covered, strict=False) if a != b), text[len(covered) :][:1])
            message = f"matches no {lost!r}; add what is left over, such as `|\\s+|.`"
            raise DataError(f"data.tokenizer.train.pattern: {how.pattern!r} {message}")
    return how.pattern


def ranks_tokenizer(ranks: Ranks, specials: Sequence[str] = ()) -> Tokenizer:
    """The tokenizer.json of tiktoken ranks, with the same ids; specials that it lacks come after them."""
    import tokenizers

    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    spell = {token: "".join(letters[byte] for byte in token) for token in ranks.ids}
    vocab = {spell[token]: i for token, i in ranks.ids.items()}
    pairs = [(spell[left], spell[right]) for left, right in ranks.merges()]
    named = _numbered(ranks.specials, max(vocab.values()) + 1, [*specials, END])
    # A pre-token that is a token is that token, without merges: tiktoken looks there first
    model = tokenizers.models.BPE(vocab | named, pairs, ignore_merges=True)
    made = _byte_level(model, BY_NAME[ranks.pattern])
    made.add_special_tokens(sorted(named, key=lambda name: named[name]))
    return Tokenizer(made.to_str(), ranks.origin)


def with_specials(tokenizer: Tokenizer, specials: Sequence[str]) -> Tokenizer:
    """A tokenizer in which all of these are special tokens: itself if they are, else with them after its ids."""
    if set(specials) <= tokenizer.specials.keys():
        return tokenizer
    spec: dict[str, Any] = json.loads(tokenizer.json)
    for token in spec["added_tokens"]:
        token["special"] |= token["content"] in specials
    there = {token["content"]: token["id"] for token in spec["added_tokens"]}
    for name, i in _numbered(there, tokenizer.vocab_size, specials).items():
        spec["model"]["vocab"].setdefault(name, i)  # what the vocabulary lacks is numbered anew when it is loaded
        if name not in there:
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            spec["added_tokens"].append({"id": i, "content": name, **plain, "special": True})
    return Tokenizer(json.dumps(spec, ensure_ascii=False), "data.tokenizer")


def _numbered(known: Mapping[str, int], size: int, wanted: Sequence[str]) -> dict[str, int]:
    """`known` names and their ids, and those of `wanted` that are not there, numbered after all of `size`."""
    named = dict(known)
    for name in wanted:
        named.setdefault(name, max(size, *(i + 1 for i in named.values()), 0))
    return named


def _byte_level(model: Any, pattern: str) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import pre_tokenizers

    made = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    return made
