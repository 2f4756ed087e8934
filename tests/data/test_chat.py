"""Conversations: how they are spelled, which of their tokens are targets, and what the store keeps of it."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Loader, Prepared, prepare
from data.config import DataConfig, SourceConfig, SplitConfig, TokenizerConfig, TrainTokenizerConfig
from data.documents import Document, Turn
from data.errors import DataError
from data.tokenizer import CHATML, END, fast_encoder
from data.tokens.chat import chat_prompt, encode_chat, ordinary_text
from data.tokens.vocabulary import byte_tokenizer, train

from .helpers import write_files

BYTE = byte_tokenizer(CHATML)  # <|im_start|> 256, <|im_end|> 257, <|endoftext|> 258
BPE = train([Path(__file__).read_text()], TrainTokenizerConfig(400), CHATML)
TALK = (Turn("user", "2?"), Turn("tool", "ok"), Turn("assistant", "4"))
Template = Literal["chatml", "plain"]


def test_chatml_by_hand() -> None:
    ids, mask = encode_chat(TALK, "chatml", ("assistant",), BYTE, BYTE.encode_array)
    want = [
        *(256, *b"user\n", *b"2?", 257, *b"\n"),
        *(256, *b"tool\n", *b"ok", 257, *b"\n"),
        *(256, *b"assistant\n", *b"4", 257, *b"\n"),
    ]
    assert ids.tolist() == want
    assert np.flatnonzero(mask).tolist() == [len(want) - 3, len(want) - 2]  # "4" and <|im_end|>


def test_plain_by_hand() -> None:
    ids, mask = encode_chat(TALK, "plain", ("assistant",), BYTE, BYTE.encode_array)
    text = b"user: 2?\n\ntool: ok\n\nassistant: 4\n\n"
    assert bytes(ids.tolist()) == text and bytes(ids[mask].tolist()) == b"4\n\n" and mask[-3:].all()
    assert ordinary_text(Document("a", "2?ok4", turns=TALK), "plain") == text.decode()
    assert ordinary_text(Document("a", "2?ok4", turns=TALK), "chatml") == "user\n2?\ntool\nok\nassistant\n4\n"
    assert ordinary_text(Document("a", "text"), "plain") == "text"


def test_a_prompt_is_how_training_spells_what_comes_before_an_answer() -> None:
    ids, end = chat_prompt("2?", BYTE)
    assert bytes(ids[1:8]) == b"user\n2?" and end == 257
    talk, mask = encode_chat(
        [Turn("user", "2?"), Turn("assistant", "4")], "chatml", ("assistant",), BYTE, BYTE.encode_array
    )
    first = int(np.flatnonzero(mask)[0])
    assert ids == talk[:first].tolist() and talk[first : first + 2].tolist() == [*b"4", end]
    with pytest.raises(DataError, match="the tokenizer has no"):
        chat_prompt("2?", byte_tokenizer())


texts = st.text(max_size=30) | st.sampled_from([END, "<|im_end|>\n<|im_start|>assistant\n", "assistant: ", "", "\x00"])
roles = st.sampled_from(["system", "user", "tool", "assistant", "critic"]) | st.text(max_size=5)
talks = st.lists(st.builds(Turn, roles, texts), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(talks, st.sampled_from(["chatml", "plain"]), st.sets(roles, max_size=3))
def test_targets_are_what_was_said(turns: list[Turn], template: Template, train_on: set[str]) -> None:
    document = Document("a", "", turns=tuple(turns))
    for tokenizer in (BYTE, BPE):
        ids, mask = encode_chat(turns, template, sorted(train_on), tokenizer, fast_encoder(tokenizer, [])[0])
        said = [turn.text for turn in turns if turn.role in train_on]
        after = "" if template == "chatml" else "\n\n"
        assert tokenizer.decode(ids[mask].tolist()) == "".join(text + after for text in said)
        assert tokenizer.decode(ids.tolist()) == ordinary_text(document, template)
        start, end = (tokenizer.specials[name] for name in CHATML)
        used = len(turns) if template == "chatml" else 0
        assert (ids == start).sum() == (ids == end).sum() == used and tokenizer.end_id not in ids
        assert (ids[mask] == end).sum() == (len(said) if used else 0) and start not in ids[mask]


def test_a_tokenizer_without_the_special_tokens() -> None:
    plain = byte_tokenizer()
    with pytest.raises(DataError, match=r"no <\|im_start\|>, which the template chatml needs"):
        encode_chat(TALK, "chatml", (), plain, plain.encode_array)
    assert len(encode_chat(TALK, "plain", (), plain, plain.encode_array)[0])


def talk_config(tmp_path: Path, template: Template, tokenizer: TokenizerConfig) -> DataConfig:
    messages = [
        [{"role": "system", "content": "Be <|im_end|> brief."}, {"role": "user", "content": f"What is {i}+{i}?"},
         {"role": "assistant", "content": f"é{2 * i}."}, {"role": "tool", "content": END},
         {"role": "assistant", "content": "Sure."}]
        for i in range(40)
    ]  # fmt: skip
    write_files(tmp_path, {"talk.jsonl": "".join(json.dumps({"talk": m}) + "\n" for m in messages)})
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/talk.jsonl",), messages="talk", template=template)
    out = str(tmp_path / "out")
    return DataConfig(sources={"talk": source}, dir=out, tokenizer=tokenizer, split=SplitConfig(val=0.2))


@pytest.mark.parametrize("template", ["chatml", "plain"])
@pytest.mark.parametrize("level", ["byte", "char", None])
def test_the_store_keeps_ids_masks_and_bytes(
    template: Template, level: Literal["byte", "char"] | None, tmp_path: Path
) -> None:
    how = TokenizerConfig(level=level) if level else TokenizerConfig(train=TrainTokenizerConfig(300))
    prepared = prepare(talk_config(tmp_path, template, how), 64, progress=False)
    tokenizer, store = prepared.tokenizer, prepared.store
    assert set(CHATML) <= set(tokenizer.specials) if template == "chatml" else set(tokenizer.specials) == {END}
    tokens, mask = store.tokens(0), store.mask(0)
    assert mask is not None and len(mask) == len(tokens)
    (offsets,), (nbytes,) = store.column("offsets"), store.column("nbytes")
    assert (tokens == store.end_id).sum() == len(offsets) == 41
    for i, (start, stop) in enumerate(zip(offsets.tolist(), offsets[1:].tolist(), strict=False)):
        ids, targets = tokens[start + 1 : stop], mask[start + 1 : stop].astype(bool)
        assert tokenizer.token_bytes[ids].sum() == nbytes[i] == len(tokenizer.decode_bytes(ids.tolist()))
        after = "" if template == "chatml" else "\n\n"
        assert tokenizer.decode(ids[targets].tolist()) == f"é{2 * i}.{after}Sure.{after}"
        assert mask[stop] == (template == "plain")  # the end token follows the last answer only where nothing else does
    assert store.shards[0].bytes == nbytes.sum()


@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_batches_have_only_what_assistants_say_as_targets(template: Template, tmp_path: Path) -> None:
    prepared = prepare(talk_config(tmp_path, template, TokenizerConfig(level="byte")), 256, progress=False)
    rows = prepared.train.rows
    (step,) = Loader(prepared, batch_rows=rows, micro_rows=rows, seed=0).steps(0, 1)
    (batch,) = step.micro
    valid = batch.targets >= 0
    assert step.targets == int(valid.sum()) == prepared.train.targets
    text = prepared.tokenizer.decode(batch.targets[valid].tolist())
    after = "" if template == "chatml" else "\n\n"
    said = [f"\u00e9{2 * i}.{after}Sure.{after}" for i in trained_on(prepared)]
    assert sorted(text.replace(f"Sure.{after}", f"Sure.{after}|").split("|")) == sorted(["", *said])
    assert int(batch.bytes[valid].sum()) == len(text.encode()) and not batch.bytes[~valid].any()


def trained_on(prepared: Prepared) -> list[int]:
    """Which of the conversations are trained on."""
    held_out = b"".join(prepared.val_documents())
    return [i for i in range(40) if f"What is {i}+{i}?".encode() not in held_out]
