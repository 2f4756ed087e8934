"""The report on how a tokenizer fits a corpus, against counts by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from data import prepare
from data.config import DataConfig, SourceConfig, TokenizerConfig, TrainTokenizerConfig
from data.tokens.fertility import lines, tokenizer_report

from .helpers import text_config, write_files


def test_by_source(tmp_path: Path) -> None:
    texts = {f"{i}.txt": f"{i:03d} abc abc" for i in range(50)}
    prepared = prepare(text_config(tmp_path, texts), 32, progress=False)
    report = tokenizer_report(prepared)
    (source,), (fertility,) = report.sources, report.fertility
    assert (source.name, source.documents, source.bytes, source.tokens) == ("a", 50, 550, 550)
    assert (report.by, fertility.name, fertility.documents) == ("source", "a", 50)
    assert fertility.per_word == pytest.approx(11 / 3) and fertility.per_character == 1
    used = set("0123456789 abc")
    counts = prepared.token_counts()
    assert used >= {chr(i) for i in np.flatnonzero(counts[:256])}
    assert report.unused == 256 - np.count_nonzero(counts[:256])
    assert report.unused_examples[0] == "'\\x00'" and report.longest[0] == "'\\x00'"
    assert "'\\xff'" not in report.unused_examples[:5] and len(report.longest) == 20
    printed = lines(report)
    assert printed[1] == "source      a: 1.00 bytes/token, 50 documents, 550 bytes, 550 tokens"
    assert printed[2] == "source      a: 3.67 tokens/word, 1.000 tokens/character, from 50 documents"
    assert all("\n" not in line for line in printed)


def test_by_language(tmp_path: Path) -> None:
    texts = {"en": "one two three ", "zh": "\u4e2d\u6587\u5b57", "zh-TW": "\u4e2d", "": "x "}
    records = [{"text": text * 20 + str(i), "lang": lang or None} for lang, text in texts.items() for i in range(30)]
    write_files(tmp_path, {"a.jsonl": "".join(json.dumps(record) + "\n" for record in records)})
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/a.jsonl",), labels={"language": "lang"})
    how = TokenizerConfig(train=TrainTokenizerConfig(400))
    prepared = prepare(DataConfig(sources={"a": source}, dir=str(tmp_path / "o"), tokenizer=how), 64, progress=False)
    report = tokenizer_report(prepared)
    by_name = {fertility.name: fertility for fertility in report.fertility}
    assert report.by == "language" and list(by_name) == ["en", "zh", "zh-TW", "unknown"]
    assert by_name["zh"].per_word is by_name["zh-TW"].per_word is None
    assert by_name["en"].per_word is not None and 0.5 < by_name["en"].per_word < 2
    assert all(fertility.documents == 30 for fertility in report.fertility)
    assert [line for line in lines(report) if line.startswith("language    zh:")][0].count("word") == 0
    assert report.longest[0].startswith("'") and len(report.longest) == 20
