"""Batches: by hand, over ranks, from any step, and what happens when the thread fails."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Batch, DataConfig, DataError, Loader, PackConfig, Prepared, SourceConfig, SplitConfig, Step, prepare
from data.store import from_file
from durable import Damaged

from .helpers import bpe, random_texts, text_config, text_source, write_files

E = 256  # the byte tokenizer's end
X = -100
TENSORS = ("tokens", "targets", "positions", "weights", "bytes", "source")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Two sources, rows of 32."""
    folder = tmp_path_factory.mktemp("loader")
    write_files(folder / "b", random_texts(15, seed=5))
    config = text_config(folder, random_texts(60), split=SplitConfig(val=0.2), tokenizer=bpe())
    sources = {**config.sources, "b": text_source(folder / "b")}
    return prepare(DataConfig(**{**vars(config), "sources": sources}), 32, progress=False)


def make(prepared: Prepared, rows: int = 10, micro: int = 3, rank: int = 0, world: int = 1, seed: int = 1) -> Loader:
    return Loader(prepared, batch_rows=rows, micro_rows=micro, rank=rank, world_size=world, seed=seed)


def joined(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS}


def real_rows(batches: list[Batch]) -> dict[str, torch.Tensor]:
    """The rows that are not ignored."""
    everything = joined(batches)
    keep = (everything["targets"] != X).any(1)
    return {name: tensor[keep] for name, tensor in everything.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in TENSORS)


def golden(tmp_path: Path, pack: PackConfig, context: int = 8) -> Prepared:
    """Training documents `ab`, `cdefghijk` and `é`, in this order; `val` is held out."""
    write_files(tmp_path / "v", {"v.txt": "val"})
    texts = {"1.txt": "ab", "2.txt": "cdefghijk", "3.txt": "é"}
    split = SplitConfig(sources={"v": text_source(tmp_path / "v")})
    return prepare(text_config(tmp_path, texts, split=split, pack=pack), context, progress=False)


def rows_in_plan_order(prepared: Prepared) -> Batch:
    loader = make(prepared, rows=prepared.train.rows, micro=99)
    step = loader.step(0)
    place = np.argsort(step.row_ids)
    return Batch(**{name: getattr(step.micro[0], name)[place] for name in TENSORS}, single_document=False)


