"""What a tokenizer is trained on: about as much as was asked for, from all over, without reading everything."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data import sources
from data.config import DataConfig, SourceConfig, TokenizerConfig, TrainTokenizerConfig
from data.sources import Document, Task, list_tasks
from data.tokens import sample
from data.tokens.sample import training_sample

from .helpers import write_files


@pytest.fixture
def read_tasks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the tasks that were read, of which there are many from little text."""
    monkeypatch.setattr(sources, "TASK_BYTES", 1000)
    monkeypatch.setattr(sources, "_TASKS", 1 << 40)
    monkeypatch.setattr(sample, "CHUNK", 50)
    seen: list[str] = []
    real = sample.read

    def read(task: Task) -> Iterator[Document]:
        seen.append(task.label)
        return real(task)

    monkeypatch.setattr(sample, "read", read)
    return seen


def tasks_of(tmp_path: Path, lines: int, name: str = "a") -> list[Task]:
    text = "".join(json.dumps({"text": f"{name}{i:06d} " * 8}) + "\n" for i in range(lines))
    write_files(tmp_path, {f"{name}.jsonl": text})
    return list_tasks(name, "train", SourceConfig(kind="jsonl", files=(f"{tmp_path}/{name}.jsonl",)))


def test_a_huge_corpus_is_not_read_whole(tmp_path: Path, read_tasks: list[str]) -> None:
    tasks = tasks_of(tmp_path, 8000)
    assert len(tasks) > 500
    chunks = list(training_sample(tasks, 5000))
    assert 3000 < sum(map(len, chunks)) < 7000
    assert 16 <= len(read_tasks) <= 45 and read_tasks == sorted(read_tasks)
    places = [int(label.rsplit("-", 1)[1]) for label in read_tasks]
    assert min(places) < len(tasks) / 4 and max(places) > 3 * len(tasks) / 4
    assert list(training_sample(tasks, 5000)) == chunks
    assert len(set(chunks)) == len(chunks)


def test_a_sample_does_not_depend_on_how_the_input_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "CHUNK", 50)
    samples = []
    for size in (1000, 1 << 20):
        monkeypatch.setattr(sources, "TASK_BYTES", size)
        samples.append(list(training_sample(tasks_of(tmp_path, 200), 5000)))
    assert samples[0] == samples[1] and 2000 < sum(map(len, samples[0])) < 8000


def test_a_small_corpus_is_read_whole(tmp_path: Path, read_tasks: list[str]) -> None:
    tasks = [*tasks_of(tmp_path, 100), *tasks_of(tmp_path, 300, "b")]
    chunks = list(training_sample(tasks, 1 << 30))
    assert "".join(chunks) == "".join(f"{name}{i:06d} " * 8 for name, n in (("a", 100), ("b", 300)) for i in range(n))
    assert read_tasks == [task.label for task in tasks]


def test_sources_give_in_proportion_to_their_size(tmp_path: Path, read_tasks: list[str]) -> None:
    tasks = [*tasks_of(tmp_path, 2000), *tasks_of(tmp_path, 6000, "b")]
    chunks = list(training_sample(tasks, 40_000))
    size = {name: sum(len(chunk) for chunk in chunks if name in chunk) for name in "ab"}
    assert 0.15 < size["a"] / (size["a"] + size["b"]) < 0.35


def test_streams_give_their_starts(read_tasks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config = SourceConfig(kind="hf", path="x", streaming=True)
    tasks = [Task("s", "train", i, config, (), 0) for i in range(40)]

    def read(task: Task) -> Iterator[Document]:
        read_tasks.append(task.label)
        for i in range(10**9):
            yield Document(str(i), f"{task.index:04d} {i:044d}\n")

    monkeypatch.setattr(sample, "read", read)
    chunks = list(training_sample(tasks, 16_000))
    assert len(read_tasks) == 16 and 16_000 <= sum(map(len, chunks)) < 20_000
    each = [sum(chunk.startswith(label[-4:]) for chunk in chunks) for label in read_tasks]
    assert min(each) > 15 and max(each) < 30


def test_one_document_gives_at_most_so_much(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.txt": "\u00e9" * 100_000, "b.txt": "b" * 50, "c.txt": "c" * 5000})
    tasks = list_tasks("a", "train", SourceConfig(kind="text", files=(f"{tmp_path}/*.txt",)))
    assert "".join(training_sample(tasks, 1 << 30, 101)) == "\u00e9" * 50 + "b" * 50 + "c" * 101
    assert len("".join(training_sample(tasks, 1 << 30))) == 105_050


def test_a_sample_is_what_the_store_will_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [{"role": "user", "content": "to joe@corp.com"}, {"role": "critic", "content": "\u00e9"}]
    write_files(tmp_path, {"a.jsonl": json.dumps({"talk": talk}) + "\n"})
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/a.jsonl",), messages="talk")
    tasks = list_tasks("a", "train", source)
    (chunk,) = training_sample(tasks, 1000, None, ("email",))
    assert chunk.startswith("user\nto ") and chunk.endswith("critic\n\u00e9\n") and "joe@corp.com" not in chunk
    config = DataConfig(sources={"a": source}, tokenizer=TokenizerConfig(level="char"), redact=("email",))
    assert sample.make_tokenizer(config, tasks, False).encode(chunk)


@pytest.mark.parametrize(("progress", "terminal"), [(True, True), (True, False), (False, True)])
def test_training_shows_a_bar_and_then_a_clock(
    progress: bool, terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shorter than ten seconds says nothing to a log."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    write_files(tmp_path, {"a.txt": "some text " * 100})
    source = SourceConfig(kind="text", files=(f"{tmp_path}/a.txt",))
    config = DataConfig(sources={"a": source}, tokenizer=TokenizerConfig(train=TrainTokenizerConfig(300)))
    sample.make_tokenizer(config, list_tasks("a", "train", source), progress)
    shown = capsys.readouterr().err
    if progress and terminal:
        assert "\rsample: 100%" in shown and "\rlearn merges: 00:0" in shown
    else:
        assert shown == ""
