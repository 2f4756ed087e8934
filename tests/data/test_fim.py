"""Fill in the middle: by hand, undone, and what it leaves alone."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import (
    DataConfig,
    DataError,
    Loader,
    PackConfig,
    Prepared,
    SourceConfig,
    SplitConfig,
    load_tokenizer,
    prepare,
)
from data.config import FimConfig
from data.rows.fim import PSM, SPM, arrange, choose, cut, special_ids

from .helpers import random_texts, text_config, text_source, write_files

PRE, SUF, MID, E = 256, 257, 258, 259
X = -100


def numbers_for(length: int, first: int, second: int) -> tuple[int, int]:
    """Random numbers that cut a text there."""
    return next(
        (a, b) for a in range(length + 2) for b in range(length + 1) if cut(length, (a, b)) == (first, second)
    )  # fmt: skip


@pytest.mark.parametrize(
    "ids, kind, first, second, want",
    [
        ([E, 1, 2, 3, 4, E], PSM, 1, 3, [E, PRE, 1, SUF, 4, MID, 2, 3, E]),
        ([E, 1, 2, 3, 4, E], SPM, 1, 3, [E, PRE, SUF, 4, MID, 1, 2, 3, E]),
        ([9, 1, 2, 3, 4], PSM, 1, 3, [9, PRE, 1, SUF, 4, MID, 2, 3]),  # the document goes on
        ([9, 1, 2, 3, 4], SPM, 4, 4, [9, PRE, SUF, MID, 1, 2, 3, 4]),
        ([E, 1, 2, E], PSM, 0, 2, [E, PRE, SUF, MID, 1, 2, E]),
        ([9, E], PSM, 0, 0, [9, PRE, SUF, MID, E]),  # the last piece of a document may hold its end alone
        ([9, E], SPM, 0, 0, [9, PRE, SUF, MID, E]),
    ],
)
def test_a_piece_by_hand(ids: list[int], kind: int, first: int, second: int, want: list[int]) -> None:
    length = len(ids) - 1 - (ids[-1] == E)
    made = arrange(np.array(ids, np.uint16), kind, numbers_for(length, first, second), (PRE, SUF, MID), E)
    assert made.tolist() == want and made.dtype == np.uint16


@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_every_pair_of_cuts_is_as_likely(length: int) -> None:
    counts = Counter(cut(length, (a, b)) for a in range(length + 2) for b in range(length + 1))
    assert set(counts) == {(i, j) for j in range(length + 1) for i in range(j + 1)} and set(counts.values()) == {2}


def restored(ids: list[int]) -> list[int]:
    """A piece as it was before it was filled in, from its specials alone; its first token stays."""
    before, after, middle = ids.index(PRE), ids.index(SUF), ids.index(MID)
    end = ids[-1:] if ids[-1] == E else []
    rest = ids[middle + 1 : len(ids) - len(end)]
    text = [*ids[before + 1 : after], *rest, *ids[after + 1 : middle]]
    return [*ids[:1], *text, *end]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=12), st.sampled_from([PSM, SPM]), st.booleans(), st.data())
def test_undone_it_is_the_text(text: list[int], kind: int, ends: bool, data: st.DataObject) -> None:
    ids = [7, *text, *([E] if ends or not text else [])]
    pair = data.draw(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
    made = arrange(np.array(ids, np.uint16), kind, pair, (PRE, SUF, MID), E).tolist()
    assert len(made) == len(ids) + 3
    if kind == PSM:
        assert restored(made) == ids
    else:  # before the middle part stands what was first: together they are the text up to the suffix
        suffix = made[3 : made.index(MID)]
        end = [E] if ids[-1] == E else []
        assert [7, *made[made.index(MID) + 1 : len(made) - len(end)], *suffix, *end] == ids


def test_chosen_by_the_text_alone() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, (20000, 2), np.uint64)
    kinds = choose(hashes, FimConfig(rate=0.4, spm=0.25))
    assert np.bincount(kinds) / 20000 == pytest.approx([0.6, 0.3, 0.1], abs=0.01)
    few = choose(hashes, FimConfig(rate=0.2, spm=0.25))
    assert (kinds[few > 0] == few[few > 0]).all()  # a higher rate only adds documents
    assert (choose(hashes, FimConfig(rate=1.0, spm=0.0)) == PSM).all()
    assert (choose(hashes, FimConfig(rate=1.0, spm=1.0)) == SPM).all()


def prepared(folder: Path, mode: str = "bfd", context: int = 40, **fim: object) -> Prepared:
    """Sources `a` and `b`, bytes as tokens."""
    write_files(folder / "b", random_texts(15, seed=5))
    pack = PackConfig(mode=mode, fim=FimConfig(**fim))  # type: ignore[arg-type]
    config = text_config(folder, random_texts(30, longest=20), split=SplitConfig(val=0.2), pack=pack)
    sources = {**config.sources, "b": text_source(folder / "b")}
    return prepare(DataConfig(**{**vars(config), "sources": sources}), context, progress=False)


def texts_of(prepared: Prepared, seed: int = 1, step: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """The pieces of one epoch's training rows, each with its first input: (as they stand, filled in)."""
    loader = Loader(prepared, batch_rows=prepared.train.rows, micro_rows=7, seed=seed)
    plain: list[list[int]] = []
    filled: list[list[int]] = []
    for batch in loader.step(step).micro:
        for tokens, targets, positions in zip(
            batch.tokens.tolist(), batch.targets.tolist(), batch.positions.tolist(), strict=True
        ):
            starts = [i for i, position in enumerate(positions) if position == 0]
            for begin, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
                ids = [tokens[begin], *(t for t in targets[begin:end] if t != X)]
                if len(ids) > 1:
                    assert ids[:-1] == tokens[begin : begin + len(ids) - 1]
                    (filled if PRE in ids else plain).append(ids)
    return plain, filled