def test_a_batch_by_hand(tmp_path: Path) -> None:
    batch = rows_in_plan_order(golden(tmp_path, PackConfig()))
    a, b, c, d, e, f, g, h, i, j, k = b"abcdefghijk"
    assert batch.tokens.tolist() == [[E, c, d, e, f, g, h, i], [E, a, b, j, k, E, 0xC3, 0xA9]]
    assert batch.targets.tolist() == [[c, d, e, f, g, h, i, j], [a, b, E, k, E, 0xC3, 0xA9, E]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.bytes.tolist() == [[1] * 8, [1, 1, 0, 1, 0, 1, 1, 0]]
    assert batch.weights.tolist() == [[1.0] * 8] * 2
    assert batch.source.tolist() == [0, 0]
    kinds = [getattr(batch, name).dtype for name in TENSORS]
    assert kinds == [torch.int64, torch.int64, torch.int64, torch.float32, torch.int32, torch.int64]


def test_a_padded_row_by_hand(tmp_path: Path) -> None:
    batch = rows_in_plan_order(golden(tmp_path, PackConfig(), context=12))
    a, b = b"ab"
    assert batch.targets.tolist()[0] == [*b"cdefghijk", E, X, X]
    assert batch.tokens.tolist()[1] == [E, a, b, E, 0xC3, 0xA9, E, E, E, E, E, E]
    assert batch.targets.tolist()[1] == [a, b, E, 0xC3, 0xA9, E, X, X, X, X, X, X]
    assert batch.positions.tolist() == [[*range(10), 0, 1], [0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 5]]
    assert batch.weights.tolist()[1] == [1.0] * 6 + [0.0] * 6
    assert batch.bytes.tolist()[1] == [1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_stream_by_hand(tmp_path: Path) -> None:
    batch = rows_in_plan_order(golden(tmp_path, PackConfig(mode="concat", document_mask=False)))
    a, b, c, d, e, f, g, h, i, j, k = b"abcdefghijk"
    assert batch.tokens.tolist() == [[E, a, b, E, c, d, e, f], [g, h, i, j, k, E, 0xC3, 0xA9]]
    assert batch.targets.tolist() == [[a, b, E, c, d, e, f, g], [h, i, j, k, E, 0xC3, 0xA9, E]]
    assert batch.positions.tolist() == [list(range(8))] * 2


def test_single_document(tmp_path: Path) -> None:
    def flags(prepared: Prepared) -> dict[int, bool]:
        steps = make(prepared, rows=1).steps(0, prepared.train.rows)
        return {int(step.row_ids[0]): step.micro[0].single_document for step in steps}

    assert flags(golden(tmp_path / "a", PackConfig())) == {0: True, 1: False}
    assert flags(golden(tmp_path / "b", PackConfig(), context=12)) == {0: True, 1: False}  # padding is no document
    assert flags(golden(tmp_path / "c", PackConfig(document_mask=False))) == {0: True, 1: True}


def test_bytes_add_up_to_the_texts(prepared: Prepared) -> None:
    loader = make(prepared, rows=prepared.train.rows)
    (step,) = loader.steps(0, 1)
    assert sum(int(batch.bytes.sum()) for batch in step.micro) == sum(prepared.bytes_by_source("train").values())
    val = joined(list(loader.validation(None, 4)))
    own = val["bytes"].sum(1)
    by_source = {name: int(own[val["source"] == i].sum()) for i, name in enumerate(prepared.source_names)}
    assert by_source == prepared.bytes_by_source("val")
    assert sum(map(len, prepared.val_documents())) == sum(by_source.values())


def test_an_epoch_holds_every_target_once(prepared: Prepared) -> None:
    loader = make(prepared, rows=7)
    rows = prepared.train.rows
    seen = np.concatenate([step.row_ids for step in loader.steps(0, rows)])
    for epoch in range(7):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert loader.epochs_at(rows) == pytest.approx({"a": 7.0, "b": 7.0})


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 12), micro=st.integers(1, 5), world=st.integers(1, 4), start=st.integers(0, 60))
def test_any_world_size_sees_the_same_batch(prepared: Prepared, rows: int, micro: int, world: int, start: int) -> None:
    (want,) = make(prepared, rows, micro=99).steps(start, start + 1)
    steps = [list(make(prepared, rows, micro, rank, world).steps(start, start + 1))[0] for rank in range(world)]
    assert same(joined(want.micro), real_rows([batch for step in steps for batch in step.micro]))
    assert len({len(step.micro) for step in steps}) == 1
    assert len({batch.tokens.shape for step in steps for batch in step.micro}) == 1
    assert all(len(batch.tokens) <= micro for step in steps for batch in step.micro)
    targets = sum(int((batch.targets != X).sum()) for step in steps for batch in step.micro)
    assert {step.targets for step in steps} == {targets}
    assert all(np.array_equal(step.row_ids, want.row_ids) for step in steps)
    for step in steps:
        for batch in step.micro:
            ignored = (batch.targets == X).all(1)
            assert not batch.weights[ignored].any() and not batch.bytes[ignored].any()
            assert (batch.positions[ignored] == torch.arange(32)).all()


def test_reading_from_any_step(prepared: Prepared) -> None:
    whole = list(make(prepared).steps(0, 12))
    assert [step.index for step in whole] == list(range(12))
    for start in (0, 5, 11):
        for a, b in zip(make(prepared).steps(start, 12), whole[start:], strict=True):
            assert same(joined(a.micro), joined(b.micro)) and a.targets == b.targets
    assert list(make(prepared).steps(3, 3)) == []
    other = next(iter(make(prepared, seed=2).steps(0, 1)))
    assert not np.array_equal(other.row_ids, whole[0].row_ids)


