"""Making tokenizers: patterns, specials, tiktoken's vocabularies, files made elsewhere."""

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from data import prepare
from data.config import (
    DataConfig,
    FimConfig,
    PackConfig,
    SourceConfig,
    SplitConfig,
    TokenizerConfig,
    TrainTokenizerConfig,
)
from data.errors import DataError
from data.store import token_dtype
from data.tokenizer import CHATML, END, FIM, HARD_STRINGS, Tokenizer, fast_encoder, needed_specials, tiktoken_encoder
from data.tokens import ranks
from data.tokens.patterns import AGREED, BY_NAME
from data.tokens.ranks import Ranks, read_ranks
from data.tokens.sample import make_tokenizer
from data.tokens.vocabulary import (
    all_specials,
    byte_tokenizer,
    char_tokenizer,
    checked_pattern,
    ranks_tokenizer,
    train,
    with_specials,
)

from .helpers import text_source, write_files

CORPUS = [Path(__file__).read_text(), "naïve 中文 don't 1234567 HTTPServer\r\n\t x" * 20]
SMALL = TrainTokenizerConfig(500)
BPE = train(CORPUS, SMALL)


def ranks_file(path: Path, tokenizer: Tokenizer = BPE) -> Path:
    """Its merges as a `.tiktoken` file."""
    lines = [base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(tokenizer.pieces) if piece]
    path.write_bytes(b"".join(lines))
    return path


WAYS = ("train", "file", "tiktoken", "char", "byte")


def config_of(way: str, tmp_path: Path, specials: tuple[str, ...]) -> DataConfig:
    """A corpus that spells special tokens, and one way to come by a tokenizer that has them."""
    BPE.save(tmp_path)
    spelled = {f"{i}.txt": f"{i} {END}{''.join(specials)}\n" for i in range(20)}
    write_files(tmp_path / "texts", {"a.txt": "".join(HARD_STRINGS), "b.txt": CORPUS[0], **spelled})
    tokenizer = {
        "train": TokenizerConfig(train=SMALL, specials=specials),
        "file": TokenizerConfig(file=str(tmp_path / "tokenizer.json"), specials=specials),
        "tiktoken": TokenizerConfig(tiktoken=str(ranks_file(tmp_path / "my.tiktoken")), specials=specials),
        "char": TokenizerConfig(level="char", specials=specials),
        "byte": TokenizerConfig(level="byte", specials=specials),
    }[way]
    source = text_source(tmp_path / "texts")
    return DataConfig(sources={"a": source}, dir=f"{tmp_path}/out", tokenizer=tokenizer, split=SplitConfig(val=0.2))


@pytest.mark.parametrize("way", WAYS)
def test_specials_that_text_spells_are_text(way: str, tmp_path: Path) -> None:
    specials = ("<|mine|>", *FIM, *CHATML)
    store = prepare(config_of(way, tmp_path, specials), 64, progress=False).store
    tokenizer, text = store.tokenizer, END + " ".join(specials) + "".join(specials)
    assert set(tokenizer.specials) == {*specials, END} and tokenizer.specials[END] == tokenizer.end_id
    reserved = list(tokenizer.specials.values())
    assert not tokenizer.token_bytes[reserved].any()
    fast, reason = fast_encoder(tokenizer, [])
    assert reason is None
    for encode in (fast, tokenizer.encode_array):
        ids = encode(text)
        assert not np.isin(ids, reserved).any() and tokenizer.decode(ids.tolist()) == text
    for special, i in tokenizer.specials.items():
        assert tokenizer.reference.token_to_id(special) == i
    for shard in range(len(store.shards)):  # the store has none but the ends of documents
        tokens, offsets = store.tokens(shard), store.column("offsets")[shard]
        assert np.array_equal(np.flatnonzero(np.isin(tokens, reserved)), offsets)
        assert (tokens[offsets] == store.end_id).all() and len(offsets) == store.shards[shard].documents + 1


def test_where_specials_are() -> None:
    made = train(CORPUS, SMALL, FIM)
    assert [made.specials[name] for name in (*FIM, END)] == [496, 497, 498, 499] and made.vocab_size == 500
    assert made.pieces[:496] == BPE.pieces[:496]
    assert byte_tokenizer(CHATML).specials == {"<|im_start|>": 256, "<|im_end|>": 257, END: 258}
    assert char_tokenizer("ba", CHATML).specials == {"<|im_start|>": 2, "<|im_end|>": 3, END: 4}
    assert with_specials(BPE, (END,)) is BPE
    more = with_specials(BPE, FIM)
    assert [more.specials[name] for name in (END, *FIM)] == [499, 500, 501, 502]
    assert more.pieces[:500] == BPE.pieces and with_specials(more, FIM[:1]) is more


