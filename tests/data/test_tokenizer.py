"""Ids, bytes and the fast path."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from data.config import TrainTokenizerConfig
from data.errors import DataError
from data.store import token_dtype
from data.tokenizer import (
    END,
    HARD_STRINGS,
    Tokenizer,
    byte_alphabet,
    fast_encoder,
    load_tokenizer,
    tiktoken_encoder,
)
from data.tokens.vocabulary import byte_tokenizer, char_tokenizer, train

CORPUS = [Path(__file__).read_text(), Path(pytest.__file__).read_text(), "naïve 中文 don't 1234567\r\n\t x" * 20]
BPE = train(CORPUS, TrainTokenizerConfig(600))
RUNS = train([*CORPUS, "a" * 5000 + "\n" + " " * 5000 + "=-" * 500 + "the rain in short "], TrainTokenizerConfig(600))
BYTE = byte_tokenizer()
ANY_TEXT = st.text(st.characters(), max_size=60) | st.sampled_from(HARD_STRINGS)  # with surrogates, NUL, BOM, CRLF


def repaired(text: str) -> str:
    """What UTF-8 can hold of a text."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
def test_every_text_comes_back(text: str) -> None:
    want = repaired(text)
    for tokenizer in (BPE, BYTE, char_tokenizer(want + "x")):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == want
        assert tokenizer.end_id not in ids
        assert int(tokenizer.token_bytes[ids].sum()) == len(want.encode())
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
def test_own_tables_and_tiktoken_agree_with_tokenizers(text: str) -> None:
    text = repaired(text)
    for tokenizer in (BPE, BYTE, char_tokenizer(text + "x")):
        reference = tokenizer.reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == reference
        assert tokenizer.decode(reference) == tokenizer.reference.decode(reference)
    assert tiktoken_encoder(BPE)(text).tolist() == BPE.encode(text)


def test_every_character_is_cut_alike_by_both_backends() -> None:
    points = [chr(c) for c in range(0, 0x30000, 7) if not 0xD800 <= c < 0xE000]
    texts = [f" a{p}b {p}{p}1{p}\n{p}" for p in points]
    fast = tiktoken_encoder(BPE)
    for text, encoding in zip(texts, BPE.reference.encode_batch_fast(texts), strict=True):
        assert fast(text).tolist() == encoding.ids


LONG = {
    "spaces": " " * 1_000_000,
    "letters": "a" * 1_000_000,
    "other letters": "".join(random.Random(0).choices("etaoinshr", k=1_000_000)),
    "lines": "\n" * 300_000,
    "marks": "=-" * 150_000,
}


@pytest.mark.parametrize("name", LONG)
def test_very_long_runs(name: str) -> None:
    """Neither library is quadratic, and what tiktoken cannot do goes to the other."""
    ids = tiktoken_encoder(RUNS)(LONG[name])
    assert RUNS.decode_bytes(ids.tolist()) == LONG[name].encode()
    assert np.array_equal(ids, RUNS.encode_array(LONG[name]))