def test_a_mixture_is_kept(prepared: Prepared) -> None:
    config = DataConfig(**{**vars(prepared.config), "mixture": {"a": 1.0, "b": 3.0}})
    mixed = prepare(config, 32, progress=False)
    loader = make(mixed, rows=4096, micro=4096)
    (step,) = loader.steps(0, 1)
    counts = step.micro[0].source.bincount().tolist()
    rows, targets = mixed.train.rows_by_source, mixed.train.targets_by_source
    dense = {name: targets[name] / rows[name] for name in rows}
    assert counts[0] == pytest.approx(4096 / dense["a"] / (1 / dense["a"] + 3 / dense["b"]), abs=1)
    assert loader.epochs_at(1) == pytest.approx({"a": counts[0] / rows["a"], "b": counts[1] / rows["b"]})


@pytest.mark.parametrize("short, share", [(16, 0.5), (30, 0.5), (16, 0.1), (16, 0.9)])
def test_a_mixture_is_of_targets_not_of_rows(tmp_path: Path, short: int, share: float) -> None:
    """Documents of `short` bytes leave most of their rows empty; those of `a` fill them."""
    write_files(tmp_path / "s", {f"{i}.txt": f"{i:0{short}d}" for i in range(40)})
    mixture = {"a": 1 - share, "s": share}
    texts = {f"{i}.txt": f"{i:02d}" + "x" * 317 for i in range(40)}
    config = text_config(tmp_path, texts, split=SplitConfig(val=0.2), mixture=mixture)
    prepared = prepare(
        DataConfig(**{**vars(config), "sources": {**config.sources, "s": text_source(tmp_path / "s")}}), 32,
        progress=False,
    )  # fmt: skip
    loader = make(prepared, rows=4096, micro=4096)
    step = loader.step(0)
    own = (step.micro[0].targets != X).sum(1)
    tokens = own[step.micro[0].source == 1].sum().item()
    assert own[step.micro[0].source == 1].unique().tolist() == [short + 1]
    assert tokens / step.targets == pytest.approx(share, abs=0.001)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 3, 50])
