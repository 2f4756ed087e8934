"""What the fields of a record become."""

from pathlib import Path
from typing import Any

import pytest

from data.config import SourceConfig
from data.documents import Turn
from data.reading.records import document

from .helpers import write_files
from .test_formats import documents


def made(record: object, **fields: Any) -> Any:
    return document("f@0", record, SourceConfig(kind="jsonl", **fields))


@pytest.mark.parametrize(
    "value, label",
    [
        ("en", "en"), ("", None), (None, None), (3, "3"), (0, "0"), (1.5, "1.5"), (True, "True"), (False, "False"),
        (float("nan"), None), ("a\ud800", "a\ufffd"), (b"x\xff", "x\ufffd"), (" spaced ", " spaced "),
    ],
)  # fmt: skip
def test_labels(value: Any, label: str | None) -> None:
    found = made({"text": "t", "l": value}, labels={"label": "l"})
    assert found.text == "t" and found.labels == ({"label": label} if label else {})


def test_what_holds_a_label() -> None:
    record = {"text": "t", "meta": {"lang": "en", "a.b": 1}, "meta.lang": "literal", "x": {"y": {"z": 2}}, "n": 1}
    labels = {"a": "meta.lang", "b": "x.y.z", "c": "n.deep", "d": "gone", "e": "meta.gone", "f": "x.y.z.w"}
    assert made(record, labels=labels).labels == {"a": "literal", "b": "2"}
    assert made(record, labels={"a": "x"}).problem == "field 'x' holds no single value"
    assert made({"text": "t", "l": [1]}, labels={"a": "l"}).problem == "field 'l' holds no single value"
    assert made({"a": {"b": "deep"}}, text="a.b").text == "deep"


@pytest.mark.parametrize(
    "value, want",
    [("x", "x"), (7, "7"), (2.5, "2.5"), (True, "True"), (None, "f@0"), ("", "f@0"), ("\udfff", "\ufffd")],
)
def test_ids(value: Any, want: str) -> None:
    assert made({"text": "t", "i": value}, id="i").id == want
    assert made({"text": "t"}, id="i").id == "f@0"
    assert made({"i": value}, id="i").id == want  # a problem too is told with its id


@pytest.mark.parametrize("value, weight", [(1, 1.0), (0, 0.0), (2.5, 2.5), ("0.5", 0.5), (b"3", 3.0), (10**30, 1e30)])
def test_weights(value: Any, weight: float) -> None:
    assert made({"text": "t", "w": value}, weight="w").weight == weight


@pytest.mark.parametrize("value", [-1, "x", None, True, float("nan"), float("inf"), 1e39, 10**400, [1], {"a": 1}, ""])
def test_no_weights(value: Any) -> None:
    found = made({"text": "t", "w": value}, weight="w")
    assert found.text is None and str(found.problem).startswith("field 'w' holds no weight, a number of at least 0: ")


def test_conversations(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "be\n"},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"text": "two"}]},
        {"role": "assistant", "content": "", "extra": 1},
    ]
    found = made({"m": said, "w": 2}, messages="m", weight="w")
    assert found.turns == (Turn("system", "be\n"), Turn("user", "one two"), Turn("assistant", ""))
    assert found.text == "be\none two" and found.weight == 2.0 and found.problem is None
    broken = made({"m": [{"role": "user\ud800", "content": "\udc00"}]}, messages="m")
    assert broken.turns == (Turn("user\ufffd", "\ufffd"),) and broken.problem == "a lone surrogate"
    write_files(tmp_path, {"a.jsonl": '{"m": [{"role": "user", "content": "hi"}]}\n{"m": 1}\n'})
    config = SourceConfig(kind="jsonl", files=(f"{tmp_path}/a.jsonl",), messages="m")
    assert [len(d.turns) for d in documents(config)] == [1, 0]


@pytest.mark.parametrize(
    "messages, problem",
    [
        (None, "no conversation in field 'm': a list of {role, content}"),
        ([], "no conversation"),
        ("text", "no conversation"),
        ({"role": "user", "content": "x"}, "no conversation"),
        (["text"], "message 0 of field 'm' has no role"),
        ([{"content": "x"}], "message 0 of field 'm' has no role"),
        ([{"role": 1, "content": "x"}], "has no role"),
        ([{"role": "", "content": "x"}], "has no role"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "message 1 of field 'm' has no text in `content`"),
        ([{"role": "user", "content": None}], "has no text in `content`"),
        ([{"role": "user", "content": [{"type": "image", "text": "x"}]}], "has no text in `content`"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has no text in `content`"),
    ],
)
def test_no_conversations(messages: Any, problem: str) -> None:
    found = made({"m": messages, "text": "x"}, messages="m")
    assert found.text is None and found.turns == () and problem in found.problem