def test_an_added_token_that_is_not_special_becomes_one() -> None:
    spec = json.loads(BPE.json)
    spec["added_tokens"].append({**spec["added_tokens"][0], "id": 500, "content": FIM[0], "special": False})
    tokenizer = Tokenizer(json.dumps(spec))
    assert tokenizer.encode(FIM[0]) == [500] and tokenizer.token_bytes[500] == len(FIM[0])
    tokenizer = with_specials(tokenizer, FIM)
    assert tokenizer.specials == {END: 499, FIM[0]: 500, FIM[1]: 501, FIM[2]: 502}
    assert 500 not in tokenizer.encode(FIM[0]) and tokenizer.token_bytes[500] == 0


def test_specials_that_cannot_be_one() -> None:
    for name in ("", "x", "  ", "<|\ud800|>"):
        with pytest.raises(DataError, match="specials"):
            all_specials(DataConfig(sources={}, tokenizer=TokenizerConfig(level="byte", specials=(name,))))
    with pytest.raises(DataError, match="260"):
        train(CORPUS, TrainTokenizerConfig(258), FIM)
    pattern = TrainTokenizerConfig(400, pattern=r"\S+|\s+")
    with pytest.raises(DataError, match="merges can spell the special token <|endoftext|>"):
        train([f"{END} {END} {END}\n"] * 100, pattern)


def test_needed_specials() -> None:
    chat = SourceConfig(kind="jsonl", files=("a",), messages="messages")
    plain = replace(chat, template="plain")
    fim = PackConfig(fim=FimConfig())
    byte = TokenizerConfig(level="byte", specials=(CHATML[1], END, "<|x|>"))
    assert needed_specials(DataConfig(sources={"a": plain})) == ()
    assert needed_specials(DataConfig(sources={"a": plain, "b": chat}, pack=fim)) == (*FIM, *CHATML)
    assert all_specials(DataConfig(sources={"a": chat}, tokenizer=byte)) == (CHATML[1], "<|x|>", CHATML[0])


@pytest.mark.parametrize("vocab_size", [65_535, 65_536, 65_537])
def test_ids_near_65536_fit_their_type(vocab_size: int) -> None:
    characters = map(chr, (i for i in range(0x1000, 0x20000) if not 0xD800 <= i < 0xE000))
    tokenizer = char_tokenizer((letter for _, letter in zip(range(vocab_size - 1), characters, strict=False)))
    assert tokenizer.vocab_size == vocab_size and tokenizer.end_id == vocab_size - 1
    for made in (tokenizer, with_specials(tokenizer, FIM)):  # added above the vocabulary
        ids = np.array([made.vocab_size - 1, made.end_id, made.end_id - 1])
        dtype = token_dtype(made.vocab_size)
        assert np.array_equal(ids.astype(dtype), ids) and dtype.itemsize == (2 if made.vocab_size <= 65_536 else 4)


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """How its pattern cuts a text."""
    pattern = tokenizer.spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    return [word for word, _ in split.pre_tokenize_str(text)]


def test_patterns() -> None:
    text = "I'll 12345;\n\n  x"
    want = {
        ("gpt4", 3): ["I", "'ll", " ", "123", "45", ";\n\n", " ", " x"],
        ("gpt4", 1): ["I", "'ll", " ", "1", "2", "3", "4", "5", ";\n\n", " ", " x"],
        ("gpt2", 3): ["I", "'ll", " 12345", ";", "\n\n ", " x"],
        (r"\d|\D+", 3): ["I'll ", "1", "2", "3", "4", "5", ";\n\n  x"],
    }
    for (pattern, digits), cut in want.items():
        tokenizer = train(CORPUS, TrainTokenizerConfig(300, pattern=pattern, digits=digits))
        assert words(tokenizer, text) == cut
        assert fast_encoder(tokenizer, CORPUS)[1] is None
    often = train(CORPUS, TrainTokenizerConfig(5000, min_frequency=50))
    assert 257 < often.vocab_size < train(CORPUS, TrainTokenizerConfig(5000)).vocab_size


@pytest.mark.parametrize(
    "pattern, message",
    [("(", "no regular expression"), (r"\p{L}+|\s+", "matches no"), (".+", r"matches no '\\n'"), ("", "matches no")],
)
def test_patterns_that_lose_text(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        checked_pattern(TrainTokenizerConfig(pattern=pattern), ())
    assert "\n" not in str(caught.value)


def test_the_patterns_cut_every_character_alike_in_both_libraries() -> None:
    points = [chr(c) for c in range(0, 0x30000, 29) if not 0xD800 <= c < 0xE000]
    texts = [f" a{p}B {p}{p}1{p}\n{p}Aa{p}b'S" for p in points]
    for pattern in sorted(AGREED):
        tokenizer = train(CORPUS, TrainTokenizerConfig(300, pattern=pattern))
        fast = tiktoken_encoder(tokenizer)
        for text, encoding in zip(texts, tokenizer.reference.encode_batch_fast(texts), strict=True):
            assert fast(text).tolist() == encoding.ids


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | st.sampled_from(HARD_STRINGS), st.sampled_from(sorted(BY_NAME)))
def test_ranks_give_the_ids_of_tiktoken(text: str, pattern: str) -> None:
    tokenizer, encoding = FROM_RANKS[pattern]
    want = encoding.encode_ordinary(text)
    assert tokenizer.encode(text) == want == tiktoken_encoder(tokenizer)(text).tolist()
    assert tokenizer.decode(want) == text


