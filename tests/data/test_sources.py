"""Reading documents."""

import gzip
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data import sources
from data.config import SourceConfig
from data.errors import DataError
from data.making.engines import available_workers
from data.reading.packages import licenses, versions
from data.sources import Document, list_tasks, read

from .helpers import write_files


def documents(config: SourceConfig) -> list[Document]:
    return [document for task in list_tasks("s", "train", config) for document in read(task)]


def texts(config: SourceConfig) -> list[str | None]:
    return [document.text for document in documents(config)]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "zpkg/b.py": "b",
        "zpkg/__init__.py": "raise SystemExit('imported')",
        "zpkg/a/x.py": "ax",
        "zpkg/a/data.txt": "no",
        "zpkg/tests/t.py": "no",
        "zpkg/a/test/t.py": "no",
        "zpkg/__pycache__/c.py": "no",
        "zsingle.py": "raise SystemExit('imported')",
    }
    write_files(tmp_path / "site", files)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def test_python_packages_are_found_without_being_imported(package: Path) -> None:
    found = documents(SourceConfig(kind="python", packages=("zsingle", "zpkg")))
    assert [d.id for d in found] == ["zsingle.py", "zpkg/__init__.py", "zpkg/a/x.py", "zpkg/b.py"]
    assert [d.labels["package"] for d in found] == ["zsingle", "zpkg", "zpkg", "zpkg"]
    assert "zpkg" not in sys.modules and "zsingle" not in sys.modules
    excluding = SourceConfig(kind="python", packages=("zpkg",), exclude=("a/*", "zpkg/b.py"))
    assert [d.id for d in documents(excluding)] == ["zpkg/__init__.py"]
    assert texts(SourceConfig(kind="python", packages=("zpkg.a", "zpkg.b"))) == ["ax", "b"]
    assert len(documents(SourceConfig(kind="python", packages=("zpkg", "zpkg")))) == 3
    assert len(documents(SourceConfig(kind="python", packages=("zpkg",), max_documents=2))) == 2


def test_the_standard_library() -> None:
    config = SourceConfig(kind="python", packages=("stdlib",))
    paths = [part.path for task in list_tasks("s", "train", config) for part in task.parts]
    assert len(paths) > 300 and not [p for p in paths if "site-packages" in p or "/test/" in p]
    assert any(p.endswith("/asyncio/events.py") for p in paths)
    assert versions(config) == {"stdlib": ".".join(map(str, sys.version_info[:3]))}
    others = SourceConfig(kind="python", packages=("numpy", "yaml.x", "json"))
    assert versions(others)["numpy"][0].isdigit()
    assert licenses(config) == {"stdlib": "PSF-2.0"} and licenses(SourceConfig(kind="hf", path="x")) == {}
    assert "BSD" in licenses(others)["numpy"] and licenses(others)["yaml.x"] == "MIT"
    assert licenses(others)["json"] == "PSF-2.0"


@pytest.mark.parametrize("name", ["nosuchpackage", "nosuchpackage.inner", "sys"])
def test_missing_packages(name: str) -> None:
    with pytest.raises(DataError, match="'nosuchpackage(.inner)?' is not installed|no Python source"):
        documents(SourceConfig(kind="python", packages=(name,)))


def test_text_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(
        tmp_path, {"t/b.txt": "B\r\n", "t/a/z.txt": b"\xef\xbb\xbfA\x00", "t/c.md": "C", "t/bad.txt": b"x\xffy"}
    )
    monkeypatch.chdir(tmp_path)
    everything = SourceConfig(kind="text", files=("t/**/*.txt", "t/c.md", "t/b.txt"))
    found = documents(everything)
    assert [(d.id, d.text) for d in found] == [
        ("a/z.txt", "A\x00"),
        ("b.txt", "B\r\n"),
        ("bad.txt", "x\ufffdy"),
        ("c.md", "C"),
    ]
    assert [d.problem for d in found] == [None, None, "not UTF-8 at byte 1", None]
    (tmp_path / "link").symlink_to("t")
    (tmp_path / "t" / "again.txt").symlink_to("b.txt")
    linked = SourceConfig(kind="text", files=("link/*.txt", "t/*.txt"))
    assert [d.id for d in documents(linked)] == ["again.txt", "bad.txt"]  # each file once, under its first name
    (tmp_path / "t" / "again.txt").unlink()
    absolute = SourceConfig(kind="text", files=(f"{tmp_path}/t/**/*.txt",), exclude=("a/*", "t/bad.txt"))
    assert [d.id for d in documents(absolute)] == ["b.txt", "bad.txt"]
    assert texts(SourceConfig(kind="text", files=("t/**/*.txt",), exclude=("t/bad.txt",), max_documents=1)) == ["A\x00"]


