"""Leaving out documents that share an n-gram with evaluation texts."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning.choose import dropped_documents
from data.cleaning.contamination import _holds_any, _wanted, digest
from data.config import CleanConfig, DataConfig, DecontaminateConfig, SplitConfig
from data.corpus import prepare
from data.errors import DataError
from data.prepared import Prepared

from .helpers import text_config, text_source, write_files

WORDS = [f"w{i}" for i in range(30)]
QUESTION = " ".join(WORDS)


def make(config: DataConfig) -> Prepared:
    return prepare(config, 32, progress=False)


def with_files(config: DataConfig, *files: Path | str, ngram: int = 13) -> DataConfig:
    return replace(config, clean=CleanConfig(decontaminate=DecontaminateConfig(tuple(map(str, files)), ngram)))


def reasons(prepared: Prepared) -> dict[str, str]:
    return {name.rpartition("/")[2]: reason for name, _, reason in dropped_documents(prepared)}


def test_thirteen_words_are_enough(tmp_path: Path) -> None:
    texts = {
        "a.txt": "before " + " ".join(WORDS[4:17]) + " after",
        "b.txt": "before " + " ".join(WORDS[4:16]) + " after",
        "c.txt": "Before: " + ",\n".join(WORDS[:13]).upper() + "!",
        "d.txt": " ".join(WORDS[:12] + ["x"] + WORDS[13:25]),
        "e.txt": "a short saying of mine, in the middle of a text",
        "f.txt": "yes", "g.txt": "yes, but not that alone", "h.txt": "nothing of it",
    }  # fmt: skip
    rows = [{"q": QUESTION, "answers": ["yes", {"why": "A short saying of mine"}], "n": 13}, {}, "of"]
    write_files(
        tmp_path, {"e/test.jsonl": "\n\n".join(map(json.dumps, rows)) + "\n", "e/more.txt": "not in the corpus"}
    )
    config = text_config(tmp_path, texts, split=SplitConfig(by="tail", val=0.3))
    prepared = make(with_files(config, tmp_path / "e" / "*"))
    assert reasons(prepared) == dict.fromkeys(("a.txt", "c.txt", "e.txt", "f.txt"), "contaminated")
    assert prepared.plan.facts["dropped"] == {"a": {"contaminated": 4}}
    longer = make(with_files(config, tmp_path / "e" / "*", ngram=14))
    assert sorted(reasons(longer)) == ["e.txt", "f.txt"]


def test_held_out_sources_are_left_alone(tmp_path: Path) -> None:
    texts = {"a.txt": f"{QUESTION} again", "b.txt": "another text"}
    write_files(tmp_path, {"v/v.txt": QUESTION})
    config = text_config(tmp_path, texts, split=SplitConfig(sources={"v": text_source(tmp_path / "v")}))
    prepared = make(with_files(config, tmp_path / "v" / "v.txt"))
    assert reasons(prepared) == {"a.txt": "contaminated"}
    assert list(prepared.val_documents()) == [QUESTION.encode()]


def test_what_files_hold_names_the_plan(tmp_path: Path) -> None:
    texts = {f"{i}.txt": f"{i} " + " ".join(random.Random(i).choices(WORDS, k=40)) for i in range(6)}
    config = text_config(tmp_path, texts, split=SplitConfig(by="tail", val=0.3))
    file = write_files(tmp_path / "e", {"x.txt": "unseen words"}) / "x.txt"
    first = make(with_files(config, file))
    before = digest(first.config.clean.decontaminate)
    assert reasons(first) == {}
    file.write_text(texts["3.txt"])
    second = make(with_files(config, file))
    assert reasons(second) == {"3.txt": "contaminated"}
    assert first.directory == second.directory and first.fingerprint != second.fingerprint
    assert len(list((first.directory / "plans").iterdir())) == len(list((first.directory / "derived").iterdir())) == 2
    after = digest(second.config.clean.decontaminate)
    moved = file.rename(tmp_path / "e" / "y.txt")  # the same content under another name is the same
    assert before != after == digest(DecontaminateConfig((str(moved),)))


def test_files_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, split=SplitConfig(val=0.3))
    with pytest.raises(DataError, match="data.clean.decontaminate.files: no file matches 'none/\\*.jsonl'"):
        make(with_files(config, "none/*.jsonl"))
    write_files(tmp_path / "e", {"bad.jsonl": '{"a": "b"}\n{"a": \n', "odd.jsonl": b'"\xff"', "ok.txt": b"\xff latin"})
    for name, message in (("bad", r"bad.jsonl:2: not JSON"), ("odd", "odd.jsonl: not UTF-8 at byte 1")):
        with pytest.raises(DataError, match=message) as caught:
            make(with_files(config, tmp_path / "e" / f"{name}.jsonl"))
        assert "\n" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    make(with_files(config, "e/ok.txt"))  # relative to the working directory


def test_compressed_evaluation_files_are_read_and_others_refused(tmp_path: Path) -> None:
    config = text_config(
        tmp_path,
        {"a.txt": QUESTION, "b.txt": "word " * 9, "c.txt": "other " * 9},
        split=SplitConfig(by="tail", val=0.3),
    )
    raw = json.dumps({"q": QUESTION}).encode()
    write_files(tmp_path / "e", {"a.jsonl.gz": gzip.compress(raw), "b.txt.gz": gzip.compress(QUESTION.encode())})
    for name in ("a.jsonl.gz", "b.txt.gz"):
        assert reasons(make(with_files(config, tmp_path / "e" / name))) == {"a.txt": "contaminated"}
    write_files(tmp_path / "e", {"a.gz.txt": gzip.compress(raw), "16.txt": QUESTION.encode("utf-16")})
    for name in ("a.gz.txt", "16.txt"):
        with pytest.raises(DataError, match=f"{name} is no text"):
            make(with_files(config, tmp_path / "e" / name))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), min_size=1, max_size=5),
    st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=5),
    st.integers(1, 7),
)
def test_against_loops(
    tmp_path_factory: pytest.TempPathFactory, evaluation: list[list[str]], documents: list[list[str]], n: int
) -> None:
    path = tmp_path_factory.mktemp("e") / "e.jsonl"
    path.write_text("".join(json.dumps(" ".join(text)) + "\n" for text in evaluation))
    wanted = _wanted(DecontaminateConfig((str(path),), n))
    found = _holds_any([" ".join(text).encode() for text in documents], wanted).tolist()

    def holds(document: list[str], text: list[str]) -> bool:
        if len(text) < min(4, n):
            return document == text
        size = min(n, len(text))
        grams = [text[i : i + size] for i in range(len(text) - size + 1)]
        return any(document[i : i + size] in grams for i in range(len(document) - size + 1))

    assert found == [any(holds(document, text) for text in evaluation) for document in documents]
