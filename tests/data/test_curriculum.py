"""The order of a config over a real corpus: phases, difficulty, epochs, and batches of many processes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, Loader, Prepared, SourceConfig, check_epochs, order_of, plain_order, prepare, starts_of
from data.config import CurriculumConfig, DataConfig, PhaseConfig, SplitConfig
from data.rows.curriculum import difficulty, document_values
from data.rows.epochs import epochs_of
from data.rows.order import BUCKETS, FIRST, Curriculum

from .helpers import BYTE, random_texts

PHASES = (PhaseConfig(100, {"a": 1.0, "b": 0.0}), PhaseConfig(0.75, {"a": 0.2, "b": 0.8}))


def jsonl(path: Path, documents: list[dict[str, Any]], **kwargs: Any) -> SourceConfig:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return SourceConfig(kind="jsonl", files=(str(path),), **kwargs)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Sources a and b in rows of 32; `level` holds numbers, `site` words."""
    folder = tmp_path_factory.mktemp("curriculum")
    sources = {}
    for name, count in (("a", 60), ("b", 25)):
        texts = list(random_texts(count, seed=count).values())
        documents = [
            {"text": text, "level": i % 7, "site": "web"} | ({"rare": i} if i == 3 else {})
            for i, text in enumerate(texts)
        ]
        labels = {"level": "level", "site": "site", "rare": "rare"}
        sources[name] = jsonl(folder / f"{name}.jsonl", documents, labels=labels)
    config = DataConfig(sources, dir=str(folder / "out"), tokenizer=BYTE, split=SplitConfig(val=0.1))
    return prepare(config, 32, progress=False)


def like(prepared: Prepared, **changes: Any) -> Prepared:
    return Prepared(prepared.store, prepared.plan, replace(prepared.config, **changes), prepared.context)


def rows_of(end: int) -> Callable[[int | float | str], int]:
    """Lengths of a run of `end` rows, one a step."""
    return lambda length: int(length * end) if isinstance(length, float) else int(length)


def test_starts_by_hand() -> None:
    config = DataConfig({}, phases=PHASES, curriculum=CurriculumConfig("chars", over=60))
    assert starts_of(config, rows_of(400)) == {"phases": [100, 300], "openings": [10, 20, 30, 40, 50, 60]}
    assert starts_of(DataConfig({}), rows_of(400)) == {}
    assert len(starts_of(config, rows_of(400))["openings"]) == BUCKETS - FIRST


