"""The card: its numbers are right, it repeats, and nothing in a corpus gets out of its place in it."""

import json
import logging
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataConfig, Prepared, SourceConfig, SplitConfig, prepare
from data.card import markup
from data.card import sections as card
from data.card.page import (
    Bars,
    Block,
    Code,
    Histogram,
    Section,
    Stack,
    Table,
    Text,
    lines_visible,
    to_markdown,
    visible,
)

from .helpers import BYTE, content, text_source, write_files

NASTY = "<script>alert(1)</script>&amp;\x1b[31m\x9b2J\u202e\"' onload=x |`*_[a](b)"


def small(tmp_path: Path, **kwargs: Any) -> Prepared:
    """Source `a` of five files, `b` of one, one held out; bytes are tokens."""
    write_files(tmp_path / "a", {"1.txt": "aaaa", "2.txt": "bb", "3.txt": " \n", "4.txt": "aaaa", "5.txt": "c" * 20})
    write_files(tmp_path / "b", {"1.txt": "d" * 10})
    write_files(tmp_path / "v", {"1.txt": "e" * 6})
    own = text_source(tmp_path / "a", license="MIT", origin="https://example.org/a")
    sources = {"a": own, "b": text_source(tmp_path / "b")}
    split = SplitConfig(sources={"v": text_source(tmp_path / "v")})
    config = DataConfig(sources=sources, split=split, dir=str(tmp_path / "out"), tokenizer=BYTE, **kwargs)
    return prepare(config, 8, progress=False)


def blocks(prepared: Prepared, title: str, kind: type) -> list[Any]:
    found = next(section for section in card.sections(prepared) if section.title == title)
    return [block for block in found.blocks if isinstance(block, kind)]


def test_numbers_are_those_counted_by_hand(tmp_path: Path):
    prepared = small(tmp_path)
    (table,) = blocks(prepared, "Sources", Table)
    assert [(row[0], *row[2:]) for row in table.rows] == [
        ("a", "5", "32 B", "32", "66.7 %", "MIT"),
        ("b", "1", "10 B", "10", "20.8 %", "not given"),
        ("v (held out)", "1", "6 B", "6", "12.5 %", "not given"),
    ]
    assert [row[1] for row in table.rows] == [
        f"text: {tmp_path}/a/**/* (https://example.org/a)", f"text: {tmp_path}/b/**/*", f"text: {tmp_path}/v/**/*",
    ]  # fmt: skip
    (stack,) = blocks(prepared, "Sources", Stack)
    assert [(name, value) for name, value, _ in stack.items] == [("a", 32), ("b", 10), ("v (held out)", 6)]
    (histogram,) = blocks(prepared, "Documents", Histogram)
    assert histogram.items == [("2", 2), ("4", 3), ("8", 1), ("16", 1)]
    (bars,) = blocks(prepared, "Left out", Bars)
    assert sorted(bars.items) == [("duplicate", 1, "1"), ("empty", 1, "1")]
    examples = blocks(prepared, "Left out", Table)[1]
    assert sorted(examples.rows) == [("duplicate", "a", "4.txt"), ("empty", "a", "3.txt")]
    (rows,) = blocks(prepared, "Split and rows", Table)
    # aaaa, bb, 20 c's, 10 d's: n + 1 targets each; 21 in 8 + 8 + 5, 11 in 8 + 3: 3 cuts; a's rows 8 8 5+3 5, b's 8 3
    assert rows.rows[0] == ("train", "4", "36 B", "40", "6", "1.17", "3", "16.67 %")
    assert rows.rows[1] == ("val", "1", "6 B", "7", "1", "1.00", "0", "12.50 %")
    (facts,) = blocks(prepared, "Tokenizer", Table)
    assert dict(facts.rows)["unused ids"].startswith("252, such as ")  # a, b, c and d are trained on


def test_labels_are_counted(tmp_path: Path):
    lines = [{"text": "aaaa", "l": "en"}, {"text": "bb", "l": "de"}, {"text": "c" * 6, "l": "en"}, {"text": "me@x.org"}]
    write_files(tmp_path, {"a.jsonl": "\n".join(map(json.dumps, lines)), "v/1.txt": "eeeee"})
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/a.jsonl",), labels={"language": "l"})
    split = SplitConfig(sources={"v": text_source(tmp_path / "v", constants={"language": "en"})})
    config = DataConfig(
        sources={"a": source}, split=split, dir=str(tmp_path / "out"), tokenizer=BYTE, redact=("email",)
    )
    prepared = prepare(config, 8, progress=False)
    redacted = sum(shard.bytes for shard in prepared.store.shards) - 17
    (table,) = blocks(prepared, "Labels", Table)
    shares = [f"{100 * size / (17 + redacted):.1f} %" for size in (15, 2, redacted)]
    assert table.rows == [
        ("en", "3", "15 B", "15", shares[0]),
        ("de", "1", "2 B", "2", shares[1]),
        ("(none)", "1", f"{redacted} B", str(redacted), shares[2]),
    ]
    (stack,) = blocks(prepared, "Labels", Stack)
    assert [(name, size) for name, size, _ in stack.items] == [("en", 15), ("de", 2), ("(none)", redacted)]
    (text,) = blocks(prepared, "Left out", Text)[1:]
    assert text.text == "No text stands in it twice. 1 place was redacted (email)."