@pytest.mark.soak
def test_a_line_of_50_mb() -> None:
    line = CORPUS[1].replace("\n", " ") * (50_000_000 // len(CORPUS[1]))
    ids = tiktoken_encoder(BPE)(line)
    assert int(BPE.token_bytes[ids].sum()) == len(line.encode())


@pytest.mark.soak
def test_long_documents_leave_nothing_behind() -> None:
    code = """
import resource, sys
from data.config import TrainTokenizerConfig
from data.tokenizer import tiktoken_encoder
from data.tokens.vocabulary import train
tokenizer = train([open("data/tokens/vocabulary.py").read()], TrainTokenizerConfig(400))
encode = tiktoken_encoder(tokenizer)
peaks = []
for i in range(33):
    for text in (" " * 1_000_000, f"{i}x" * 300_000, "a" * 500_000 + str(i)):
        encode(text)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[5], peaks[-1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    early, late = map(int, done.stdout.split())
    assert late < 1.2 * early


def test_a_rust_panic_falls_back_and_other_errors_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken

    class PanicException(BaseException):
        pass

    failure: list[BaseException] = [PanicException("panicked")]

    class Broken(tiktoken.Encoding):
        def encode_to_numpy(self, *args: object, **kwargs: object) -> np.ndarray:
            raise failure[0]

    monkeypatch.setattr(tiktoken, "Encoding", Broken)
    encode = tiktoken_encoder(BPE)
    assert encode("hello").tolist() == BPE.encode("hello")
    failure[0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        encode("hello")


def test_the_fast_path_is_used_only_when_it_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    encode, reason = fast_encoder(BPE, CORPUS)
    assert reason is None and encode != BPE.encode_array
    monkeypatch.setattr("data.tokenizer._pattern", lambda spec: r"\S+|\s+")
    encode, reason = fast_encoder(BPE, CORPUS)
    assert encode == BPE.encode_array and reason is not None and "tiktoken gives other ids" in reason
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    encode, reason = fast_encoder(BPE, [])
    assert encode == BPE.encode_array and reason is not None and "tiktoken" in reason


def test_special_tokens_in_text_are_text() -> None:
    for tokenizer in (BPE, BYTE, char_tokenizer(END + "ab")):
        ids = tokenizer.encode(f"a{END}b")
        assert tokenizer.end_id not in ids
        assert tokenizer.decode(ids) == f"a{END}b"
        assert tokenizer.decode([*ids, tokenizer.end_id]) == f"a{END}b"
        assert tokenizer.token_bytes[tokenizer.end_id] == 0


def test_ids() -> None:
    assert BYTE.encode("é\n") == [0xC3, 0xA9, 0x0A] and (BYTE.end_id, BYTE.vocab_size) == (256, 257)
    char = char_tokenizer("banana")
    assert char.encode("nab") == [2, 0, 1] and (char.end_id, char.vocab_size) == (3, 4)
    assert (BPE.vocab_size, BPE.end_id) == (600, 599)
    assert train(["aaaa"], TrainTokenizerConfig(5000)).vocab_size < 5000  # there are no more pairs to merge
    least = TrainTokenizerConfig(257)
    assert train([], least).encode("ab") == train(["xyz"], least).encode("ab")
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_char_refuses_what_it_has_not_seen() -> None:
    tokenizer = char_tokenizer("abc")
    for text in ("abd", "ab\U0010ffff"):
        with pytest.raises(DataError, match="has no"):
            tokenizer.encode(text)
    assert tokenizer.encode("") == []


def test_training_repeats_in_another_process() -> None:
    code = """
import sys
from data.config import TrainTokenizerConfig
from data.tokens.vocabulary import train
print(train(eval(sys.stdin.read()), TrainTokenizerConfig(600)).sha256)
"""
    done = subprocess.run([sys.executable, "-c", code], input=repr(CORPUS), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == BPE.sha256


@pytest.mark.parametrize("vocab_size, size", [(257, 2), (65_535, 2), (65_536, 2), (65_537, 4), (1 << 20, 4)])
def test_token_dtype(vocab_size: int, size: int) -> None:
    dtype = token_dtype(vocab_size)
    assert dtype.itemsize == size
    assert np.array([vocab_size - 1]).astype(dtype)[0] == vocab_size - 1


def test_saving_and_loading(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000001"
    checkpoint.mkdir(parents=True)
    BPE.save(tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "tokenizer.json", checkpoint):
        loaded = load_tokenizer(path)
        assert loaded.sha256 == BPE.sha256 and loaded.encode("def x") == BPE.encode("def x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tokenizer.json"):
        load_tokenizer(tmp_path / "empty")


def foreign(**changes: object) -> str:
    return json.dumps(json.loads(BPE.json) | changes)


def test_foreign_tokenizers() -> None:
    model = BPE.spec["model"]
    gpt2 = tokenizers.Tokenizer(models.BPE(model["vocab"], [tuple(pair) for pair in model["merges"]]))
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2.add_special_tokens(["<|start|>", "</s>"])
    tokenizer = Tokenizer(gpt2.to_str())
    assert tokenizer.end_id == gpt2.token_to_id("</s>")
    assert tokenizer.decode(tokenizer.encode("<|start|> é</s>")) == "<|start|> é</s>"
    added = Tokenizer(gpt2.to_str()).json
    gpt2.add_tokens(["    "])  # not special: part of the text, so worth its bytes
    tokenizer = Tokenizer(gpt2.to_str())
    assert tokenizer.json != added
    ids = tokenizer.encode("x    y")
    assert gpt2.token_to_id("    ") in ids and int(tokenizer.token_bytes[ids].sum()) == 6
    encode, reason = fast_encoder(tokenizer, [])
    assert reason is None and encode != tokenizer.encode_array and encode("x    y").tolist() == ids


def test_merges_that_tiktoken_cannot_follow_are_found_without_an_example() -> None:
    model = BPE.spec["model"]
    *others, last = model["merges"]
    vocab = model["vocab"] | {"".join(last): model["vocab"]["".join(others[-1])], "".join(others[-1]): 598}
    for changes, why in (
        ({"merges": others}, "its merges do not make its token"),
        ({"merges": [last, *others]}, "its merges are not in the order"),
        ({"vocab": vocab}, "its merges are not in the order"),
    ):
        tokenizer = Tokenizer(foreign(model=model | changes))
        encode, reason = fast_encoder(tokenizer, ["a text without them"])
        assert encode == tokenizer.encode_array and reason is not None and reason.startswith(why)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not a tokenizer.json"),
        ("[]", "not a tokenizer.json"),
        ("{}", "not a tokenizer.json"),
        (foreign(normalizer={"type": "NFC"}), "remove the normalizer"),
        (foreign(pre_tokenizer={"type": "Whitespace"}), "not byte-level"),
        (foreign(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "set it to false"),
        (foreign(added_tokens=[]), "no end-of-document token"),
        (foreign(model=BPE.spec["model"] | {"dropout": 0.1}), "dropout does not give the same ids"),
        (foreign(model=BPE.spec["model"] | {"end_of_word_suffix": "x"}), "set it to null"),
        (foreign(model={"type": "Unigram", "vocab": []}), "Unigram tokenizer that is not byte-level"),
        (foreign(model={"type": "BPE", "vocab": {"a": 0}, "merges": []}), "lacks some of the 256 bytes"),
    ],
)
def test_refused_tokenizers(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Tokenizer(text, "mine.json")
    assert str(caught.value).startswith("mine.json: ") and "\n" not in str(caught.value)


def _mutated(data: st.DataObject, value: Any) -> Any:
    """A JSON value in which one place, chosen by hypothesis, holds something else."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 9)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = data.draw(st.sampled_from(keys))
        copy = value.copy()
        copy[key] = _mutated(data, value[key])
        return copy
    return data.draw(st.sampled_from([None, -1, 10**15, 0.5, True, "", "x", [], {}, [[]], {"type": "Split"}]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_tokenizer_json_is_refused_in_one_line_or_works(data: st.DataObject) -> None:
    spec = _mutated(data, BPE.spec)
    try:
        tokenizer = Tokenizer(json.dumps(spec), "mine.json")
        encode, _ = fast_encoder(tokenizer, [])
        for text in (*HARD_STRINGS, "def x"):
            ids, raw = encode(text), text.encode()
            whole = int(tokenizer.token_bytes[ids].sum()) == len(raw)  # else the store refuses the document
            assert (tokenizer.decode_bytes(ids.tolist()) == raw) == whole
    except DataError as error:
        assert "\n" not in str(error)


def test_a_saved_char_tokenizer_opens_in_tokenizers() -> None:
    opened = tokenizers.Tokenizer.from_str(char_tokenizer("ab\n é").json)
    assert opened.decode(opened.encode("é a\nb").ids) == "é a\nb"