def test_what_has_begun_stays_and_the_rest_follows_the_new_length() -> None:
    config = DataConfig({}, phases=(PhaseConfig(0.25, {}), PhaseConfig(0.75, {})), curriculum=CurriculumConfig("chars"))
    first = starts_of(config, rows_of(400))
    assert first == {"phases": [100, 300], "openings": [33, 66, 100, 133, 166, 200]}
    longer = starts_of(config, rows_of(800), 150, first)
    assert longer == {"phases": [100, 600], "openings": [33, 66, 100, 133, 333, 400]}
    shorter = starts_of(config, rows_of(160), 150, first)
    assert shorter == {"phases": [100, 150], "openings": [33, 66, 100, 133, 150, 150]}
    assert starts_of(config, rows_of(800), 33, first)["openings"][0] == 66  # no row was drawn from it yet


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans())
def test_a_run_that_is_made_longer_or_shorter_repeats_nothing(seed: int, curriculum: bool) -> None:
    """However often its length changes, a run keeps what it has seen, and its next batches are rows not seen yet."""
    rng = np.random.default_rng(seed)
    rows = {"a": int(rng.integers(50, 900)), "b": int(rng.integers(50, 900))}
    at = np.sort(rng.uniform(0.05, 0.95, rng.integers(1, 4))).round(3).tolist()
    phases = tuple(PhaseConfig(x, {"a": float(rng.integers(0, 3)), "b": 1.0}) for x in at)
    config = DataConfig({}, phases=phases, curriculum=CurriculumConfig("chars") if curriculum else None)
    ranked = np.concatenate([rng.permutation(n) for n in rows.values()])
    starts: dict[str, list[int]] = {}
    reached, seen = 0, np.zeros((0, 3), np.int64)
    for _ in range(4):
        end = reached + int(rng.integers(1, 1500))
        starts = starts_of(config, rows_of(end), reached, starts)
        easy = Curriculum(ranked, starts["openings"]) if curriculum else None
        order = plain_order(config, rows, {}, starts, seed, easy)
        assert np.array_equal(np.stack(order(np.arange(reached)), 1), seen)
        reached = int(rng.integers(reached, end + 1))  # where it is stopped
        seen = np.stack(order(np.arange(reached)), 1)
    assert len(np.unique(seen, axis=0)) == len(seen)
    if not curriculum:
        for number, n in enumerate(rows.values()):  # in every epoch, each row once
            epoch = seen[seen[:, 0] == number, 1]
            assert epoch.tolist() == (np.arange(len(epoch)) // n).tolist()


def test_difficulty_is_the_mean_over_a_rows_targets(prepared: Prepared) -> None:
    plan, store = prepared.train, prepared.store
    level = document_values(store, "level")
    hard = difficulty(prepared, CurriculumConfig("level"))
    for row in range(0, plan.rows, 7):
        pieces = range(plan.row_ptr[row], plan.row_ptr[row + 1])
        document = store.documents_at(plan.shard[list(pieces)], plan.start[list(pieces)])
        assert hard[row] == pytest.approx(np.average(level[document], weights=plan.valid[list(pieces)]))
    assert difficulty(prepared, CurriculumConfig("level", descending=True)).tolist() == (-hard).tolist()
    rare = difficulty(prepared, CurriculumConfig("rare"))
    assert set(rare.tolist()) == {3.0, np.inf}
    tokens, chars = document_values(store, "tokens"), document_values(store, "chars")
    assert tokens.sum() == sum(shard.tokens for shard in store.shards) and (tokens >= chars).all()


def test_only_what_is_learned_makes_a_row_hard(tmp_path: Path) -> None:
    """Two conversations of equal length, of which one is nearly all question."""
    documents = [
        {"m": [{"role": "user", "content": "q" * asked}, {"role": "assistant", "content": "a" * said}], "level": level}
        for asked, said, level in ((30, 2, 1), (2, 30, 5))
    ]
    sources = {"c": jsonl(tmp_path / "c.jsonl", documents, messages="m", labels={"level": "level"})}
    held_out = {"v": jsonl(tmp_path / "v.jsonl", [{"text": "held out"}])}
    config = DataConfig(sources, dir=str(tmp_path / "out"), tokenizer=BYTE, split=SplitConfig(sources=held_out))
    made = prepare(config, 256, progress=False)
    want = (1 * (2 + 1) + 5 * (30 + 1)) / (2 + 1 + 30 + 1)  # each answer and what ends it
    assert difficulty(made, CurriculumConfig("level")).tolist() == [pytest.approx(want)]


@pytest.mark.parametrize(
    "by, message",
    [
        ("lenght", r"there is no 'lenght'; there are tokens, chars, words.*; labels: level, rare, site"),
        ("site", "the label 'site' holds 'web', which is not a number"),
    ],
)
def test_a_curriculum_by_what_there_is_not(prepared: Prepared, by: str, message: str) -> None:
    with pytest.raises(DataError, match=f"data.curriculum.by: {message}"):
        order_of(like(prepared, curriculum=CurriculumConfig(by)), {"openings": [1] * 6}, 0)


def test_easy_rows_come_first(prepared: Prepared) -> None:
    own = like(prepared, curriculum=CurriculumConfig("level"))
    starts = starts_of(own.config, rows_of(2 * own.train.rows))
    order, hard = order_of(own, starts, 1), difficulty(own, CurriculumConfig("level"))
    rows = order.row_ids(np.arange(8 * own.train.rows))
    for number in range(2):
        here = own.train.source[rows] == number
        easy = np.sort(hard[own.train.source == number])
        seen = hard[rows[here & (np.arange(len(rows)) < starts["openings"][0])]]
        assert seen.max() <= easy[-(-len(easy) * FIRST // BUCKETS) - 1]
        late = hard[rows[here & (np.arange(len(rows)) >= starts["openings"][-1])]]
        assert late.mean() == pytest.approx(easy.mean(), rel=0.05)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1 << 30), st.booleans(), st.booleans())
def test_batches_are_the_same_for_any_processes(prepared: Prepared, seed: int, phases: bool, curriculum: bool) -> None:
    """A run that is stopped and goes on elsewhere, in other batches, sees what it would have seen."""
    own = like(
        prepared,
        mixture={"a": 0.5, "b": 0.5} if seed % 3 else {},
        phases=PHASES if phases else (),
        curriculum=CurriculumConfig("chars", over=200) if curriculum else None,
    )
    order = order_of(own, starts_of(own.config, rows_of(512)), seed)

    def tokens(batch: int, micro: int, world: int, start: int, steps: int) -> torch.Tensor:
        ranks = [
            Loader(own, batch_rows=batch, micro_rows=micro, rank=rank, world_size=world, seed=seed, order=order,
                   offset=start)
            for rank in range(world)
        ]  # fmt: skip
        found = [batch for step in range(steps) for each in ranks for batch in each.step(step).micro]
        rows = torch.cat([torch.stack([batch.tokens, batch.targets], 1) for batch in found])
        return rows[(rows[:, 1] != -100).any(1)]  # without those that fill up

    whole = tokens(32, 32, 1, 0, 16)
    assert torch.equal(whole, torch.cat([tokens(32, 3, 8, 0, 4), tokens(64, 20, 2, 128, 6)]))


def test_epochs_of_a_run_are_limited(prepared: Prepared) -> None:
    rows = {"a": 100, "b": 10}
    config = replace(prepared.config, mixture={"a": 0.5, "b": 0.5}, max_epochs=4)

    def used(steps: int) -> np.ndarray:
        return np.array([2.0, 2.0]) * steps

    check_epochs(config, rows, used, 21)  # the last step may go over
    assert epochs_of(rows, used(21)) == {"a": 0.42, "b": 4.2}
    with pytest.raises(DataError) as caught:
        check_epochs(config, rows, used, 60)
    assert str(caught.value) == (
        "data.max_epochs: source 'b' would be gone through 12.00 times, more than 4; what would fit: "
        "train.steps of at most 21, a share in data.mixture of at most 0.166, data.max_epochs of at least 12"
    )
    with pytest.raises(DataError) as caught:
        check_epochs(replace(config, max_epochs=0.5), rows, used, 60, least=50)
    assert str(caught.value).splitlines() == [
        "data.max_epochs: source 'a' would be gone through 1.20 times, more than 0.5; what would fit: "
        "data.max_epochs of at least 1.2",
        "data.max_epochs: source 'b' would be gone through 12.00 times, more than 0.5; what would fit: "
        "data.max_epochs of at least 12",
    ]
    with pytest.raises(DataError, match="a smaller share in data.mixture or data.phases, data.max_epochs"):
        check_epochs(replace(config, phases=PHASES), rows, used, 60)
    check_epochs(replace(config, max_epochs=None), rows, used, 6000)
