"""Sources that read standard input."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import durable
from data import estimate, lookup, prepare
from data.config import DataConfig, SourceConfig
from data.errors import DataError
from data.reading.changes import file_digests
from data.reading.files import spool_stdin
from data.sources import list_tasks, read

from .helpers import BYTE, text_config, write_files

ROOT = Path(durable.__file__).parent
PIPED = SourceConfig(kind="jsonl", files=("-",))
LINES = b"".join(b'{"text": "document %d"}\n' % i for i in range(60))


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes, terminal: bool = False) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdin", stream)


def config_of(tmp_path: Path, **sources: SourceConfig) -> DataConfig:
    return DataConfig(sources or {"a": PIPED}, dir=str(tmp_path / "out"), tokenizer=BYTE)


def test_standard_input_is_kept_in_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    pipe(monkeypatch, LINES)
    assert estimate(config).bytes is None and lookup(config, 32) is None
    prepared = prepare(config, 32, progress=False)
    documents = sum(shard.documents for shard in prepared.store.shards)
    assert documents == 60 and not prepared.changed()
    (spool,) = (prepared.directory / "stdin").iterdir()
    assert spool.name == "train-a.jsonl" and spool.read_bytes() == LINES
    (task,) = list_tasks("a", "train", PIPED, prepared.directory)
    assert [d.id for d in read(task)][:2] == ["stdin@0", "stdin@23"]
    pipe(monkeypatch, b"other")
    assert prepare(config, 32, progress=False).fingerprint == prepared.fingerprint  # nothing is read again
    assert file_digests(config) == {}


def test_a_second_pipe(tmp_path: Path) -> None:
    """One replaces what came for an attempt that failed; when the corpus is complete it is said to be ignored."""
    (tmp_path / "c.yaml").write_text(
        "run: {name: x}\ntrain: {steps: 1}\nmodel: {context: 32}\ndata: {sources: {a: {kind: jsonl, files: ['-']}}, "
        f"dir: {tmp_path}/out, tokenizer: byte, split: {{val: 0.3}}}}\n"
    )

    def piped(data: bytes) -> tuple[int, str]:
        command = [sys.executable, "-m", "scripts.prepare", str(tmp_path / "c.yaml")]
        done = subprocess.run(command, input=data, cwd=ROOT, capture_output=True)
        return done.returncode, (done.stdout + done.stderr).decode()

    code, told = piped(b"not json\n")
    assert code == 2 and "not JSON" in told
    code, told = piped(LINES)
    assert code == 0 and "read        60 documents" in told and "was not read" not in told
    code, told = piped(LINES * 2)
    assert code == 0 and "read        60 documents" in told and "standard input was not read" in told
    assert "was not read" not in piped(b"")[1]


def test_a_killed_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)

    class Dying(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": Dying(), "isatty": lambda self: False})())
    with pytest.raises(KeyboardInterrupt):
        spool_stdin(config, tmp_path)
    with pytest.raises(DataError, match="pipe text into python -m scripts.prepare CONFIG"):
        list_tasks("a", "train", PIPED, tmp_path)
    pipe(monkeypatch, b"whole")
    spool_stdin(config, tmp_path)
    pipe(monkeypatch, b"", terminal=True)
    spool_stdin(config, tmp_path)
    assert (tmp_path / "stdin" / "train-a.jsonl").read_bytes() == b"whole"
    assert [path.name for path in (tmp_path / "stdin").iterdir()] == ["train-a.jsonl"]


def test_no_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"", terminal=True)
    with pytest.raises(DataError, match="source 'a' reads standard input: pipe text into"):
        prepare(config_of(tmp_path), 32, progress=False)
    pipe(monkeypatch, b"")
    with pytest.raises(DataError, match="source 'a': standard input is empty"):
        prepare(config_of(tmp_path), 32, progress=False)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="reads standard input"):
        prepare(config_of(tmp_path), 32, progress=False)
    with pytest.raises(DataError, match="sources 'a' and 'b': only one can read standard input"):
        prepare(config_of(tmp_path, a=PIPED, b=replace(PIPED, kind="text")), 32, progress=False)
    pipe(monkeypatch, LINES)
    spool_stdin(text_config(tmp_path), tmp_path)  # nobody asks for it
    assert sys.stdin.buffer.read() == LINES


def test_with_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a.txt": "A", "z.txt": "Z"})
    source: Any = SourceConfig(kind="text", files=(f"{tmp_path}/*.txt", "-"))
    pipe(monkeypatch, "piped é\n".encode())
    spool_stdin(config_of(tmp_path, b=source), tmp_path / "corpus")
    found = [d for task in list_tasks("b", "train", source, tmp_path / "corpus") for d in read(task)]
    assert [(d.id, d.text) for d in found] == [("a.txt", "A"), ("stdin", "piped é\n"), ("z.txt", "Z")]