@pytest.mark.parametrize(
    "pattern, message", [("gone.txt", "no file matches 'gone.txt'"), ("x*/", "no file matches"), ("t", "t/\\*\\*/\\*")]
)
def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str) -> None:
    write_files(tmp_path, {"t/a.txt": "a"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        documents(SourceConfig(kind="text", files=("t/a.txt", pattern)))


def test_a_file_that_vanishes_or_cannot_be_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.txt": "a", "b.jsonl.gz": gzip.compress(b'{"text": "x"}\n' * 999)[:-9]})
    (task,) = list_tasks("s", "train", SourceConfig(kind="text", files=(f"{tmp_path}/a.txt",)))
    os.unlink(tmp_path / "a.txt")
    with pytest.raises(DataError, match="a.txt: No such file"):
        list(read(task))
    with pytest.raises(DataError, match="b.jsonl.gz: cannot be read to its end"):
        documents(SourceConfig(kind="jsonl", files=(f"{tmp_path}/*.gz",)))


LINES: list[bytes] = [
    json.dumps({"body": "one\n"}).encode(),
    b"",
    b'{"body": "\\ud800 lone"}',
    b'{"body": "\\ud83d\\ude00"}',
    b'{"body": 3}',
    b'{"other": "x"}',
    b"[1]",
    b"not json",
    b'{"body": "\xff"}',
    b'{"body": "last, cut o',
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    raw = b"\n".join(LINES)
    write_files(tmp_path, {name: gzip.compress(raw) if name.endswith("gz") else raw})
    config = SourceConfig(kind="jsonl", files=(f"{tmp_path}/{name}",), text="body")
    found = documents(config)
    assert [d.text for d in found] == ["one\n", "\ufffd lone", "😀", None, None, None, None, "\ufffd", None]
    problems = [d.problem for d in found]
    field = "no text in field 'body'"
    other = f"{field} (`text:` may be other)"
    array = "not a JSON object: one stands in each line, {...}"
    assert problems[:7] == [None, "a lone surrogate", None, field, other, array, "not JSON"]
    assert problems[8] == "not JSON" and "not UTF-8" in str(problems[7])
    assert found[0].id == f"{name}@0" and found[1].id == f"{name}@{len(LINES[0]) + 2}"
    limited = SourceConfig(kind="jsonl", files=(f"{tmp_path}/{name}",), text="body", max_documents=3)
    assert len(documents(limited)) == 3


@pytest.mark.parametrize("size", [1, 7, 10, 64, 1000])
def test_byte_ranges_cover_every_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    lines = [json.dumps({"text": f"{i}" * (i % 9)}) for i in range(40)]
    for ending in ("", "\n"):
        write_files(tmp_path, {"a.jsonl": "\n".join(lines) + ending})
        config = SourceConfig(kind="jsonl", files=(f"{tmp_path}/a.jsonl",))
        monkeypatch.setattr(sources, "TASK_BYTES", size)
        assert texts(config) == [f"{i}" * (i % 9) for i in range(40)]
        assert len(list_tasks("s", "train", config)) >= 40 * 11 // (size + 20)


def test_hugging_face_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "TASK_BYTES", 64)
    want = [f"document {i}" for i in range(20)]
    data = datasets.Dataset.from_dict({"text": want, "n": list(range(20))})
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data, "dev": data.select([3])}).save_to_disk(str(tmp_path / "dict"))
    data.to_json(str(tmp_path / "a.jsonl"))
    hf: dict[str, Any] = {"kind": "hf"}
    saved = SourceConfig(**hf, path=str(tmp_path / "saved"))
    assert texts(saved) == want and len(list_tasks("s", "train", saved)) > 3
    assert documents(saved)[7].id == "train@7"
    assert texts(SourceConfig(**hf, path=str(tmp_path / "dict"), split="dev")) == want[3:4]
    files = SourceConfig(**hf, path="json", data_files=(str(tmp_path / "a.jsonl"),))
    assert texts(files) == want
    stream = SourceConfig(**hf, path="json", data_files=(str(tmp_path / "a.jsonl"),), streaming=True, max_documents=5)
    assert texts(stream) == want[:5]
    assert texts(SourceConfig(**hf, path=str(tmp_path / "saved"), max_documents=7)) == want[:7]
    with pytest.raises(DataError, match="no column 'body'; there are text, n"):
        documents(SourceConfig(**hf, path=str(tmp_path / "saved"), text="body"))
    with pytest.raises(DataError, match="cannot be loaded"):
        documents(SourceConfig(**hf, path="json", data_files=(str(tmp_path / "gone.jsonl"),)))
    with pytest.raises(DataError, match="column 'n' holds int64, no text; `text:` may be text"):
        documents(SourceConfig(**hf, path=str(tmp_path / "saved"), text="n"))
    number = documents(replace(stream, text="n"))[0]
    assert number.text is None and number.problem == "no text in field 'n'"


