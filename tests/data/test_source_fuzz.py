"""Bytes that nobody would write: each is a document, a counted problem, or one line that refuses the file."""

import gzip
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config import SourceConfig
from data.errors import DataError
from data.making.encode import Job, TaskEncoder
from data.sources import Document, Task, list_tasks, read
from data.tokenizer import load_file
from data.tokens.vocabulary import byte_tokenizer

FIELDS: dict[str, Any] = {"id": "id", "labels": {"language": "meta.lang"}, "weight": "w"}
SPECIAL = "<|endoftext|> <|im_start|>system"
WORDS = ["plain", SPECIAL, "é中😀", "\u2028\x85\x0c", "\0", " " * 50, "\r\n", "\ufeff", "{}[]\"',;:", "1e400", "\ufffd"]


def seeds(rng: random.Random, folder: Path) -> dict[str, bytes]:
    """A good file of each format."""
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(8)]
    records = [{"text": t, "id": i, "meta": {"lang": "en"}, "w": 1.5} for i, t in enumerate(texts)]
    plain = "".join(json.dumps(record, ensure_ascii=rng.random() < 0.5) + "\n" for record in records).encode()
    quoted = [t.replace('"', '""') for t in texts]
    rows = ("id,text,meta.lang,w\r\n" + "".join(f'{i},"{t}",en,1\r\n' for i, t in enumerate(quoted))).encode()
    pq.write_table(pa.Table.from_pylist(records), folder / "seed.parquet", row_group_size=3)
    parquet = (folder / "seed.parquet").read_bytes()
    return {
        "a.txt": "".join(texts).encode(),
        "a.jsonl": plain,
        "a.csv": rows,
        "a.parquet": parquet,
        "b.jsonl.gz": gzip.compress(plain),
        "b.jsonl.zst": zstandard.compress(plain),
        "b.csv.gz": gzip.compress(rows),
        "b.txt.zst": zstandard.compress("".join(texts).encode()),
    }


NASTY = [b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\0", b'"', b"\n", b"\r", b"{", b"[" * 2000, b"\x1f\x8b", b"9" * 5000]


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """A few cuts, flips, repetitions and insertions."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(raw) + 1), rng.choice([1, 2, 8, 64])
        match rng.randrange(5):
            case 0:
                raw = raw[:at]
            case 1:
                raw = raw[:at] + bytes(rng.randrange(256) for _ in raw[at : at + length]) + raw[at + length :]
            case 2:
                raw = raw[:at] + raw[at + length :]
            case 3:
                raw = raw[:at] + raw[at : at + length] * 3 + raw[at + length :]
            case 4:
                raw = raw[:at] + rng.choice(NASTY) + raw[at:]
    return raw


def tasks_of(path: Path, encoding: str = "utf-8") -> list[Task]:
    kind: Any = {"txt": "text"}.get(path.name.split(".")[1], path.name.split(".")[1])
    fields = {} if kind == "text" else FIELDS
    more: dict[str, Any] = {} if kind == "parquet" else {"encoding": encoding}
    return list_tasks("s", "train", SourceConfig(kind=kind, files=(str(path),), **fields, **more))


def checked(tasks: Callable[[], list[Task]]) -> Iterator[Document]:
    """Every document, all of whose parts UTF-8 can hold; a refusal is one line."""
    try:
        for task in tasks():
            for document in read(task):
                assert (document.text is None) <= (document.problem is not None)
                assert 0 <= document.weight < float("inf")
                for text in (document.id, document.text or "", document.problem or "", *document.labels.values()):
                    text.encode()
                assert "\n" not in (document.problem or "")
                if document.problem is None:
                    assert document.text is not None
                yield document
    except DataError as error:
        assert str(error) and "\n" not in str(error), error


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), encoding=st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1", "shift_jis"]))
def test_mutated_files(tmp_path: Path, seed: int, encoding: str) -> None:
    rng = random.Random(seed)
    for name, raw in seeds(rng, tmp_path).items():
        path = tmp_path / name
        path.write_bytes(mutated(rng, raw))
        list(checked(lambda path=path: tasks_of(path, encoding)))  # type: ignore[misc]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(), max_size=6))
def test_valid_text_is_never_changed(tmp_path: Path, texts: list[str]) -> None:
    """Whatever UTF-8 can hold comes back from every format as it went in."""
    texts = [text.encode(errors="replace").decode() for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    escaped = [text.replace('"', '""') for text in texts]
    (tmp_path / "a.csv").write_bytes(("text\n" + "".join(f'"{text}"\n' for text in escaped)).encode())
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / "a.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        config = SourceConfig(kind=kind, files=(f"{tmp_path}/a.{kind}",))
        assert [d.text for task in list_tasks("s", "train", config) for d in read(task)] == texts, kind


def test_a_line_of_50_megabytes(tmp_path: Path) -> None:
    long = "x y " * 12_500_000
    lines = [json.dumps({"text": text, "id": 1, "w": 1}) for text in ("before", long, "after")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.csv").write_text(f'text,id,w,meta.lang\nbefore,1,1,\n"{long}",1,1,\nafter,1,1,\n')
    for name in ("a.jsonl", "a.csv"):
        sizes = [len(document.text or "") for document in checked(lambda name=name: tasks_of(tmp_path / name))]  # type: ignore[misc]
        assert sizes == [6, len(long), 5]
    (tmp_path / "a.jsonl").write_bytes(b"[" * 50_000_000)
    assert [document.problem for document in checked(lambda: tasks_of(tmp_path / "a.jsonl"))] == ["not JSON"]


@pytest.mark.soak
def test_ten_thousand_mutated_inputs(tmp_path: Path) -> None:
    """Read, then encoded as bytes: the ids spell the text that was read, and every document is accounted for."""
    rng = random.Random(1)
    byte_tokenizer().save(tmp_path)
    tokenizer = load_file(tmp_path / "tokenizer.json")
    good = [seeds(rng, tmp_path) for _ in range(40)]
    seen = refused = 0
    start = time.monotonic()
    for number in range(1250):
        folder = tmp_path / f"shards{number % 2}"
        for name, raw in rng.choice(good).items():
            path = tmp_path / name
            path.write_bytes(mutated(rng, raw))
            documents = list(checked(lambda path=path: tasks_of(path)))  # type: ignore[misc]
            seen += len(documents)
            if number % 10:
                continue
            folder.mkdir(exist_ok=True)
            refused += _encoded(path, folder, tmp_path / "tokenizer.json", tokenizer, documents)
            for file in folder.iterdir():
                file.unlink()
    assert seen > 20_000 and refused > 100
    print(f"{time.monotonic() - start:.0f} s, {seen} documents, {refused} files refused")


def _encoded(path: Path, folder: Path, file: Path, tokenizer: Any, documents: list[Document]) -> bool:
    kept = [document for document in documents if document.text is not None]
    job = Job(file, tokenizer.sha256, folder, fast=False, shard_bytes=1 << 30)
    try:
        results = [TaskEncoder(job)(task) for task in tasks_of(path)]
    except DataError:
        return True
    assert sum(len(result.unparsable) for result in results) == len(documents) - len(kept)
    texts = []
    for result in results:
        for shard in result.shards:
            ids = np.fromfile(folder / f"{shard.name}.bin", np.uint16)
            ends = np.flatnonzero(ids == tokenizer.end_id)
            texts += [bytes(ids[a + 1 : b].astype(np.uint8)).decode() for a, b in zip(ends, ends[1:], strict=False)]
    assert texts == [document.text for document in kept]
    return False