def test_validation_covers_each_row_once(prepared: Prepared, world: int, micro: int) -> None:
    whole = joined(list(make(prepared).validation(None, 1)))
    assert len(whole["tokens"]) == prepared.val.rows and int(whole["weights"].sum()) == prepared.val.targets
    for tokens in (None, 5 * 32, 7 * 32 + 1, 1, 10**9):
        ranks = [list(make(prepared, rank=r, world=world).validation(tokens, micro)) for r in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        got = real_rows([batch for batches in ranks for batch in batches])
        rows = prepared.val.rows if tokens is None else min(max(1, tokens // 32), prepared.val.rows)
        assert same(got, {name: tensor[:rows] for name, tensor in whole.items()})


def test_validation_order_does_not_depend_on_the_seed(prepared: Prepared) -> None:
    a, b = (joined(list(make(prepared, seed=seed).validation(None, 4))) for seed in (1, 2))
    assert same(a, b)
    half = a["source"][: len(a["source"]) // 2]
    assert set(half.tolist()) == {0, 1}  # the first rows are of every source


def records(folder: Path, rows: list[dict[str, Any]], val: list[dict[str, Any]], **fields: Any) -> Prepared:
    """JSON lines `a` to train on and `v` held out, bytes as tokens, rows of 16."""
    for name, lines in (("a", rows), ("v", val)):
        write_files(folder, {f"{name}.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})
    sources = {n: SourceConfig(kind="jsonl", files=(str(folder / f"{n}.jsonl"),), **fields) for n in ("a", "v")}
    split = SplitConfig(sources={"v": sources["v"]})
    config = text_config(folder, {}, sources={"a": sources["a"]}, split=split)
    return prepare(config, 16, progress=False)


def test_only_some_tokens_are_targets(tmp_path: Path) -> None:
    def talk(question: str, answer: str) -> dict[str, Any]:
        return {"talk": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    silent = {"talk": [{"role": "user", "content": "nobody answers"}]}
    rows = [talk("q", "a"), talk("why?", "because"), silent]
    prepared = records(tmp_path, rows, [talk("v", "w")], messages="talk", template="plain")
    assert prepared.plan.facts["dropped"] == {"a": {"no target": 1}}
    loader = make(prepared, rows=prepared.train.rows, micro=9)
    step = loader.step(0)
    (batch,) = step.micro
    learned = batch.targets != X
    assert step.targets == int(learned.sum()) == prepared.train.targets < prepared.train.length.sum()
    assert torch.equal(batch.weights, learned.float()) and not batch.bytes[~learned].any() and not batch.weighted
    said = {bytes(t for t in row if 0 <= t < 256).decode() for row in batch.targets.tolist()} - {""}
    assert "".join(sorted(said)).replace("\n", "") in ("abecause", "becausea")
    assert prepared.token_counts().tolist() == batch.targets[learned].bincount(minlength=257).tolist()
    (val,) = loader.validation(None, 9)
    assert val.document is not None and torch.equal(val.document >= 0, val.targets != X)
    pieces = int((prepared.train.valid == 0).sum())
    assert pieces >= 1  # a row in which nobody is listened to is no harm


def test_weights_of_documents(tmp_path: Path) -> None:
    rows = [{"text": "aaa", "w": 2}, {"text": "bbbbb", "w": 0}, {"text": "cc", "w": 1}]
    prepared = records(tmp_path, rows, [{"text": "v", "w": 3}], weight="w")
    (batch,) = make(prepared, rows=1).step(0).micro
    assert batch.targets.tolist() == [[*b"aaa", E, *b"bbbbb", E, *b"cc", E, X, X, X]]
    assert batch.weights.tolist() == [[2.0] * 4 + [0.0] * 6 + [1.0] * 3 + [0.0] * 3] and batch.weighted
    assert prepared.train.targets == 13  # what weighs nothing is a target all the same
    lighter = records(tmp_path / "b", [row | {"w": 1} for row in rows], [{"text": "v", "w": 1}], weight="w")
    (batch,) = make(lighter, rows=1).step(0).micro
    assert not batch.weighted and lighter.fingerprint != prepared.fingerprint


def test_held_out_targets_know_their_document(prepared: Prepared) -> None:
    (step,) = make(prepared).steps(0, 1)
    assert step.micro[0].document is None
    whole = list(make(prepared).validation(None, 5))
    document = torch.cat([batch.document for batch in whole if batch.document is not None])
    targets = torch.cat([batch.targets for batch in whole])
    assert torch.equal(document >= 0, targets != X)
    spans = prepared.plan.val_spans
    numbers = prepared.store.documents_at(spans.shard, spans.start)
    counts = dict(zip(numbers.tolist(), spans.length.tolist(), strict=True))
    found, times = document[document >= 0].unique(return_counts=True)
    assert dict(zip(found.tolist(), times.tolist(), strict=True)) == counts


def test_micro_batches_are_views_of_one_block(prepared: Prepared) -> None:
    step = make(prepared, rows=10, micro=3).step(0)
    assert len(step.micro) == 4
    places = {getattr(batch, name).untyped_storage().data_ptr() for batch in step.micro for name in TENSORS}
    assert len(places) == 1
    assert all(getattr(batch, name).is_contiguous() for batch in step.micro for name in TENSORS)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_five_held_out_rows_on_any_number_of_ranks(tmp_path: Path, world: int) -> None:
    """Sums over ranks, of which some have no row of their own left, are those of one rank."""
    folder = write_files(tmp_path / "v", {f"{i}.txt": f"{i}" * 14 for i in range(5)})
    config = text_config(tmp_path, {"t.txt": "train"}, split=SplitConfig(sources={"v": text_source(folder)}))
    prepared = prepare(config, 16, progress=False)
    assert prepared.val.rows == 5
    ranks = [list(make(prepared, rank=rank, world=world).validation(None, 2)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    valid = [batch.targets[batch.targets != X] for batches in ranks for batch in batches]
    assert sum(map(len, valid)) == prepared.val.targets == 75
    assert sum(int((part.double() ** 0.5).sum() * 1e6) for part in valid) == pytest.approx(
        sum(14 * (48 + i) ** 0.5 + E**0.5 for i in range(5)) * 1e6, abs=10
    )


def test_reading_ahead_changes_nothing(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(type(prepared.store), "read_ahead", lambda *run: asked.append(run[1:]))
    steps = list(make(prepared, rank=1, world=2).steps(3, 30))
    loader = make(prepared, rank=1, world=2)
    for step in steps:
        assert same(joined(step.micro), joined(loader.step(step.index).micro))
    plan, own = prepared.train, [loader._own(step.row_ids) for step in steps]
    runs = sorted((plan.shard[p], plan.start[p]) for r in np.concatenate(own)
                  for p in range(plan.row_ptr[r], plan.row_ptr[r + 1]))  # fmt: skip
    assert runs == sorted((shard, at) for shard, start, _ in asked for at in start)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", shard=np.array([{"a": 1}], object))
    with pytest.raises(Damaged, match="cannot be read"):
        from_file(tmp_path / "x.npz")


CHILD = """
import sys
from pathlib import Path
from data import Loader, prepare
from tests.data.helpers import text_config
from data import SplitConfig
loader = Loader(prepare(text_config(Path(sys.argv[1]), split=SplitConfig(val=0.2)), 32, progress=False), batch_rows=4,
                micro_rows=2, seed=1)
for step in loader.steps(0, 10**9):
    print(step.index, flush=True)
"""


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no shared memory to look at")
def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "0\n"
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    assert not children.exists() or not children.read_text().split()
    mapped = Path(f"/proc/{child.pid}/maps").read_text()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    shared = [line for line in mapped.splitlines() if "/dev/shm" in line and not line.endswith("(deleted)")]
    assert not shared and "shards/" in mapped
    assert not {name for name in set(os.listdir("/dev/shm")) - before if str(child.pid) in name}
    again = prepare(text_config(tmp_path, split=SplitConfig(val=0.2)), 32, progress=False)  # no lock stands in the way
    assert make(again).step(0).targets > 0


def failing(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, at: int) -> Loader:
    loader = make(prepared)
    good: Callable[[int], Step] = loader.step

    def step(index: int) -> Step:
        if index == at:
            raise RuntimeError("disk gone")
        return good(index)

    monkeypatch.setattr(loader, "step", step)
    return loader


def test_an_error_in_the_thread_reaches_the_consumer(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    got = []
    with pytest.raises(RuntimeError, match="disk gone"):
        for step in failing(prepared, monkeypatch, 3).steps(0, 9):
            got.append(step.index)
    assert got == [0, 1, 2]


def test_closing_stops_the_thread(prepared: Prepared) -> None:
    def running() -> int:
        return sum(thread.name == "loader" for thread in threading.enumerate())

    before = running()
    steps = make(prepared).steps(0, 10**9)
    next(steps)
    assert running() == before + 1
    steps.close()  # type: ignore[attr-defined]
    assert running() == before


def test_a_corpus_smaller_than_a_row(tmp_path: Path) -> None:
    prepared = golden(tmp_path, PackConfig(), context=64)
    assert prepared.train.rows == 1
    for rank in range(2):
        steps = list(make(prepared, rows=2, rank=rank, world=2).steps(0, 10))
        assert [step.targets for step in steps] == [2 * prepared.train.targets] * 10


def test_to_moves_every_tensor(prepared: Prepared) -> None:
    (step,) = make(prepared, rows=2).steps(0, 1)
    moved = step.micro[0].to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
    assert moved.single_document == step.micro[0].single_document


@pytest.mark.parametrize("rows, micro, rank, world", [(0, 1, 0, 1), (1, 0, 0, 1), (1, 1, 1, 1), (1, 1, -1, 1)])
def test_impossible_numbers(prepared: Prepared, rows: int, micro: int, rank: int, world: int) -> None:
    with pytest.raises(DataError, match="rank < world size"):
        make(prepared, rows, micro, rank, world)