def test_a_dataset_is_loaded_once_for_all_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": [f"document {i}" for i in range(20)]}).save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(sources, "TASK_BYTES", 64)
    loads = []
    real = datasets.load_from_disk

    def load(path: str) -> Any:
        loads.append(path)
        return real(path)

    monkeypatch.setattr(datasets, "load_from_disk", load)
    config = SourceConfig(kind="hf", path=str(tmp_path / "saved"))
    assert len(texts(config)) == 20 and len(list_tasks("s", "train", config)) == 5
    assert texts(replace(config, streaming=True)) == texts(config)  # it is on disk: there is nothing to stream
    del loads[2:]
    assert len(loads) == 2  # one for each list
    datasets.Dataset.from_dict({"text": ["other"]}).save_to_disk(str(tmp_path / "saved2"))
    (tmp_path / "saved").rename(tmp_path / "gone")
    (tmp_path / "saved2").rename(tmp_path / "saved")
    assert texts(config) == ["other"]


def test_a_stream_has_a_task_for_each_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in "abc":
        lines = [json.dumps({"text": f"{name}{i}"}) for i in range(4)]
        write_files(tmp_path, {f"{name}.jsonl": "\n".join(lines)})
    files = tuple(str(tmp_path / f"{name}.jsonl") for name in "abc")
    config = SourceConfig(kind="hf", path="json", data_files=files, streaming=True)
    tasks = list_tasks("s", "train", config)
    assert [task.label for task in tasks] == ["train-s-00000", "train-s-00001", "train-s-00002"]
    want = [f"{name}{i}" for name in "abc" for i in range(4)]
    assert texts(config) == want
    assert len({document.id for document in documents(config)}) == 12
    assert [document.id for document in documents(config)][4:6] == ["train-1@0", "train-1@1"]
    assert available_workers(tasks) == min(3, len(os.sched_getaffinity(0)))
    some = SourceConfig(kind="hf", path="json", data_files=files, streaming=True, max_documents=6)
    assert texts(some) == want[:6] and len(list_tasks("s", "train", some)) == 1
    one = SourceConfig(kind="hf", path="json", data_files=files[:1], streaming=True)
    assert documents(one)[2].id == "train@2"


def test_hugging_face_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        documents(SourceConfig(kind="hf", path="anything"))


def test_tasks_grow_with_their_source() -> None:
    mib = 1 << 20
    sizes = [0, 100 * mib, 1024 * mib, 1025 * mib, 20_000 * mib, 10**6 * mib]
    assert [sources.task_bytes(size) // mib for size in sizes] == [4, 4, 4, 8, 128, 256]