@pytest.mark.parametrize("mode", ["bfd", "concat", "pad"])
def test_rows_hold_every_text(tmp_path: Path, mode: str) -> None:
    made = prepared(tmp_path, mode, rate=0.6, spm=0.0)
    plain, filled = texts_of(made)
    assert plain and filled
    tokens = sum((ids[1:] for ids in [*plain, *map(restored, filled)]), [])
    assert len(tokens) + 3 * len(filled) == made.train.targets == sum(made.train.row_targets)
    assert len(tokens) - tokens.count(E) == sum(made.bytes_by_source("train").values())
    counts = made.token_counts()
    assert counts[[PRE, SUF, MID]].tolist() == [len(filled)] * 3 and counts.sum() == made.train.targets
    assert sum(made.train.size) <= made.train.rows * 40
    loader = Loader(made, batch_rows=made.train.rows, micro_rows=99, seed=1)
    nbytes = sum(int(batch.bytes.sum()) for batch in loader.step(0).micro)
    assert nbytes == sum(made.bytes_by_source("train").values())
    assert all(not ((batch.tokens >= PRE) & (batch.tokens < E)).any() for batch in loader.validation(None, 9))


def test_cut_anew_in_every_epoch_and_by_the_seed_alone(tmp_path: Path) -> None:
    made = prepared(tmp_path, rate=1.0)
    first, again, later, other = (sorted(texts_of(made, *how)[1]) for how in ((1, 0), (1, 0), (1, 1), (2, 0)))
    assert first == again and first != later and first != other and later != other
    assert sorted(map(sorted, first)) == sorted(map(sorted, later))
    whole = Loader(made, batch_rows=9, micro_rows=9, seed=1).step(5).micro[0]
    parts = [Loader(made, batch_rows=9, micro_rows=2, seed=1, rank=r, world_size=2).step(5).micro for r in range(2)]
    rows = [row for part in parts for batch in part for row in batch.targets.tolist() if set(row) != {X}]
    assert rows == whole.targets.tolist()


def test_only_the_sources_named(tmp_path: Path) -> None:
    made = prepared(tmp_path, rate=1.0, sources=("b",))
    row = np.repeat(made.train.source, np.diff(made.train.row_ptr))
    assert set(made.train.fim[row == 0].tolist()) == {0} and 0 not in made.train.fim[row == 1]
    assert not made.val.fim.any()


def test_what_is_refused(tmp_path: Path) -> None:
    made = prepared(tmp_path, rate=1.0)
    config = made.config
    assert special_ids(made.tokenizer) == (PRE, SUF, MID)
    with pytest.raises(DataError, match="rows of 3 have no room for it; it takes at least 4"):
        prepare(config, 3, progress=False)
    bad = replace(config, pack=PackConfig(fim=FimConfig(sources=("c",))))
    with pytest.raises(DataError, match="no source is called c; there are a, b"):
        prepare(bad, 40, progress=False)
    plain = prepare(replace(config, pack=PackConfig()), 40, progress=False)
    file = replace(
        config, tokenizer=replace(config.tokenizer, level=None, file=str(plain.directory / "tokenizer.json"))
    )
    assert not load_tokenizer(plain.directory).specials.keys() & {"<|fim_prefix|>"}
    with pytest.raises(DataError, match=r"data\.tokenizer\.specials"):
        special_ids(plain.tokenizer)
    assert special_ids(prepare(file, 40, progress=False).tokenizer)  # loaded tokenizers get them


def test_conversations_are_left_alone(tmp_path: Path) -> None:
    """What is between their targets must not become one, so they stay as they are beside texts that are rearranged."""
    turns = [{"role": role, "content": f"{role} says"} for role in ("user", "assistant")]
    rows = [{"m": [{**turns[0], "content": f"question {i}"}, turns[1]]} for i in range(40)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = SourceConfig(kind="jsonl", files=(str(tmp_path / "chat.jsonl"),), messages="m")
    texts = write_files(tmp_path / "t", random_texts(40))
    pack = PackConfig(fim=FimConfig(rate=1.0))
    sources = {"t": text_source(texts), "c": chat}
    made = prepare(text_config(tmp_path, sources=sources, split=SplitConfig(val=0.2), pack=pack), 64, progress=False)
    plan, loader = made.train, Loader(made, batch_rows=made.train.rows, micro_rows=1 << 20, seed=1)
    of_chat = np.repeat(plan.source, np.diff(plan.row_ptr)) == 1
    assert (plan.fim[~of_chat] > 0).all() and not plan.fim[of_chat].any()
    (batch,) = loader.step(0).micro
    learned = batch.targets[(batch.source == 1)[:, None] & (batch.targets != X)].tolist()
    answers = made.tokenizer.encode(turns[1]["content"])
    assert learned.count(answers[0]) == int(of_chat.sum()) * answers.count(answers[0])
    assert int((batch.targets != X).sum()) == plan.targets