def test_a_card_is_the_same_wherever_and_whenever_it_is_made(tmp_path: Path):
    prepared = small(tmp_path)
    paths = [prepared.directory / name for name in ("card.md", "card.html")]  # preparing has written them
    first = [path.read_bytes() for path in paths]
    times = [path.stat().st_mtime_ns for path in paths]
    assert card.write_card(prepared) == paths and [path.stat().st_mtime_ns for path in paths] == times
    paths[0].write_text("old")
    card.write_card(prepare(prepared.config, 8, progress=False))
    assert [path.read_bytes() for path in paths] == first
    assert str(prepared.directory).encode() not in b"".join(first)


TAGS = (
    "html head meta title style body h1 h2 h3 section p div dl dt dd table thead tbody tr th td "
    "figure figcaption svg rect text ul li i b span pre"
)


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check_inert(text: str) -> Page:
    """Only elements of ours, no handler, no link, nothing loaded, every element closed, no control character."""
    page = Page(text)
    assert not page.open
    assert set(page.tags) <= set(TAGS.split())
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert all(character.isprintable() or character in "\n\t" for character in text)
    return page


def test_nothing_of_a_corpus_is_run_or_taken_for_markup(tmp_path: Path):
    lines = [{"body": f"{NASTY}\n```\n{i}" + "x" * 5000, "name": f"{NASTY}{i}", "where": f"{NASTY}{i % 2}"}
             for i in range(9)]  # fmt: skip
    (tmp_path / "<b>.jsonl").write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/*.jsonl",), text="body", id="name",
                          labels={"<i>place": "where", "language": "where"}, license=NASTY, origin=NASTY)  # fmt: skip
    config = DataConfig(sources={"web": source}, dir=str(tmp_path / "out"), tokenizer=BYTE, split=SplitConfig(val=0.3))
    markdown, page = card.write_card(prepare(config, 16, progress=False))
    shown = "".join(check_inert(page.read_text()).words)
    assert "<script>alert(1)</script>&amp;\\x1b[31m\\x9b2J\\u202e" in shown
    told = markdown.read_text()
    assert all(character.isprintable() or character in "\n\t" for character in told)
    outside = "".join(told.split("````text\n")[0::2])
    assert "<script" not in outside.split("```text")[0] and "\\[a\\](b)" in told


def test_every_block_is_drawn_even_with_nothing_in_it():
    empty = [Stack(NASTY, []), Bars("none", []), Histogram("none", []), Table(("a",), []), Table((), [])]
    for parts in (empty, [Bars("zero", [(NASTY, 0.0, "0")]), Stack("zero", [("x", 0.0, "0")])]):
        check_inert(markup.to_html("nothing", [Section("none", parts)]))
        assert to_markdown("nothing", [Section("none", parts)]).startswith("# nothing\n")


def test_visible_text_is_one_printable_line():
    assert visible("a\x00\n\u2028\ud800é中", 100) == "a\\x00\\n\\u2028\\ud800é中"
    assert visible("abcdef", 4) == "abc…" and lines_visible("a\tb\n\r\x07") == "a\tb\n\\r\\x07"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_text_stays_text(text: str):
    parts: list[Block] = [Table(("a",), [(text,)]), Code(text, text), Stack(text, [(text, 1.0, text)]), Text(text)]
    page = check_inert(markup.to_html(text, [Section(text, parts)]))
    assert page.tags == check_inert(markup.to_html("x", [Section("x" if text else "", [
        Table(("a",), [("x",)]), Code("x", "x"), Stack("x", [("x", 1.0, "x")]), Text("x")])])).tags  # fmt: skip
    assert "".join(page.words).count(visible(text)) >= 5
    told = to_markdown(text, [Section(text, [parts[0]])])
    assert len(told.splitlines()) == (7 if text else 5) and "<" not in told


def test_a_card_that_fails_fails_nothing_else(tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch):
    prepared = small(tmp_path)
    before = content(prepared.directory)
    monkeypatch.setattr(card, "sections", lambda _: 1 / 0)
    with caplog.at_level(logging.WARNING):
        card.try_write_card(prepared)
    assert "no data card: ZeroDivisionError" in caplog.text and content(prepared.directory) == before
