"""One corpus in every format: the same texts, ids and labels."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data import estimate, prepare, sources
from data.config import DataConfig, SourceConfig, SplitConfig
from data.errors import DataError
from data.reading.changes import file_digests
from data.sources import Document, list_tasks, read

from .helpers import BYTE, write_files

WANT = [
    ("a.txt", "first\r\nline", {"language": "en", "year": "2001"}),
    ("b.txt", '"quoted", and\nsplit', {"language": "de", "year": "2002"}),
    ("c.txt", "n\x00l \u2028 \x85 \x0c", {"year": "2003"}),
    ("d.txt", "", {"language": "zh", "year": "2004"}),
    ("e.txt", "😀 <|endoftext|> é\ttab ", {"language": "en", "year": "2005"}),
]
RECORDS: list[dict[str, Any]] = [
    {"key": key, "body": text, "lang": labels.get("language"), "year": int(labels["year"]), "unused": [1]}
    for key, text, labels in WANT
]
FIELDS: dict[str, Any] = {"text": "body", "id": "key", "labels": {"language": "lang", "year": "year"}}


def documents(config: SourceConfig) -> list[Document]:
    return [document for task in list_tasks("s", "train", config) for document in read(task)]


def found(config: SourceConfig) -> list[tuple[str, str | None, dict[str, str]]]:
    seen = documents(config)
    assert not [document.problem for document in seen if document.problem]
    return [(document.id, document.text, dict(document.labels)) for document in seen]


def jsonl() -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def table() -> pa.Table:
    return pa.Table.from_pylist(RECORDS)


def csv_text() -> str:
    out = io.StringIO(newline="")
    rows = csv.writer(out)
    rows.writerow(["key", "lang", "body", "year"])
    rows.writerows([[r["key"], r["lang"], r["body"], r["year"]] for r in RECORDS])
    return out.getvalue()


def source(kind: Any, path: Path, **more: Any) -> SourceConfig:
    return SourceConfig(kind=kind, files=(str(path),), **{**FIELDS, **more})


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_text_jsonl_and_csv(tmp_path: Path, ending: str) -> None:
    def packed(raw: bytes) -> bytes:
        return gzip.compress(raw) if ending == ".gz" else zstandard.compress(raw) if ending else raw

    write_files(tmp_path, {f"t/{key}{ending}": packed(text.encode()) for key, text, _ in WANT})
    write_files(tmp_path, {f"a.jsonl{ending}": packed(jsonl()), f"a.csv{ending}": packed(csv_text().encode())})
    texts = found(SourceConfig(kind="text", files=(f"{tmp_path}/t/*",)))
    assert texts == [(key + ending, text, {}) for key, text, _ in WANT]
    assert found(source("jsonl", tmp_path / f"a.jsonl{ending}")) == WANT
    assert found(source("csv", tmp_path / f"a.csv{ending}")) == WANT


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-7", "gb18030"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    write_files(tmp_path, {f"t/{key}": text.encode(encoding) for key, text, _ in WANT})
    raw = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode(encoding)
    write_files(tmp_path, {"a.jsonl": raw, "a.csv": csv_text().encode(encoding), "z.csv.gz": b""})
    texts = found(SourceConfig(kind="text", files=(f"{tmp_path}/t/*",), encoding=encoding))
    assert texts == [(key, text, {}) for key, text, _ in WANT]
    assert found(source("jsonl", tmp_path / "a.jsonl", encoding=encoding)) == WANT
    assert found(source("csv", tmp_path / "a.csv", encoding=encoding)) == WANT


def test_parquet_and_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    pq.write_table(table(), folder / "a.parquet", row_group_size=2)
    assert found(source("parquet", folder / "a.parquet")) == WANT
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_bytes(jsonl())
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    for path in ("folder", "saved", "lines"):
        for streaming in (False, True):
            config = SourceConfig(kind="hf", path=str(tmp_path / path), streaming=streaming, **FIELDS)
            assert found(config) == WANT, (path, streaming)


def test_conversations_in_tables(tmp_path: Path) -> None:
    import datasets

    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    rows = [
        {"m": said, "lang": "en"},
        {"m": None, "lang": None},
        {"m": [{"role": "user", "content": None}], "lang": ""},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    more: dict[str, Any] = {"messages": "m", "labels": {"language": "lang"}}
    for config in (
        SourceConfig(kind="parquet", files=(f"{tmp_path}/a.parquet",), **more),
        SourceConfig(kind="hf", path=f"{tmp_path}/saved", **more),
        SourceConfig(kind="hf", path=f"{tmp_path}/saved", streaming=True, **more),
    ):
        first, *others = documents(config)
        assert [(turn.role, turn.text) for turn in first.turns] == [("user", "hi"), ("assistant", "yo")]
        assert (first.text, first.labels) == ("hiyo", {"language": "en"})
        assert [d.text for d in others] == [None, None] and str(others[1].problem).startswith("message 0 of field 'm'")


def test_datasets_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'a/b' on the Hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = r"dataset 'a/b' cannot be loaded: ConnectionError: Couldn't reach 'a/b' on the Hub; without a network, .*"
    with pytest.raises(DataError, match=message) as caught:
        documents(SourceConfig(kind="hf", path="a/b"))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match="saved' cannot be loaded: "):
        documents(SourceConfig(kind="hf", path=f"{tmp_path}/saved", **FIELDS))


def test_a_corpus_of_all_kinds(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": jsonl(), "a.csv.gz": gzip.compress(csv_text().encode()), "c/a.py": "x = 1"})
    pq.write_table(table(), tmp_path / "a.parquet")
    kinds: dict[str, Any] = {"jsonl": "a.jsonl", "csv": "a.csv.gz", "parquet": "a.parquet"}
    given: dict[str, SourceConfig] = {kind: source(kind, tmp_path / name) for kind, name in kinds.items()}
    given["code"] = SourceConfig(kind="code", files=(f"{tmp_path}/c",), constants={"domain": "code"})
    split = SplitConfig(sources={"held": source("jsonl", tmp_path / "a.jsonl", constants={"domain": "held"})})
    config = DataConfig(given, dir=str(tmp_path / "out"), tokenizer=BYTE, split=split)
    guess = estimate(config)
    assert guess.documents is None and 200 < (guess.bytes or 0) < 3000
    store = prepare(config, 16, progress=False).store
    codes, values = store.label("language")
    seen = [values[code] if code >= 0 else None for code in codes]
    assert seen == ["en", "de", None, "zh", "en"] * 3 + ["python"] + ["en", "de", None, "zh", "en"]
    codes, values = store.label("domain")
    assert [values[code] if code >= 0 else None for code in codes] == [None] * 15 + ["code"] + ["held"] * 5


def test_parquet_types(tmp_path: Path) -> None:
    import datetime
    from decimal import Decimal

    columns = {
        "text": pa.array(["a", "b", None]).dictionary_encode(),
        "raw": pa.array([b"good", b"b\xffad", b""]),
        "day": pa.array([datetime.date(2020, 1, 2), None, datetime.date(1, 1, 1)]),
        "at": pa.array([datetime.datetime(2020, 1, 2, 3, 4, 5)] * 3),
        "far": pa.array([2**62, 1, 2], pa.timestamp("us")),
        "number": pa.array([1.5, float("nan"), 2.0]),
        "exact": pa.array([Decimal("1.10"), Decimal("2.00"), None]),
        "flag": pa.array([True, False, None]),
        "meta": pa.array([{"lang": "en", "deep": {"x": 1}}, {"lang": None, "deep": None}, None]),
        "list": pa.array([[1], [], [2]]),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)

    def labels(**fields: str) -> list[dict[str, str] | str | None]:
        seen = documents(SourceConfig(kind="parquet", files=(str(path),), text="raw", labels=fields))
        return [dict(document.labels) if document.text is not None else document.problem for document in seen]

    days = ["2020-01-02", None, "0001-01-01"]
    assert labels(day="day") == [{"day": day} if day else {} for day in days]
    assert labels(at="at")[0] == {"at": "2020-01-02T03:04:05"}
    assert labels(n="number") == [{"n": "1.5"}, {}, {"n": "2.0"}]
    assert labels(n="exact", f="flag") == [{"n": "1.10", "f": "True"}, {"n": "2.00", "f": "False"}, {}]
    assert labels(lang="meta.lang", x="meta.deep.x") == [{"lang": "en", "x": "1"}, {}, {}]
    assert labels(all="list") == ["field 'list' holds no single value"] * 3
    assert labels(far="far")[0] == "field 'far' holds no single value"
    raw = documents(SourceConfig(kind="parquet", files=(str(path),), text="raw", weight="number"))
    assert [(d.text, d.problem, d.weight) for d in raw][0] == ("good", None, 1.5)
    assert raw[1].problem == "field 'number' holds no weight, a number of at least 0: nan"
    bad = documents(SourceConfig(kind="parquet", files=(str(path),), text="raw"))
    assert (bad[1].text, bad[1].problem, bad[1].id) == ("b\ufffdad", "not UTF-8 at byte 1", "a.parquet@1")
    text = documents(SourceConfig(kind="parquet", files=(str(path),)))
    assert [(d.text, d.problem) for d in text] == [("a", None), ("b", None), (None, "no text in field 'text'")]
    with pytest.raises(DataError, match=r"a.parquet: no column 'txt'; there are text, raw, day"):
        documents(SourceConfig(kind="parquet", files=(str(path),), text="txt"))
    with pytest.raises(DataError, match=r"column 'number' holds double, no text; `text:` may be text, raw"):
        documents(SourceConfig(kind="parquet", files=(str(path),), text="number"))


def test_text_of_a_parquet_file_that_is_not_utf_8(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe!", b"fine"]).buffers())
    nested = pa.StructArray.from_arrays([broken], ["inner"])
    pq.write_table(pa.table({"text": broken, "meta": nested}), tmp_path / "a.parquet")
    config = SourceConfig(kind="parquet", files=(f"{tmp_path}/a.parquet",))
    assert [(d.text, d.problem) for d in documents(config)] == [
        ("\ufffd\ufffd!", "not UTF-8 at byte 0"),
        ("fine", None),
    ]
    inner = documents(replace(config, text="meta.inner"))
    assert [d.text for d in inner] == [None, "fine"] and inner[0].problem == "no text in field 'meta.inner'"


@pytest.mark.parametrize("size", [1, 300, 10**9])
def test_row_groups_cover_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(sources, "TASK_BYTES", size)
    monkeypatch.setattr(sources, "_TASKS", 1 << 40)  # no larger tasks because there are many
    rows = [f"document {i}" for i in range(50)]
    wide = {"text": rows, "unused": ["x" * 1000] * 50}
    pq.write_table(pa.table(wide), tmp_path / "a.parquet", row_group_size=7)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["last"]}), tmp_path / "c.parquet")
    config = SourceConfig(kind="parquet", files=(f"{tmp_path}/*.parquet",))
    assert [d.text for d in documents(config)] == [*rows, "last"]
    assert [d.id for d in documents(config)][49:] == ["a.parquet@49", "c.parquet@0"]
    tasks = list_tasks("s", "train", config)
    assert len(tasks) == {1: 9, 300: 3, 10**9: 1}[size] and sum(task.size for task in tasks) < 1000
    assert [d.text for d in documents(replace(config, max_documents=9))] == rows[:9]


@pytest.mark.parametrize("cut", [0, 3, 10, -9, -1])
def test_damaged_parquet(tmp_path: Path, cut: int) -> None:
    pq.write_table(table(), tmp_path / "a.parquet", write_page_checksum=True)
    raw = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(raw[:cut])
    with pytest.raises(DataError, match=r"a.parquet: cannot be read as parquet \("):
        found(source("parquet", tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").write_bytes(raw.replace(b"quoted", b"QUOTED"))
    with pytest.raises(DataError, match=r"a.parquet: cannot be read as parquet \(.*CRC"):
        found(source("parquet", tmp_path / "a.parquet"))


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_damaged_compressed_files(tmp_path: Path, kind: Any, ending: str) -> None:
    raw = {"text": b"text\n" * 999, "jsonl": jsonl() * 99, "csv": csv_text().encode()}[kind]
    packed = (gzip.compress if ending == ".gz" else zstandard.compress)(raw)
    for broken in (packed[:-3], packed[: len(packed) // 2], packed[:4], packed + b"more", b"plain text"):
        write_files(tmp_path, {f"a{ending}": broken})
        with pytest.raises(DataError, match=f"a{ending}: cannot be read to its end"):
            found(source(kind, tmp_path / f"a{ending}"))
    flipped = bytearray(gzip.compress(raw))
    flipped[len(flipped) // 2] ^= 255
    write_files(tmp_path, {"b.gz": bytes(flipped), f"c{ending}": packed + packed})
    with pytest.raises(DataError, match="b.gz: cannot be read to its end"):
        found(source(kind, tmp_path / "b.gz"))
    if kind == "text":
        assert documents(source(kind, tmp_path / f"c{ending}"))[0].text == (raw + raw).decode()


def test_rows_behind_a_quote_that_is_never_closed_are_counted(tmp_path: Path) -> None:
    rows = [f"row {i},{i}\n" for i in range(100)]
    for raw, good in (('x,1\n"y,2\n' + "".join(rows), 1), ('x,1\n"y,2\nz,3\n"z",4\n' + "".join(rows), 101)):
        write_files(tmp_path, {"a.csv": "text,id\n" + raw})
        seen = documents(SourceConfig(kind="csv", files=(f"{tmp_path}/a.csv",)))
        assert sum(d.text is not None for d in seen) == good and len(seen) == raw.count("\n")
        assert len({d.id for d in seen}) == len(seen)


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([text]) for text in "abcd"], names=["text", "x", "x", "y"])
    pq.write_table(table, tmp_path / "a.parquet")
    config = SourceConfig(kind="parquet", files=(f"{tmp_path}/a.parquet",))
    assert [d.text for d in documents(config)] == ["a"]
    with pytest.raises(DataError, match="more than one column is called 'x'"):
        documents(replace(config, text="x"))


def test_csv_rows(tmp_path: Path) -> None:
    text = 'id,text\n\n1,"a ""b"" c\r\n,d"\r\n2,ab"c"d\n3\n4,x,y\n5,"q"z\n6,last\r\n7,"never closed\n'
    write_files(tmp_path, {"a.csv": text, "b.csv": b"\xef\xbb\xbftext,w\nbad \xff,1e3\nok,-1\nfine,0\nok,\n"})
    seen = documents(SourceConfig(kind="csv", files=(f"{tmp_path}/a.csv",), id="id"))
    assert [(d.id, d.text) for d in seen if d.text is not None] == [
        ("1", 'a "b" c\r\n,d'), ("2", 'ab"c"d'), ("6", "last"),
    ]  # fmt: skip
    assert [(d.id, d.problem) for d in seen if d.text is None] == [
        ("a.csv@37", "not CSV (1 fields instead of 2)"),
        ("a.csv@39", "not CSV (3 fields instead of 2)"),
        ("a.csv@45", "not CSV (',' expected after '\"')"),
        ("a.csv@60", "not CSV (unexpected end of data)"),
    ]
    seen = documents(SourceConfig(kind="csv", files=(f"{tmp_path}/b.csv",), weight="w"))
    assert [(d.text, d.weight) for d in seen] == [("bad \ufffd", 1000.0), (None, 1.0), ("fine", 0.0), (None, 1.0)]
    assert seen[0].problem == "not UTF-8 at byte 4"
    assert seen[1].problem == "field 'w' holds no weight, a number of at least 0: '-1'"


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"", "a.csv: is empty"),
        (b"\n\n", "a.csv: is empty"),
        (b"a;text\n1;x\n", "no column 'text'; there are a;text"),
        (b"text,text\n", "two columns have one name"),
        (gzip.compress(b"text\n", mtime=0), "gzip data: name the file"),
        (b'"text', "no CSV header"),
    ],
)
def test_csv_headers(tmp_path: Path, raw: bytes, message: str) -> None:
    write_files(tmp_path, {"a.csv": raw})
    with pytest.raises(DataError, match=message):
        documents(SourceConfig(kind="csv", files=(f"{tmp_path}/a.csv",)))


@pytest.mark.parametrize(
    "raw, problem",
    [
        (gzip.compress(b"x", mtime=0), "not UTF-8 at byte 1 (gzip data: name the file *.gz)"),
        (zstandard.compress(b"x"), "not UTF-8 at byte 1 (zstd data: name the file *.zst)"),
        ("hello".encode("utf-16"), "not UTF-8 at byte 0 (perhaps `encoding: utf-16`)"),
        ("déjà vu, été".encode("latin-1"), "not UTF-8 at byte 1 (perhaps `encoding: latin-1`)"),
        ("“déjà” vu".encode("cp1252"), "not UTF-8 at byte 0 (perhaps `encoding: cp1252`)"),
        ("mostly é é é é é".encode() + b"\xff", "not UTF-8 at byte 21"),
    ],
)
def test_what_undecodable_files_may_be(tmp_path: Path, raw: bytes, problem: str) -> None:
    write_files(tmp_path, {"a.txt": raw})
    (seen,) = documents(SourceConfig(kind="text", files=(f"{tmp_path}/a.txt",)))
    assert seen.problem == problem and "\ufffd" in str(seen.text)
    lines = documents(SourceConfig(kind="jsonl", files=(f"{tmp_path}/a.txt",)))
    assert lines[0].text is None and str(lines[0].problem).startswith("not JSON, not UTF-8 at byte")


def test_broken_wide_text(tmp_path: Path) -> None:
    lines = ['{"text": "good"}\n', '{"text": "b\ud800d"}\n', '{"text": "cut"}']
    write_files(tmp_path, {"a.jsonl": "".join(lines).encode("utf-16", "surrogatepass")[:-1]})
    seen = documents(SourceConfig(kind="jsonl", files=(f"{tmp_path}/a.jsonl",), encoding="utf-16"))
    assert [(d.id, d.text, d.problem) for d in seen] == [
        ("a.jsonl@0", "good", None),
        ("a.jsonl@17", "b\ufffdd", "not UTF-16"),
        ("a.jsonl@33", None, "not JSON, not UTF-16"),
    ]
    (whole,) = documents(SourceConfig(kind="text", files=(f"{tmp_path}/a.jsonl",), encoding="utf-16"))
    assert whole.problem == "not UTF-16 at byte 58" and str(whole.text).count("\ufffd") == 2
    with pytest.raises(DataError, match="no encoding 'nope'; try utf-8 or latin-1"):
        documents(SourceConfig(kind="text", files=(f"{tmp_path}/a.jsonl",), encoding="nope"))


def test_byte_order_marks(tmp_path: Path) -> None:
    mark = "\ufeff"
    line = '{"text": "' + mark + 'kept"}\n'
    write_files(tmp_path, {"a.jsonl": (mark + line) * 2, "a.csv": f'{mark}text\n"a\n{mark}b"\n', "a.txt": mark + mark})
    for kind, want in (("jsonl", [mark + "kept"] * 2), ("csv", [f"a\n{mark}b"]), ("text", [mark])):
        config = SourceConfig(kind=kind, files=(f"{tmp_path}/a.{kind.replace('text', 'txt')}",))  # type: ignore[arg-type]
        assert [d.text for d in documents(config)] == want


def test_constants_are_labels_of_every_document(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.txt": "x", "a.jsonl": '{"text": "x", "l": "en"}\n'})
    constants = {"domain": "web"}
    (text,) = documents(SourceConfig(kind="text", files=(f"{tmp_path}/a.txt",), constants=constants))
    config = SourceConfig(kind="jsonl", files=(f"{tmp_path}/a.jsonl",), labels={"language": "l"}, constants=constants)
    (line,) = documents(config)
    assert text.labels == constants and line.labels == {"language": "en", "domain": "web"}


def test_changed_files_of_every_kind(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": jsonl(), "a.csv": csv_text(), "a.txt": "x", "c/a.py": "x", "c/notes.txt": "x"})
    pq.write_table(table(), tmp_path / "a.parquet")
    kinds: dict[str, Any] = {"jsonl": "a.jsonl", "csv": "a.csv", "text": "a.txt", "parquet": "a.parquet", "code": "c"}
    config = DataConfig({kind: SourceConfig(kind=kind, files=(f"{tmp_path}/{f}",)) for kind, f in kinds.items()})  # type: ignore[arg-type]
    before = file_digests(config)
    assert set(before) == {f"train {kind}" for kind in kinds}
    (tmp_path / "c" / "notes.txt").write_text("longer")
    assert file_digests(config) == before
    for kind, name in kinds.items():
        path = tmp_path / name if kind != "code" else tmp_path / "c" / "a.py"
        path.write_bytes(path.read_bytes() + b" ")
        after = file_digests(config)
        assert {key for key in before if before[key] != after[key]} == {f"train {kind}"}
        before = after


LISTING = """
import sys
from data.config import SourceConfig
from data.sources import list_tasks, read
for config in (SourceConfig(kind="text", files=("**/*.txt", "[a-c]/*")), SourceConfig(kind="code", files=(".",)),
               SourceConfig(kind="jsonl", files=("*.jsonl",), labels={"z": "z", "a": "a", "m": "m"})):
    for task in list_tasks("s", "train", config):
        print(task.label, task.size, [(part.id, part.start, part.stop) for part in task.parts])
        print([(d.id, d.text, sorted(d.labels.items())) for d in read(task)])
"""


def test_order_depends_on_names_alone(tmp_path: Path) -> None:
    files = {f"{folder}/{name}": name for folder in "abcz" for name in ("x.txt", "y.txt", "q.py", "B.py")}
    files |= {f"{i}.jsonl": f'{{"text": "{i}", "a": 1, "z": 2, "m": 3}}' for i in range(5)}
    outputs = set()
    for seed, order in (("0", list(files)), ("1", list(files)[::-1])):
        folder = tmp_path / seed / "same"
        write_files(folder, {name: files[name] for name in order})
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(
            [sys.executable, "-c", LISTING], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1 and "train-s-00000" in outputs.pop()


def test_files_with_odd_names(tmp_path: Path) -> None:
    for name in (b"\xff.txt", "é\n.txt".encode()):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_text("x")
    seen = documents(SourceConfig(kind="text", files=(f"{tmp_path}/*.txt",)))
    assert sorted(d.id for d in seen) == ["\\udcff.txt", "é\n.txt"]
