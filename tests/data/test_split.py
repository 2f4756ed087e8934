"""Which documents are used, and on which side."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig, PackConfig, SourceConfig, SplitConfig
from data.corpus import prepare
from data.errors import DataError
from data.prepared import Prepared

from .helpers import bpe, random_texts, text_config, text_source, write_files


def make(config: DataConfig, context: int = 32) -> Prepared:
    return prepare(config, context, progress=False)


def side_texts(prepared: Prepared, side: str) -> list[bytes]:
    """The documents of a side. Those to train on are put together from their rows: one after another in concat mode."""
    if side == "val":
        return list(prepared.val_documents())
    plan, decode = getattr(prepared, side), prepared.tokenizer.decode_bytes
    text, texts = b"", []
    for shard, start, length in zip(plan.shard, plan.start, plan.length, strict=True):
        targets = prepared.store.tokens(shard)[start + 1 : start + length + 1].tolist()
        text += decode(targets)
        if targets[-1] == prepared.store.end_id:
            texts.append(text)
            text = b""
    return [*texts, text] if text else texts


CONCAT: dict[str, Any] = {"pack": PackConfig(mode="concat")}


def test_hash_split_keeps_every_text_once(tmp_path: Path) -> None:
    texts = random_texts(60)
    prepared = make(text_config(tmp_path, texts, split=SplitConfig(val=0.2), **CONCAT))
    train, val = side_texts(prepared, "train"), side_texts(prepared, "val")
    assert sorted(train + val) == sorted(text.encode() for text in texts.values())
    assert not set(train) & set(val) and 0 < len(val) < 30
    assert list(prepared.val_documents()) == val
    assert prepared.bytes_by_source("val") == {"a": sum(map(len, val))}
    assert prepared.bytes_by_source("train") == {"a": sum(map(len, train))}


def test_a_text_stays_on_its_side(tmp_path: Path) -> None:
    texts = random_texts(60)
    split = SplitConfig(val=0.2)
    first = set(make(text_config(tmp_path / "1", texts, split=split)).val_documents())
    renamed = {f"other/{name}.py": text for name, text in texts.items()}
    grown = renamed | random_texts(40, seed=9)
    second = set(make(text_config(tmp_path / "2", grown, split=split, tokenizer=bpe())).val_documents())
    assert first == {text for text in second if text.decode() in texts.values()}


def test_duplicates_empty_and_undecodable_are_dropped(tmp_path: Path) -> None:
    texts: dict[str, str | bytes] = {**random_texts(40)}
    again = {"z1.txt": texts["f000.txt"], "z2.txt": texts["f000.txt"], "e1.txt": "", "e2.txt": " \r\n\t"}
    bad = {"b.txt": b"caf\xe9"}
    config = text_config(tmp_path, texts | again | bad, split=SplitConfig(val=0.2), max_bad_fraction=0.1, **CONCAT)
    write_files(tmp_path / "b", {"copy.txt": texts["f001.txt"], "own.txt": "mine"})
    config = DataConfig(**{**vars(config), "sources": {**config.sources, "b": text_source(tmp_path / "b")}})
    prepared = make(config)
    want = {"a": {"duplicate": 2, "empty": 2, "undecodable": 1}, "b": {"duplicate": 1}}
    assert prepared.plan.facts["dropped"] == want
    assert sorted(side_texts(prepared, "train") + side_texts(prepared, "val")) == sorted(
        [str(text).encode() for text in texts.values()] + [b"mine"]
    )
    assert any("3 duplicate, 2 empty, 1 undecodable" in line for line in prepared.summary())


def test_held_out_sources(tmp_path: Path) -> None:
    texts, held = random_texts(20), random_texts(5, seed=3)
    write_files(tmp_path / "v", held | {"copy.txt": texts["f003.txt"]})
    split = SplitConfig(sources={"v": text_source(tmp_path / "v"), "a": text_source(tmp_path / "v", exclude=("f*",))})
    prepared = make(text_config(tmp_path, texts, split=split, **CONCAT))
    val = set(prepared.val_documents())
    assert val == {text.encode() for text in held.values()} | {texts["f003.txt"].encode()}
    assert not val & set(side_texts(prepared, "train"))  # what stands in both is held out
    assert prepared.source_names == ("a", "v")
    assert prepared.train.rows_by_source["v"] == 0 and prepared.val.rows_by_source["v"] > 0


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text("ab \n中é", min_size=30, max_size=200), min_size=1, max_size=3, unique=True),
    st.floats(0.1, 0.5),
    st.booleans(),
)
def test_tails(tmp_path_factory: pytest.TempPathFactory, texts: list[str], fraction: float, trained: bool) -> None:
    texts = [f"{i}{text}x" for i, text in enumerate(texts)]
    config = text_config(
        tmp_path_factory.mktemp("tails"),
        {f"{i}.txt": text for i, text in enumerate(texts)},
        split=SplitConfig(val=fraction, by="tail"),
        **({"tokenizer": bpe(262)} if trained else {}),
        **CONCAT,
    )
    prepared = make(config)
    raw = [text.encode() for text in texts]
    heads = side_texts(prepared, "train")
    tails = list(prepared.val_documents())
    joined = b"".join(heads)
    assert len(tails) == len(raw) and sum(map(len, tails)) + len(joined) == sum(map(len, raw))
    for whole, tail in zip(raw, tails, strict=True):
        assert whole.endswith(tail) and 0 < len(tail) <= fraction * len(whole) + 1e-9
        assert whole[: -len(tail)] in joined
        tail.decode()  # never inside a character
    assert sum(prepared.bytes_by_source("val").values()) == sum(map(len, tails))
    assert sum(prepared.bytes_by_source("train").values()) == len(joined)
    assert prepared.train.targets + prepared.val.targets == sum(s.tokens + s.documents for s in prepared.store.shards)


def test_tails_of_conversations(tmp_path: Path) -> None:
    """A special token has no bytes, and a cut may stand before one."""
    said = [{"role": role, "content": f"{role} {i}"} for i in range(4) for role in ("user", "assistant")]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"m": said[: 2 * n]}) + "\n" for n in range(1, 5)))
    source = SourceConfig(kind="jsonl", files=(str(tmp_path / "chat.jsonl"),), messages="m")
    for fraction in (0.1, 0.3, 0.5, 0.55, 0.9):
        split = SplitConfig(val=fraction, by="tail")
        prepared = make(text_config(tmp_path, sources={"c": source}, split=split))
        pairs = prepared.train.length.sum() + prepared.val.length.sum()
        assert pairs == sum(shard.tokens + shard.documents for shard in prepared.store.shards)
        have = [sum(prepared.bytes_by_source(side).values()) for side in ("train", "val")]
        assert sum(have) == sum(shard.bytes for shard in prepared.store.shards) and have[1] <= fraction * sum(have)


def test_a_tail_starts_with_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(200))
    prepared = make(text_config(tmp_path, {"a.txt": text}, split=SplitConfig(val=0.1, by="tail")))
    (tail,) = prepared.val_documents()
    assert tail.startswith(b"line ") and 0.07 < len(tail) / len(text) <= 0.1


@pytest.mark.parametrize("seed", range(4))
def test_the_advised_fraction_works(tmp_path: Path, seed: int) -> None:
    texts = random_texts(3, seed=seed)
    tiny = SplitConfig(val=1e-9)
    with pytest.raises(DataError) as caught:
        make(text_config(tmp_path, texts, split=tiny))
    assert "\n" not in str(caught.value) and "holds out none of 3 documents" in str(caught.value)
    advice = re.search(r"data.split.val = (\S+) would", str(caught.value).split(";")[1])
    assert advice
    prepared = make(text_config(tmp_path, texts, split=SplitConfig(val=float(advice[1]))))
    assert prepared.val.rows and prepared.train.rows


def test_the_advised_tail_works(tmp_path: Path) -> None:
    texts = {"a.txt": "x" * 50 + "\u4e2d"}
    with pytest.raises(DataError) as caught:
        make(text_config(tmp_path, texts, split=SplitConfig(val=1e-9, by="tail")))
    advice = re.search(r"; data.split.val = (\S+) would", str(caught.value))
    assert advice
    assert list(make(text_config(tmp_path, texts, split=SplitConfig(val=float(advice[1]), by="tail"))).val_documents())


def test_splits_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data.split.by: tail would"):
        make(text_config(tmp_path / "1", {"a.txt": "only one"}, split=SplitConfig(val=1e-9)))
    with pytest.raises(DataError, match="too small to hold anything out"):
        make(text_config(tmp_path / "2", {"a.txt": "x"}, split=SplitConfig(by="tail")))
    with pytest.raises(DataError, match="leaves none to train on"):
        make(text_config(tmp_path / "3", {"a.txt": "x"}, split=SplitConfig(val=0.999999999999999)))
    with pytest.raises(DataError, match="no document is left"):
        make(text_config(tmp_path / "4", {"a.txt": b"\xff", "b.txt": "\n"}, max_bad_fraction=1.0))
    write_files(tmp_path / "v", {"v.txt": " "})
    split = SplitConfig(sources={"v": text_source(tmp_path / "v")})
    with pytest.raises(DataError, match="data.split.sources: no document is left"):
        make(text_config(tmp_path / "5", split=split))
