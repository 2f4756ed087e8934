"""What a source may say, by its kind."""

from pathlib import Path

import pytest

from tests.configs.helpers import BASE, errors

WORKS = [
    "{kind: code, files: [src, '**/*.rs'], exclude: ['*.md'], encoding: latin-1, license: MIT}",
    "{kind: text, files: ['-'], constants: {domain: web}}",
    "{kind: jsonl, files: [a.jsonl], messages: chat, template: plain, train_on: [user], weight: w, id: key}",
    "{kind: csv, files: [a.csv], labels: {language: lang, cohort_2: c}, encoding: utf-16}",
    "{kind: parquet, files: [a.parquet], text: body, labels: {language: meta.lang}}",
    "{kind: hf, path: x, messages: m}",
]
FAILS = {
    "{kind: parquet, files: [a], encoding: latin-1}": "encoding: kind parquet does not use it; it takes files, ",
    "{kind: csv, files: [a], messages: m}": "messages: kind csv does not use it; it takes files, ",
    "{kind: text, files: [a], labels: {a: b}}": "labels: kind text does not use it; it takes files, ",
    "{kind: code}": "kind code needs files",
    "{kind: jsonl, files: [a], messages: m, text: b}": "text: messages takes its place; leave it out",
    "{kind: jsonl, files: [a], template: plain}": "template: is for conversations; name the field that holds them",
    "{kind: csv, files: ['-']}": "files: `-` is standard input, which kinds text and jsonl can read, not csv",
    "{kind: text, files: [a], encoding: nope}": "encoding: no encoding is called 'nope'; try utf-8, utf-16 or latin-1",
    "{kind: text, files: [a], encoding: base64}": "encoding: no encoding is called 'base64'; try utf-8, ",
    "{kind: text, files: [a], encoding: undefined}": "encoding: no encoding is called 'undefined'; try utf-8, ",
    '{kind: text, files: [a], encoding: "a\\0b"}': "encoding: text with a NUL",
    "{kind: jsonl, files: [a], labels: {Lang: b}}": "labels.Lang: a label's name is lower-case letters, digits and _",
    "{kind: jsonl, files: [a], labels: {source: b}}": "labels.source: results are by source without a label",
    "{kind: text, files: [a], constants: {source: b}}": "constants.source: results are by source without a label",
    "{kind: jsonl, files: [a], labels: {l: b}, constants: {l: c}}": "constants.l: data.sources.a.labels has this label",
}


def check(tmp_path: Path, source: str) -> list[str]:
    text = BASE.replace("{kind: text, files: [f.txt]}", source)
    return errors(tmp_path / "c.yaml", text)


@pytest.mark.parametrize("source", WORKS)
def test_what_a_kind_takes(tmp_path: Path, source: str) -> None:
    assert check(tmp_path, source) == []


@pytest.mark.parametrize("source", FAILS)
def test_what_a_kind_does_not_take(tmp_path: Path, source: str) -> None:
    (error,) = check(tmp_path, source)
    assert FAILS[source] in error and error.startswith("c.yaml:2: data.sources.a"), error


def test_one_source_reads_standard_input(tmp_path: Path) -> None:
    piped = "{kind: text, files: ['-']}"
    text = f"{piped}, b: {piped}"
    assert check(tmp_path, text) == [
        "c.yaml:2: data.sources.b.files: only one source can read `-`, standard input; data.sources.a does"
    ]
