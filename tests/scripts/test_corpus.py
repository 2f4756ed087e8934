"""`scripts.corpus`, in-process: what its verbs print and write, and how they fail."""

import json
import re
from pathlib import Path

import pytest

from configs import load
from data import (
    DataConfig,
    PackConfig,
    Prepared,
    SourceConfig,
    SplitConfig,
    TokenizerConfig,
    prepare,
)
from data.card import sections as card
from data.card import view
from data.config import FimConfig
from scripts import corpus
from tests.data.test_card import NASTY, check_inert

TEXTS = [f"document {i} " + "word " * (i % 7) + "é\tx\n" for i in range(30)] + [
    NASTY,
    "",
    "document 3 word word word é\tx\n",
]


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The path of a config whose corpus is not prepared: ids, labels and weights."""
    lines = [{"text": text, "name": f"{NASTY}{i}", "site": f"s{i % 3}", "w": 1 + i % 2} for i, text in enumerate(TEXTS)]
    (tmp_path / "web.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"kind": "jsonl", "files": [str(tmp_path / "web.jsonl")], "id": "name", "weight": "w"}
    data = {"sources": {"web": source | {"labels": {"site": "site"}}}, "dir": str(tmp_path / "out"),
            "tokenizer": {"level": "byte"}, "split": {"val": 0.2}}  # fmt: skip
    path = tmp_path / "c.yaml"
    text = (
        f"run: {{name: t}}\ndata: {json.dumps(data)}\nmodel: {{context: 16}}\ntrain: {{steps: 2, batch_tokens: 64}}\n"
    )
    path.write_text(text)
    return str(path)


def prepared(config: str) -> Prepared:
    loaded = load(config)
    return prepare(loaded.data, loaded.model.context, progress=False)


def test_help_lists_the_verbs(capsys):
    assert corpus.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {verb} " in told for verb in corpus.VERBS)
    assert corpus.main(["clean", "x.yaml"]) == 2
    assert "there are verify, inspect" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        corpus.main(["inspect", "--help"])
    assert stop.value.code == 0 and "--row N" in capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(corpus.VERBS))
def test_what_is_not_prepared_is_said_with_the_command(verb: str, config: str, capsys):
    assert corpus.main([verb, config, "model.context=32"]) == 2
    told = capsys.readouterr().err
    assert f"python -m scripts.prepare {config} model.context=32" in told and told.count("\n") == 1
    assert not (Path(config).parent / "out").exists()


def test_verify_names_the_damaged_shard(config: str, capsys):
    store = prepared(config).store
    assert corpus.main(["verify", config]) == 0
    assert re.fullmatch(r"1 shards, 0\.0 MB: all as written\n", capsys.readouterr().out)
    for suffix in ("bin", "npz"):
        path = store.folder / f"{store.shards[0].name}.{suffix}"
        whole = path.read_bytes()
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
        assert corpus.main(["verify", config]) == 3
        assert capsys.readouterr().out == f"{path}: sha256 differs\n"
        path.write_bytes(whole)
    (store.directory / "tokenizer.json").unlink()
    path.unlink()
    assert corpus.main(["verify", config]) == 3
    assert capsys.readouterr().out.count("missing") == 2


def inspected(argv: list[str], capsys) -> str:
    assert corpus.main(["inspect", *argv]) == 0
    return capsys.readouterr().out


def test_rows_reassemble_to_the_documents(config: str, capsys):
    data = prepared(config)
    numbers = list(range(data.train.rows))
    rows = view.view_rows(data, "train", numbers, [0] * len(numbers), seed=0)
    told = inspected([config, "--rows", str(len(rows))], capsys)
    assert told == "\n".join(view.in_plain(rows)) + "\n"
    texts: dict[str, dict[int, bytes]] = {}
    for piece in (piece for row in rows for piece in row.pieces):
        first, *rest = piece.cells  # the first is only read: an E, or what ended the piece before
        assert not first.learned and all(cell.learned for cell in rest)
        part = re.search(r"(\d+) to \d+ of|(its end) of|all of", piece.about)
        assert part
        name, start = piece.about.split(" · ")[0], 1 << 30 if part[2] else int(part[1] or 0)
        texts.setdefault(name, {})[start] = b"".join(cell.raw for cell in rest)
        assert all(cell.weight == 1 + int(name.rpartition(")")[2]) % 2 for cell in rest)
    assert len(texts) == data.plan.facts["documents"]["train"]["web"] > 15
    for name, parts in texts.items():
        number = int(name.rpartition(")")[2])
        assert b"".join(parts[start] for start in sorted(parts)).decode() == TEXTS[number]
    assert "site s1" in told and "weight 2" in told and "(train, web)" in told and "⟦<|endoftext|>⟧" in told
    assert all(character.isprintable() or character == "\n" for character in told)


def test_color_and_page_show_the_same_tokens(config: str, tmp_path: Path, capsys):
    data = prepared(config)
    some = [config, "--rows=3", "--row=1"]
    plain, colored = inspected(some, capsys), inspected([*some, "--color", "always"], capsys)
    bare = re.sub(r"\x1b\[[\d;]*m", "", colored)
    assert "\x1b" not in bare
    strip = [re.sub("[│«»⟦⟧]", "", text).split("\nrow", 1)[1] for text in (plain, bare)]
    assert strip[0] == strip[1]
    assert inspected([*some, "--html", str(tmp_path / "rows.html")], capsys) == f"{tmp_path}/rows.html\n"
    page = check_inert((tmp_path / "rows.html").read_text())
    assert page.tags.count("pre") == plain.count("▸") == sum(len(data.train.length[a:b]) for a, b in [
        (data.train.row_ptr[1], data.train.row_ptr[4])])  # fmt: skip


def test_what_is_only_read_is_told_from_what_is_learned(tmp_path: Path):
    turns = [[{"role": "user", "content": f"two and two?{i}"}, {"role": "assistant", "content": f"four{i}"}]
             for i in range(9)]  # fmt: skip
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"m": turn}) for turn in turns))
    source = SourceConfig(kind="jsonl", files=(str(tmp_path / "c.jsonl"),), messages="m")
    config = DataConfig(sources={"c": source}, dir=str(tmp_path / "out"), tokenizer=TokenizerConfig(level="byte"),
                        split=SplitConfig(val=0.3))  # fmt: skip
    data = prepare(config, 256, progress=False)
    (row, *_) = view.view_rows(data, "train", [0], [0], 0)
    for piece in row.pieces:
        learned = [cell for cell in piece.cells if cell.learned]
        said = b"".join(cell.raw for cell in learned)
        assert re.fullmatch(rb"four\d\n?", said) and learned[-1].name
        assert b"two and two?" in b"".join(cell.raw for cell in piece.cells if not cell.learned)


def test_what_is_filled_in_is_shown_as_it_is_read(tmp_path: Path):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"{i}: the quick brown fox " * (1 + i % 3))
    source = SourceConfig(kind="text", files=(f"{tmp_path}/*.txt",))
    config = DataConfig(sources={"c": source}, dir=str(tmp_path / "out"), tokenizer=TokenizerConfig(level="byte"),
                        split=SplitConfig(val=0.3), pack=PackConfig(fim=FimConfig(rate=1.0)))  # fmt: skip
    data = prepare(config, 128, progress=False)
    shown = [view.view_rows(data, "train", [0], [epoch], 0)[0] for epoch in (0, 1)]
    assert shown[0] != shown[1] == view.view_rows(data, "train", [0], [1], 0)[0]
    for piece in shown[0].pieces:
        assert "fill in the middle" in piece.about
        names = [cell.name for cell in piece.cells if cell.name]
        assert sorted(names)[1:] == ["<|fim_middle|>", "<|fim_prefix|>", "<|fim_suffix|>"] or len(names) == 5
        name = piece.about.split(" · ")[0]
        text = b"".join(cell.raw for cell in piece.cells)
        assert sorted(text) == sorted((tmp_path / name).read_bytes())


def test_a_step_shows_its_rows_and_impossible_ones_are_refused(config: str, capsys):
    data = prepared(config)
    rows = re.findall(r"^row ([\d,]+) of", inspected([config, "--step", "1"], capsys), re.M)
    assert len(set(rows)) == 4 and all(int(row) < data.train.rows for row in rows)
    assert "(val, web)" in inspected([config, "--side", "val", "--rows", "1"], capsys)
    for bad in (["--row", "9999"], ["--row", "-1"], ["--rows", "0"], ["--side", "both"], ["--step", "x"],
                ["--step", "1", "--row", "2"], ["--color", "blue"]):  # fmt: skip
        assert corpus.main(["inspect", config, *bad]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_dropped_lists_id_source_and_reason(config: str, capsys):
    prepared(config)
    assert corpus.main(["dropped", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:2] for line in sorted(lines)] == [["duplicate", "web"], ["empty", "web"]]
    assert lines[0].endswith(f"{corpus.visible(NASTY)}{TEXTS.index('')}")
    assert corpus.main(["dropped", config, "--reason", "duplicate", "--limit=0"]) == 0
    assert capsys.readouterr().out == ""
    assert corpus.main(["dropped", config, "--reason", "rude"]) == 0
    assert "no document was left out for 'rude'; reasons are empty, duplicate" in capsys.readouterr().err
    assert corpus.main(["dropped", config, "--reason", "dup"]) == 0
    assert capsys.readouterr().out.startswith("duplicate")


def test_card_says_where_it_is_and_how_to_make_the_corpus_again(config: str, tmp_path: Path, capsys):
    data = prepared(config)
    assert corpus.main(["card", config]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths == [data.directory / name for name in card.FILES]
    recipe = paths[0].read_text().rpartition("```text\n")[2].partition("\n```")[0]
    again = tmp_path / "again.yaml"
    again.write_text(Path(config).read_text().splitlines()[0] + f"\n{recipe}\ntrain: {{steps: 2, batch_tokens: 64}}\n")
    assert (
        prepare(load(str(again), [f"data.dir={tmp_path}/other"]).data, 16, progress=False).fingerprint
        == data.fingerprint
    )
