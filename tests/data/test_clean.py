"""Which documents are used, why the others are not, and that no text is on both sides."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import sources
from data.cleaning.choose import dropped_documents, judge, statistic
from data.cleaning.measures import measure
from data.config import Bounds, CleanConfig, DataConfig, NearConfig, SourceConfig, SplitConfig
from data.corpus import lookup, prepare
from data.errors import DataError
from data.making import build
from data.prepared import Prepared
from data.rows.split import Documents

from .helpers import bpe, content, random_texts, text_config, text_source, write_files

SPLIT = SplitConfig(val=0.3)


def make(config: DataConfig) -> Prepared:
    return prepare(config, 32, progress=False)


def reasons(prepared: Prepared) -> dict[str, str]:
    """{id: reason}, ids without their folder."""
    return {name.rpartition("/")[2]: reason for name, _, reason in dropped_documents(prepared)}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> SourceConfig:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return SourceConfig(kind="jsonl", files=(str(path),), id="id", labels={"language": "lang"})


def test_one_reason_each_in_their_order(tmp_path: Path) -> None:
    long = random_texts(1)["f000.txt"]
    rows = [
        {"id": "kept", "text": long, "lang": "en"},
        {"id": "copy", "text": long, "lang": "en"},
        {"id": "near", "text": long.upper(), "lang": "en"},
        {"id": "french", "text": long, "lang": "fr"},
        {"id": "none", "text": long + " x"},
        {"id": "blank", "text": "  \n", "lang": "fr"},
        {"id": "short", "text": "1234", "lang": "fr"},
        {"id": "digits", "text": "12345678 a", "lang": "fr"},
        {"id": "broken", "text": "\ud800", "lang": "en"},
        {"id": "other", "text": "something else that is long enough", "lang": "de"},
    ]
    rules = CleanConfig(
        keep={"chars": Bounds(min=5, max=1000), "digits": Bounds(max=0.3)}, languages=("en", "de"), near=NearConfig()
    )
    base = text_config(tmp_path, split=SplitConfig(by="tail"), max_bad_fraction=0.5)
    config = replace(base, sources={"s": jsonl(tmp_path / "s.jsonl", rows)}, clean=rules)
    prepared = make(config)
    assert reasons(prepared) == {
        "copy": "duplicate", "near": "near duplicate", "french": "language", "none": "language", "blank": "empty",
        "short": "chars < 5", "digits": "digits > 0.3", "broken": "undecodable",
    }  # fmt: skip
    counts = Counter(reason for _, source, reason in dropped_documents(prepared) if source == "s")
    assert prepared.plan.facts["dropped"] == {"s": dict(counts)}
    assert prepared.plan.facts["documents"]["train"] == {"s": 2}
    everything = make(replace(config, clean=CleanConfig(undecodable="keep", exact=False)))
    assert reasons(everything) == {"blank": "empty"} and everything.directory == prepared.directory
    assert everything.fingerprint != prepared.fingerprint


def test_undecodable_texts_that_are_kept_are_not_bad(tmp_path: Path) -> None:
    texts: dict[str, str | bytes] = {**random_texts(5), "b.txt": b"caf\xe9", "c.txt": b"th\xe9"}
    config = text_config(tmp_path, texts, split=SplitConfig(by="tail"))
    with pytest.raises(DataError, match="2 of 7 documents of 'a' are unreadable"):
        make(config)
    prepared = make(replace(config, clean=CleanConfig(undecodable="keep")))
    assert not prepared.plan.facts["dropped"] and prepared.plan.facts["documents"]["train"] == {"a": 7}


def test_an_equal_text_that_may_be_used_stays(tmp_path: Path) -> None:
    rows = [{"id": "1", "text": "the same text", "lang": "xx"}, {"id": "2", "text": "the same text", "lang": "en"}]
    clean = CleanConfig(languages=("en",))
    config = text_config(tmp_path, split=SplitConfig(by="tail", val=0.3), clean=clean)
    prepared = make(replace(config, sources={"s": jsonl(tmp_path / "s.jsonl", rows)}))
    assert reasons(prepared) == {"1": "language"}


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(["chars", "words", "letters", "mean_word", "repeated_ngrams"]), st.integers(0, 39), st.booleans()
)
def test_bounds_hold_their_ends(tmp_path_factory: pytest.TempPathFactory, name: str, at: int, least: bool) -> None:
    folder = tmp_path_factory.mktemp("bounds")
    config = text_config(folder, split=SplitConfig(by="tail"))
    store = make(config).store
    values = statistic(store, name)
    bound = float(str(values[at]))  # as a person would write it
    clean = CleanConfig(keep={name: Bounds(min=bound) if least else Bounds(max=bound)})
    code = judge(Documents.gather(store, ("a",)), store, clean).code
    assert np.array_equal(code >= 0, values < values[at] if least else values > values[at])


def test_statistics_are_of_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SHARD_BYTES", 1500)
    texts = random_texts(30)
    store = make(text_config(tmp_path, texts, split=SPLIT, tokenizer=bpe())).store
    want = measure([text.encode() for text in texts.values()])
    assert len(store.shards) > 2
    for name, values in want.items():
        assert np.array_equal(statistic(store, name), values)


def test_a_changed_threshold_reads_no_text_and_looking_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = text_config(tmp_path, split=SPLIT)
    first = make(config)
    before = content(tmp_path / "out")
    clean = CleanConfig(near=NearConfig(), keep={"chars": Bounds(min=40), "repeated_ngrams": Bounds(max=0.5)})
    found = lookup(replace(config, clean=clean), 32)
    assert found and content(tmp_path / "out") == before
    made = make(replace(config, clean=clean))
    assert made.plan.facts == found.plan.facts and made.directory == first.directory
    monkeypatch.setattr("data.cleaning.near.texts", None)  # what was derived is read
    monkeypatch.setattr("data.cleaning.repetition.texts", None)
    monkeypatch.setattr("data.making.build.list_tasks", None)
    stricter = replace(clean, keep={"chars": Bounds(min=60), "repeated_ngrams": Bounds(max=0.01)})
    assert len(list(dropped_documents(make(replace(config, clean=stricter))))) > len(list(dropped_documents(made)))


def test_rules_that_cannot_be(tmp_path: Path) -> None:
    config = text_config(tmp_path, split=SPLIT)
    make(config)
    for clean, message in (
        (CleanConfig(keep={"charz": Bounds(min=1)}), "nothing is called 'charz'; there are chars, words"),
        (CleanConfig(languages=("en",)), "no document has the label `language`; name its field in `labels`"),
        (CleanConfig(keep={"chars": Bounds(min=10**9)}), "no document is left"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            make(replace(config, clean=clean))
        assert "\n" not in str(caught.value)
    rows = [{"id": str(i), "text": f"text {i}", "lang": "de"} for i in range(9)]
    with pytest.raises(DataError, match="no document is in en, fr; there are de"):
        named = {"s": jsonl(tmp_path / "s.jsonl", rows)}
        make(replace(config, sources=named, clean=CleanConfig(languages=("en", "fr"))))


def sides(prepared: Prepared) -> tuple[set[bytes], set[bytes]]:
    """The hashes of the documents of each side."""
    hashes = [row.tobytes() for column in prepared.store.column("hash") for row in column]
    plans = (prepared.train, prepared.val)
    train, val = ({hashes[i] for i in prepared.store.documents_at(p.shard, p.start).tolist()} for p in plans)
    return train, val


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(1000, 3000))
def test_a_text_has_one_side(
    tmp_path_factory: pytest.TempPathFactory, seed: int, near: bool, trained: bool, size: int
) -> None:
    """The same texts under other names, in other sources, shards and tokens, beside more texts: each stays where it
    was, and no text is on both sides."""
    folder, rng = tmp_path_factory.mktemp("sides"), random.Random(seed)
    texts = list(random_texts(30, seed).values())
    config = text_config(folder / "1", dict(enumerate_names(texts)), split=SPLIT)
    config = replace(config, clean=CleanConfig(near=NearConfig() if near else None))
    first = sides(make(config))
    grown = texts + list(random_texts(20, seed + 1).values()) + rng.sample(texts, 10)
    rng.shuffle(grown)
    write_files(folder / "2" / "x", dict(enumerate_names(grown[:20], "other/")))
    write_files(folder / "2" / "y", dict(enumerate_names(grown[20:], "more")))
    places = {name: text_source(folder / "2" / name) for name in ("y", "x")}
    other = replace(
        config, sources=places, dir=str(folder / "2" / "out"), tokenizer=bpe() if trained else config.tokenizer
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "TASK_BYTES", size)
        patch.setattr(build, "SHARD_BYTES", size)
        second = sides(make(other))
    for train, val in (first, second):
        assert not train & val
    assert not first[0] & second[1] and not first[1] & second[0]
    if not near:
        assert first[0] <= second[0] and first[1] <= second[1]


def enumerate_names(texts: list[str], start: str = "") -> list[tuple[str, str]]:
    return [(f"{start}{i:03d}.txt", text) for i, text in enumerate(texts)]


def test_workers_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.making.engines.POOL_BYTES", 0)
    monkeypatch.setattr(sources, "TASK_BYTES", 1000)
    clean = CleanConfig(near=NearConfig(), keep={"repeated_ngrams": Bounds(max=0.9)})
    config = replace(text_config(tmp_path, split=SPLIT), clean=clean)
    one = make(replace(config, workers=1, dir=str(tmp_path / "1")))
    two = make(replace(config, workers=2, dir=str(tmp_path / "2")))
    assert content(one.directory) == content(two.directory) and one.fingerprint == two.fingerprint
    assert (one.directory / "derived").is_dir()