def _from_ranks(pattern: str) -> tuple[Tokenizer, tiktoken.Encoding]:
    ids = {piece: i for i, piece in enumerate(BPE.pieces) if piece}
    encoding = tiktoken.Encoding("test", pat_str=BY_NAME[pattern], mergeable_ranks=ids, special_tokens={})
    return ranks_tokenizer(Ranks(ids, "test", pattern, {END: 600})), encoding


FROM_RANKS = {pattern: _from_ranks(pattern) for pattern in BY_NAME}


def test_merges_come_back_from_ranks() -> None:
    vocab, learned = BPE.spec["model"]["vocab"], BPE.spec["model"]["merges"]
    found = list(Ranks({piece: i for i, piece in enumerate(BPE.pieces) if piece}, "test").merges())
    assert found == [(BPE.pieces[vocab[left]], BPE.pieces[vocab[right]]) for left, right in learned]


def test_a_vocabulary_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    with pytest.raises(DataError, match=r"put cl100k_base.tiktoken into .* TIKTOKEN_CACHE_DIR .* as 9b5ad71b2ce53022"):
        read_ranks("cl100k_base")
    with pytest.raises(DataError, match="no file cl100k, and not one of the names gpt2, .*cl100k_base"):
        read_ranks("cl100k")
    cached = ranks_file(tmp_path / "cache" / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4")
    with pytest.raises(DataError, match="not the published cl100k_base"):
        read_ranks("cl100k_base")
    digest = hashlib.sha256(cached.read_bytes()).hexdigest()
    specials = {END: 500, "<|endofprompt|>": 520}
    known = replace(ranks.KNOWN["cl100k_base"], sha256=digest, specials=specials)
    monkeypatch.setitem(ranks.KNOWN, "cl100k_base", known)
    tokenizer = ranks_tokenizer(read_ranks("cl100k_base"), FIM)
    assert tokenizer.specials == {END: 500, "<|endofprompt|>": 520, FIM[0]: 521, FIM[1]: 522, FIM[2]: 523}
    assert tokenizer.encode("def x") == BPE.encode("def x")
    cached.rename(tmp_path / "cl100k_base.tiktoken")
    assert ranks_tokenizer(read_ranks("cl100k_base"), FIM).json == tokenizer.json
    (tmp_path / "cl100k_base.tiktoken").rename(tmp_path / "elsewhere")
    assert ranks_tokenizer(read_ranks("elsewhere"), FIM).json == tokenizer.json  # known by its content


@pytest.mark.parametrize(
    "more, message",
    [
        (b"YQ== x\n", "line 500 is not a base64 token"),
        (b"\xff\xfe 1\n", "line 500"),
        (b"!!!! 900\n", "line 500"),
        (b"one two three\n", "line 500"),
        (b"YWFhYWFh 0\n", "one rank for each token"),
        (b"YWFhYWFh 999999999999\n", "one rank for each token"),
        (b"YWFhYWFh -1\n", "one rank for each token"),
    ],
)
def test_bad_rank_files(more: bytes, message: str, tmp_path: Path) -> None:
    path = ranks_file(tmp_path / "bad.tiktoken")
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(DataError, match=rf"bad.tiktoken: .*{message}"):
        read_ranks(str(path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match="all 256 bytes"):
        read_ranks(str(path))


def test_a_tokenizer_json_like_gpt2s(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=499, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.add_special_tokens([END])
    spec = json.loads(made.to_str())
    spec["model"]["vocab"][END] = 499
    spec["pre_tokenizer"].pop("use_regex")  # as older files have it
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    how = TokenizerConfig(file=str(tmp_path / "tokenizer.json"))
    tokenizer = make_tokenizer(DataConfig(sources={}, tokenizer=how), [], False)
    encode, reason = fast_encoder(tokenizer, CORPUS)
    assert reason is None and tokenizer.end_id == 499
    for text in (*HARD_STRINGS, *CORPUS):
        assert encode(text).tolist() == made.encode(text.replace(END, "")).ids or END in text
        assert tokenizer.decode(encode(text).tolist()) == text
