"""Preparing a corpus: once, atomically, the same bytes each time, and a clear word for bad input."""

import gzip
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import durable
from configs import explain
from data import sources
from data.cleaning.choose import dropped_documents
from data.columns import COLUMNS, ids_of
from data.config import Bounds, CleanConfig, DataConfig, PackConfig, SourceConfig, SplitConfig, TokenizerConfig
from data.corpus import Estimate, estimate, lookup, prepare, prepare_slice
from data.errors import DataError
from data.making import build
from data.making.attempt import deciding
from data.making.place import corpus_directory
from data.reading.changes import file_digests
from data.store import Store, find_shard, from_file, to_bytes
from data.tokenizer import load_tokenizer
from data.tokens.vocabulary import byte_tokenizer
from scripts.faults.shards import put_id_beyond

from .helpers import BYTE, bpe, content, corpora, random_texts, text_config, text_source, write_files

SPLIT = SplitConfig(val=0.2)
TAIL = SplitConfig(val=0.2, by="tail")


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tasks and shards from little text."""
    monkeypatch.setattr(sources, "TASK_BYTES", 4000)
    monkeypatch.setattr(build, "SHARD_BYTES", 1500)


def make(config: DataConfig, context: int = 32) -> Any:
    return prepare(config, context, progress=False)


def test_a_store_holds_the_texts(tmp_path: Path, small_tasks: None) -> None:
    texts = random_texts(50)
    prepared = make(text_config(tmp_path, texts, split=SPLIT, tokenizer=bpe()))
    store, tokenizer = prepared.store, prepared.tokenizer
    assert len(store.shards) > 3
    found = {}
    for number, record in enumerate(store.shards):
        columns = from_file(store.folder / f"{record.name}.npz")
        tokens, offsets = store.tokens(number), columns["offsets"]
        assert all(any(fnmatchcase(name, known) for known in COLUMNS) for name in columns)
        assert {"offsets", "hash", "nbytes", "flags", "id", "id_offsets", "stat:chars"} <= set(columns)
        assert (tokens[offsets] == tokenizer.end_id).all() and (tokens == tokenizer.end_id).sum() == len(offsets)
        assert tokens.dtype == np.dtype("<u2") and len(tokens) == offsets[-1] + 1 == record.tokens + len(offsets)
        for i, identity in enumerate(ids_of(columns)):
            text = tokenizer.decode_bytes(tokens[offsets[i] + 1 : offsets[i + 1]].tolist())
            assert len(text) == columns["nbytes"][i]
            found[identity] = text.decode()
    assert found == texts
    assert load_tokenizer(prepared.directory).sha256 == prepared.tokenizer_hash


def test_wide_ids(tmp_path: Path) -> None:
    points = [c for c in range(0x4E00, 0x4E00 + 70_000) if not 0xD800 <= c < 0xE000]
    texts = {"a.txt": "".join(map(chr, points)), "b.txt": "tail" + chr(points[-1])}
    prepared = make(text_config(tmp_path, texts, tokenizer=TokenizerConfig(level="char"), split=TAIL))
    assert {shard.dtype for shard in prepared.store.shards} == {"<u4"}
    assert prepared.tokenizer.vocab_size > 1 << 16
    assert [texts["a.txt"].endswith(text.decode()) for text in prepared.val_documents()][0]


def test_preparing_twice_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, split=SPLIT, tokenizer=bpe())
    first = make(config)
    before = content(tmp_path / "out")
    monkeypatch.setattr("data.making.build.list_tasks", None)  # sources are not looked at again
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    again = make(config)
    found = lookup(config, 32)
    assert content(tmp_path / "out") == before
    assert found and first.fingerprint == again.fingerprint == found.fingerprint
    assert found.summary() == first.summary()


def test_split_packing_and_context_share_a_store(tmp_path: Path) -> None:
    config = text_config(tmp_path, split=SPLIT)
    first = make(config)
    bins = content(first.directory / "shards")
    others = [
        make(config, 16),
        make(replace(config, pack=PackConfig(mode="concat"))),
        make(replace(config, split=SplitConfig(val=0.3))),
        make(replace(config, split=SplitConfig(val=0.2, by="tail"))),
    ]
    assert {p.directory for p in others} == {first.directory} and content(first.directory / "shards") == bins
    assert len({p.fingerprint for p in [first, *others]}) == 5
    assert make(replace(config, pack=PackConfig(document_mask=False))).fingerprint == first.fingerprint
    assert make(replace(config, tokenizer=bpe())).directory != first.directory


def test_a_damaged_plan_is_made_again(tmp_path: Path) -> None:
    config = text_config(tmp_path, split=SPLIT)
    first = make(config)
    (plan,) = (first.directory / "plans").iterdir()
    raw = plan.read_bytes()
    for broken in (b"", raw[: len(raw) // 2], bytes(b ^ (i == len(raw) // 2) for i, b in enumerate(raw))):
        plan.write_bytes(broken)
        found = lookup(config, 32)
        assert found and found.fingerprint == first.fingerprint and plan.read_bytes() == broken
        assert make(config).fingerprint == first.fingerprint and plan.read_bytes() == raw


def test_lookup_and_estimate_write_nothing(tmp_path: Path) -> None:
    config = text_config(tmp_path, {"a.txt": "x" * 700, "b.txt": ""}, split=SPLIT, tokenizer=bpe())
    assert lookup(config, 32) is None
    guess = estimate(config)
    assert (guess.documents, guess.bytes, guess.tokens) == (2, 700, 200)
    assert not (tmp_path / "out").exists()


def test_estimates_of_what_cannot_be_counted(tmp_path: Path) -> None:
    config = text_config(tmp_path, {"a.txt": "中é" * 1000, "b.txt": ""}, tokenizer=TokenizerConfig(level="char"))
    assert estimate(config) == Estimate(2, 5000, 2000)
    assert estimate(replace(config, tokenizer=BYTE)) == Estimate(2, 5000, 5000)
    write_files(tmp_path, {"a.jsonl": '{"text": "x"}\n'})
    stream = SourceConfig(kind="hf", path="json", data_files=(f"{tmp_path}/a.jsonl",), streaming=True)
    assert estimate(replace(config, sources={**config.sources, "s": stream})) == Estimate(None, None, None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["bin", "npz"])
def test_a_flipped_byte_is_found(tmp_path: Path, suffix: str, small_tasks: None) -> None:
    config = text_config(tmp_path, split=SPLIT)
    prepared = make(config)
    shard = sorted((prepared.directory / "shards").glob(f"*.{suffix}"))[1]
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(durable.Damaged, match=f"{shard.name}: sha256 differs; .*--repair` .* or delete") as caught:
        make(config)
    assert "\n" not in str(caught.value)
    shard.write_bytes(raw[:-1])
    with pytest.raises(durable.Damaged, match=f"{shard.name}: {len(raw) - 1} bytes, not {len(raw)}"):
        lookup(config, 32)
    shard.unlink()
    with pytest.raises(durable.Damaged, match=f"{shard.name}: missing"):
        make(config)


def test_an_id_beyond_the_vocabulary_is_found_though_the_hash_is_right(tmp_path: Path) -> None:
    config = text_config(tmp_path, split=SPLIT)
    prepared = make(config)
    saying = put_id_beyond(prepared)
    with pytest.raises(durable.Damaged, match=saying):
        make(config)


def test_a_tokenizer_that_does_not_match(tmp_path: Path) -> None:
    config = text_config(tmp_path, split=SPLIT, tokenizer=bpe())
    prepared = make(config)
    byte_tokenizer().save(prepared.directory)
    with pytest.raises(durable.Damaged, match=f"does not match the store, .* {prepared.tokenizer_hash[:12]}"):
        make(config)


def test_ids_of_another_type(tmp_path: Path) -> None:
    config = text_config(tmp_path, split=SPLIT)
    manifest = make(config).directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"<u2"', '"<u4"'))
    with pytest.raises(durable.Damaged, match="have type <u4, not <u2"):
        make(config)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 0}', '{"format": 1}'])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    config = text_config(tmp_path, split=SPLIT)
    (make(config).directory / "manifest.json").write_text(text)
    with pytest.raises(durable.Damaged, match="manifest.json"):
        make(config)


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{}], object))
    with pytest.raises(durable.Damaged, match="cannot be read"):
        from_file(tmp_path / "x.npz")
    assert to_bytes({"a": np.arange(3)}) == to_bytes({"a": np.arange(3)})


class Stop(Exception):
    pass


def test_an_attempt_that_stops_at_any_write_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tasks: None
) -> None:
    config = text_config(tmp_path, random_texts(80), split=SPLIT)
    want_at = make(replace(config, dir=str(tmp_path / "want"))).directory
    want = content(want_at)
    real, budget, writes = durable.atomic_write, [0], [0]

    def write(path: Path, data: str | bytes) -> None:
        if budget[0] == 0:
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"cut off")
            raise Stop
        budget[0] -= 1
        writes[0] += path.suffix == ".bin"
        real(path, data)

    for name, module in list(sys.modules.items()):
        if name.startswith("data.") and hasattr(module, "atomic_write"):
            monkeypatch.setattr(module, "atomic_write", write)
    stops = 0
    while True:
        budget[0] = (4, 6, 8)[stops % 3]
        try:
            make(config)
            break
        except Stop:
            stops += 1
    assert stops > 5 and content(corpora(tmp_path / "out")[0]) == want
    assert writes[0] <= sum(name.endswith(".bin") for name in want) + stops  # finished shards were not made again


def test_changed_sources_leave_no_stale_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tasks: None
) -> None:
    config = text_config(tmp_path, split=SPLIT, tokenizer=TokenizerConfig(level="char"))
    with monkeypatch.context() as patch:
        patch.setattr("data.making.build._remove_other_shards", lambda *_: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            make(config)
    write_files(tmp_path / "a", {"f003.txt": "entirely other: ☃"})
    prepared = make(config)
    assert "☃" in {piece.decode() for piece in prepared.tokenizer.pieces}
    names = {path.stem for path in (prepared.directory / "shards").iterdir()}
    assert names == {shard.name for shard in prepared.store.shards}


def test_a_shard_without_a_sound_record_is_none(tmp_path: Path, small_tasks: None) -> None:
    prepared = make(text_config(tmp_path, split=SPLIT))
    folder, name = prepared.store.folder, prepared.store.shards[0].name
    assert find_shard(folder, name) == prepared.store.shards[0]
    (folder / f"{name}.bin").write_bytes(b"")
    assert find_shard(folder, name) is None
    (folder / f"{name}.json").write_text("{")
    assert find_shard(folder, name) is None and find_shard(folder, "none") is None


SCRIPT = """
import sys, pickle
from data import sources
from data.making import build
from data.making import engines
from data.corpus import prepare
sources.TASK_BYTES, build.SHARD_BYTES = 4000, 1500
engines.POOL_BYTES = int(sys.argv[2])
if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        prepare(pickle.load(file), 32, progress=sys.argv[3] == "True")
"""


def preparing(
    tmp_path: Path, config: DataConfig, pool_bytes: int = 1 << 40, progress: bool = False, **env: str
) -> subprocess.Popen[bytes]:
    import pickle

    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "config.pkl").write_bytes(pickle.dumps(config))
    command = [
        sys.executable,
        str(tmp_path / "script.py"),
        str(tmp_path / "config.pkl"),
        str(pool_bytes),
        str(progress),
    ]
    path = str(Path(durable.__file__).parent)
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path, **env})


def survives_kills(tmp_path: Path, config: DataConfig, kills: int, seed: int) -> None:
    """Kill `kills` attempts at random points, finish, and compare with an undisturbed preparation."""
    undisturbed = replace(config, dir=str(tmp_path / "want"))
    start = time.monotonic()
    assert preparing(tmp_path, undisturbed).wait() == 0
    duration = time.monotonic() - start
    rng = random.Random(seed)
    for _ in range(kills):
        process = preparing(tmp_path, config)
        time.sleep(rng.uniform(0.3, 1.0) * duration)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert preparing(tmp_path, config).wait() == 0
    assert content(corpora(tmp_path / "out")[0]) == content(corpora(tmp_path / "want")[0])


def test_killed_preparations(tmp_path: Path) -> None:
    survives_kills(tmp_path, text_config(tmp_path, random_texts(120), split=SPLIT, tokenizer=bpe()), 3, 0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
def test_many_killed_preparations(tmp_path: Path, seed: int) -> None:
    config = text_config(tmp_path, random_texts(300, seed), split=SPLIT, tokenizer=bpe())
    survives_kills(tmp_path, config, 8, seed)


def test_workers_hash_seeds_and_file_order_do_not_matter(tmp_path: Path) -> None:
    texts = random_texts(60)
    found = []
    for name, env, reverse, pool in (("1", "0", False, 1 << 40), ("2", "1", True, 0)):
        made = dict(sorted(texts.items(), reverse=reverse))
        config = text_config(tmp_path / name, made, split=SPLIT, tokenizer=bpe())
        process = preparing(tmp_path / name, config, pool, PYTHONHASHSEED=env)
        assert process.wait() == 0
        found.append(content(corpora(tmp_path / name / "out")[0]))
    want, got = ({k: v for k, v in files.items() if k.startswith(("shards", "tokenizer"))} for files in found)
    assert want == got and len(want) > 10
    manifests = [json.loads(files["manifest.json"]) for files in found]
    for manifest in manifests:
        del manifest["sources"]  # it names the folder
    assert manifests[0] == manifests[1]


def test_two_projects_with_the_same_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"text": text}) for text in random_texts(30).values()]
    kinds: dict[str, dict[str, Any]] = {
        "text": {"kind": "text", "files": ("text/*",)},
        "jsonl": {"kind": "jsonl", "files": ("lines.jsonl",)},
        "files": {"kind": "hf", "path": "json", "data_files": ("lines.jsonl",)},
        "saved": {"kind": "hf", "path": "saved"},
    }
    configs = {
        name: DataConfig({"a": SourceConfig(**kind)}, dir=str(tmp_path / "out"), tokenizer=BYTE, split=SPLIT)
        for name, kind in kinds.items()
    }
    places = []
    for project in ("one", "two"):
        texts = {f"text/{name}": f"{project} {text}" for name, text in random_texts(30).items()}
        files = {"lines.jsonl": "\n".join(lines), "saved/state.json": "{}"}
        write_files(tmp_path / project, texts | files)
        monkeypatch.chdir(tmp_path / project)
        places.append({name: corpus_directory(config) for name, config in configs.items()})
        assert all(project.encode() in text for text in make(configs["text"]).val_documents())
    assert not set(places[0].values()) & set(places[1].values())
    absolute = replace(configs["text"].sources["a"], files=(str(tmp_path / "two" / "text" / "*"),))
    assert corpus_directory(replace(configs["text"], sources={"a": absolute})) == places[1]["text"]
    described = replace(absolute, license="MIT", origin="https://example.org")
    assert deciding(described) == deciding(absolute) != deciding(replace(absolute, encoding="latin-1"))
    assert corpus_directory(replace(configs["text"], sources={"a": described})) == places[1]["text"]


def test_an_exclusion_depends_on_how_files_are_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, split=SPLIT)
    monkeypatch.chdir(tmp_path)
    spelled = [text_source(Path("a"), exclude=("a/f00*",)), text_source(tmp_path / "a", exclude=("a/f00*",))]
    counts = [make(replace(config, sources={"a": source})).plan.facts["documents"]["train"]["a"] for source in spelled]
    assert counts[0] < counts[1]


def test_a_changed_source_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = text_config(tmp_path, split=SPLIT)
    first = prepare(config, 32, progress=True)
    assert prepare(config, 32).changed() == [] and "changed" not in capsys.readouterr().err
    file = tmp_path / "a" / "f001.txt"
    about = file.stat()

    def edit(text: str) -> None:
        file.write_text(text)
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + 1))

    old = file.read_text()
    edit(old.replace("1", "2"))
    assert prepare(config, 32, progress=False).changed() == ["files of source 'a'"]
    assert not capsys.readouterr().err
    assert prepare(config, 32).fingerprint == first.fingerprint
    assert capsys.readouterr().err.splitlines() == [
        f"the sources have changed since they were read (files of source 'a'): delete {first.directory} to read anew"
    ]
    prepare(config, 16)  # other rows of the same corpus
    assert "have changed" in capsys.readouterr().err
    file.write_text(old)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert first.changed() == []
    write_files(tmp_path / "a", {"new.txt": ""})
    assert first.changed() == ["files of source 'a'"]
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    assert first.changed() == []  # nothing to read anew
    (first.directory / "inputs.json").unlink()
    assert first.changed() == []


def test_other_versions_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceConfig(kind="python", packages=("json", "tqdm", "numpy"), exclude=("[!jt]*/*",))
    prepared = make(DataConfig({"py": source}, dir=str(tmp_path), tokenizer=BYTE, split=SplitConfig(val=0.3)))
    manifest = prepared.store.manifest
    assert prepared.changed() == [] and "unknown" not in manifest["packages"].values()
    python, tqdm = manifest["packages"]["json"], manifest["packages"]["tqdm"]
    manifest["packages"] |= {"json": "3.1", "tqdm": "0.1", "numpy": "unknown"}
    assert prepared.changed() == [f"json 3.1, now {python}", f"tqdm 0.1, now {tqdm}"]


def test_local_files_of_a_dataset_are_looked_at(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jsonl": "\n".join(json.dumps({"text": text}) for text in random_texts(30).values())})
    source = SourceConfig(kind="hf", path="json", data_files=(f"{tmp_path}/*.jsonl",))
    prepared = make(DataConfig({"h": source}, dir=str(tmp_path / "out"), tokenizer=BYTE, split=SPLIT))
    assert prepared.changed() == []
    write_files(tmp_path, {"b.jsonl": ""})
    assert prepared.changed() == ["files of source 'h'"]
    write_files(tmp_path / "saved", {"state.json": "{}"})
    saved = replace(prepared.config, sources={"h": SourceConfig(kind="hf", path=str(tmp_path / "saved"))})
    before = file_digests(saved)
    assert before and file_digests(saved) == before
    write_files(tmp_path / "saved", {"state.json": "{ }"})
    assert file_digests(saved) != before


def test_a_bad_file_found_by_a_worker_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"".join(json.dumps({"text": f"line {i}"}).encode() + b"\n" for i in range(999))
    write_files(tmp_path, {"a.jsonl": lines, "b.jsonl.gz": gzip.compress(lines)[:-9]})
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/*.jsonl*",))
    monkeypatch.setattr(sources, "TASK_BYTES", 4000)
    monkeypatch.setattr("data.making.engines.POOL_BYTES", 0)
    with pytest.raises(DataError, match="b.jsonl.gz: cannot be read to its end") as caught:
        make(DataConfig({"j": source}, dir=str(tmp_path / "out"), tokenizer=BYTE, split=SPLIT))
    code, (line,) = explain(caught.value) or (1, ["a bug"])
    assert code == 2 and "b.jsonl.gz" in line


def test_waiting_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = text_config(tmp_path, split=SPLIT)
    directory = corpus_directory(config)
    directory.parent.mkdir()
    with durable.file_lock(directory.parent / f".{directory.name}.lock", wait=False):
        process = preparing(tmp_path, config, progress=True)
        deadline = time.monotonic() + 20
        said = ""
        while "\n" not in said and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            said += capfd.readouterr().err
        assert process.poll() is None and not directory.joinpath("manifest.json").exists()
    assert process.wait() == 0
    lines = (said + capfd.readouterr().err).splitlines()
    host = socket.gethostname()
    want = f"waiting for process {os.getpid()} on {host}, which prepares the same corpus"
    assert [line for line in lines if "waiting" in line] == [want]


def test_two_at_once(tmp_path: Path) -> None:
    config = text_config(tmp_path, random_texts(80), split=SPLIT, tokenizer=bpe())
    processes = [preparing(tmp_path, config) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    prepared = lookup(config, 32)
    assert prepared is not None
    prepared.store.verify()


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    config = text_config(tmp_path, random_texts(150, longest=200), split=SPLIT)
    process = preparing(tmp_path, config, 0)
    deadline = time.monotonic() + 20
    children: set[int] = set()
    while not children and process.poll() is None and time.monotonic() < deadline:
        children = set(_children(process.pid))
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert children
    while time.monotonic() < deadline and any(_alive(pid) for pid in children):
        time.sleep(0.05)
    assert not [pid for pid in children if _alive(pid)]


def _children(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        if int(fields.split()[1]) == pid:
            yield int(name.split()[0])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_opening_imports_little(tmp_path: Path) -> None:
    import pickle

    config = text_config(tmp_path, split=SPLIT, tokenizer=bpe())
    make(config)
    (tmp_path / "config.pkl").write_bytes(pickle.dumps(config))
    heavy = ("torch", "datasets", "tiktoken", "tokenizers", "tqdm", "transformers")
    code = (
        "import sys, pickle; import data; from data import prepare, DataConfig, SourceConfig\n"
        f"p = prepare(pickle.load(open({str(tmp_path / 'config.pkl')!r}, 'rb')), 32); p.summary(); p.fingerprint\n"
        "p.tokenizer.decode([1]); sum(map(len, p.val_documents()))\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# Bad input: one line, what is wrong, what would work


def refused(config: DataConfig, message: str, context: int = 32) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make(config, context)
    assert "\n" not in str(caught.value)


def test_bad_sources(tmp_path: Path) -> None:
    good = text_config(tmp_path, split=SPLIT)
    text = good.sources["a"]
    refused(replace(good, sources={}), "name at least one source")
    refused(replace(good, sources={"a/b": text}), "name of a source is 1 to 64 letters.* not 'a/b'")
    refused(replace(good, sources={"_a": text}), "the first a letter or digit, not '_a'")
    refused(replace(good, sources={"a": SourceConfig(kind="text")}), "data.sources.a: kind text needs files")
    refused(replace(good, sources={"a": SourceConfig(kind="hf")}), "kind hf needs path")
    refused(replace(good, sources={"a": SourceConfig(kind="python")}), "kind python needs packages")
    refused(replace(good, sources={"a": SourceConfig(kind="parquet")}), "kind parquet needs files")
    refused(replace(good, sources={"a": SourceConfig(kind="xml")}), "is 'xml'; it may be python, hf, code")  # type: ignore[arg-type]
    refused(replace(good, sources={"a": replace(text, files=("gone/*",))}), "source 'a': no file matches 'gone/\\*'")
    gone = replace(text, files=("gone/*",), origin="https://example.org/gone")
    refused(replace(good, sources={"a": gone}), "; it is to be had at https://example.org/gone$")
    refused(replace(good, split=SplitConfig(sources={"v": SourceConfig(kind="jsonl")})), "data.split.sources.v: kind")
    missing = SourceConfig(kind="python", packages=("nosuchpackage",))
    refused(replace(good, sources={"a": missing}), "'nosuchpackage' is not installed")
    refused(good, "context is 0", context=0)
    refused(replace(good, mixture={"b": 1.0}), "must name every source once or be empty; look at a, b")
    refused(replace(good, mixture={"a": 1.0, "b": 1.0}), "look at b")
    assert corpora(tmp_path / "out") == [] or not lookup(good, 32)


def test_bad_tokenizers(tmp_path: Path) -> None:
    good = text_config(tmp_path, split=SPLIT)
    refused(replace(good, tokenizer=TokenizerConfig()), "exactly one of train, file, level, tiktoken; given: none")
    refused(replace(good, tokenizer=replace(bpe(), level="byte")), "given: train, level")
    refused(replace(good, tokenizer=TokenizerConfig(file=str(tmp_path / "t.json"))), "no file .*t.json")
    (tmp_path / "t.json").write_text("{}")
    refused(replace(good, tokenizer=TokenizerConfig(file=str(tmp_path / "t.json"))), "t.json: not a tokenizer.json")


def test_a_tokenizer_file_is_named_by_its_content(tmp_path: Path) -> None:
    byte_tokenizer().save(tmp_path)
    good = text_config(tmp_path, split=SPLIT, tokenizer=TokenizerConfig(file=str(tmp_path / "tokenizer.json")))
    prepared = make(good)
    assert prepared.tokenizer_hash == byte_tokenizer().sha256
    (tmp_path / "moved").mkdir()
    byte_tokenizer().save(tmp_path / "moved")
    moved = replace(good, tokenizer=TokenizerConfig(file=str(tmp_path / "moved" / "tokenizer.json")))
    assert corpus_directory(moved) == prepared.directory


def test_a_corpus_without_text(tmp_path: Path) -> None:
    refused(text_config(tmp_path / "1", {"a.txt": ""}, split=SPLIT), "no text in a")
    refused(text_config(tmp_path / "2", {"a.txt": "\n"}, split=SPLIT), "no document is left")


def test_too_many_unreadable_documents(tmp_path: Path) -> None:
    texts: dict[str, str | bytes] = {**random_texts(18)}
    config = text_config(tmp_path, texts | {"x1.txt": b"\xff", "x2.txt": b"\xfe"}, split=SPLIT)
    refused(config, r"2 of 20 documents of 'a' are unreadable, the first: x1.txt: not UTF-8 at byte 0; .* above 0.1 ")
    prepared = make(replace(config, max_bad_fraction=0.1))
    assert prepared.plan.facts["dropped"] == {"a": {"undecodable": 2}}
    refused(config, f"mend them and delete {prepared.directory}")
    lines = "\n".join([json.dumps({"text": f"good {i}"}) for i in range(8)] + ["broken", '{"text": 1}'])
    write_files(tmp_path, {"l.jsonl": lines})
    jsonl = {"j": SourceConfig(kind="jsonl", files=(str(tmp_path / "l.jsonl"),))}
    config = replace(config, sources=jsonl)
    refused(config, "2 of 10 documents of 'j' are unreadable, the first: l.jsonl@.*: not JSON")
    prepared = make(replace(config, max_bad_fraction=0.5, split=SplitConfig(val=0.5)))
    assert any("2 unparsable" in line for line in prepared.summary())
    told = [(identity.partition("@")[0], source, reason) for identity, source, reason in dropped_documents(prepared)]
    assert told == [("l.jsonl", "j", "unparsable: not JSON"), ("l.jsonl", "j", "unparsable: no text in field 'text'")]
    named = {"j": replace(jsonl["j"], id="id")}
    write_files(tmp_path, {"l.jsonl": '{"id": "a\\n\\u001b[31m", "text": 1}\n' + lines})
    refused(replace(config, sources=named), r"the first: a\\n\\x1b\[31m: no text in field 'text'")


def test_a_source_that_is_lost_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"text": f"good {i} " * 9, "lang": "en"}) for i in range(400)]
    write_files(tmp_path, {"l.jsonl": "\n".join(lines), "s.jsonl": '{"txt": "a"}', "t.jsonl": '{"text": "short"}'})
    sources = {name: SourceConfig(kind="jsonl", files=(f"{tmp_path}/{name}.jsonl",)) for name in "lst"}
    config = text_config(tmp_path, {}, sources=sources, split=SPLIT)
    refused(config, "1 of 1 documents of 's' are unreadable")  # though it is one of hundreds
    sources = {"l": replace(sources["l"], labels={"language": "lang", "site": "stie"}), "t": sources["t"]}
    config = replace(config, sources=sources, clean=CleanConfig(keep={"chars": Bounds(min=6)}))
    prepared = prepare(config, 32)
    assert prepared.doubts() == [
        "nothing of source 't' is trained on: 1 chars < 6",
        "no document of source 'l' has the label 'site': look at its field 'stie'",
    ]
    told = capsys.readouterr().err
    assert all(f"warning: {line}\n" in told for line in prepared.doubts())


def test_white_space_of_any_kind_is_no_text(tmp_path: Path) -> None:
    texts = {f"{i}.txt": space for i, space in enumerate(("", " \n\t", "\u3000\u00a0\u2028", "\u2003" * 9))}
    prepared = make(text_config(tmp_path, random_texts(18) | texts, split=SPLIT))
    assert prepared.plan.facts["dropped"] == {"a": {"empty": 4}}


def test_a_char_tokenizer_has_every_character_that_redaction_makes(tmp_path: Path) -> None:
    said = [{"role": "version", "content": f"8.8.8.8 {'abc'[i % 3] * i}"} for i in range(30)]
    write_files(tmp_path, {"c.jsonl": "\n".join(json.dumps({"m": [one]}) for one in said)})
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/c.jsonl",), messages="m", train_on=("version",))
    config = text_config(tmp_path, {}, sources={"c": source}, redact=("ip",), tokenizer=TokenizerConfig(level="char"))
    assert make(replace(config, split=SplitConfig(val=0.5))).store.manifest["redacted"] == 30


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    config = text_config(tmp_path, split=SPLIT)
    (tmp_path / "file").write_text("")
    refused(replace(config, dir=str(tmp_path / "file")), "data.dir: cannot make .*: Not a directory")
    refused(replace(config, dir=str(tmp_path / "file" / "deeper")), "data.dir: cannot make .*: Not a directory")
    assert (tmp_path / "file").read_text() == ""


def test_a_full_disk_is_seen_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, {"a.txt": "x" * (3 << 20), "b.txt": "y"}, split=TAIL)

    class Usage:
        free = 4 << 20

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    refused(config, "needs about 6 MiB more and has 4 MiB free")
    directory = corpora(tmp_path / "out")[0]
    assert Store.open(directory) is None
    write_files(directory / "shards", {"x.bin": bytes(3 << 20), "x.npz": b"", "uncommitted.bin": bytes(3 << 20)})
    refused(config, "needs about 6 MiB more")
    write_files(directory / "shards", {"x.json": "{}"})
    Usage.free = 4 << 20
    assert make(config).train.rows  # half of it is there, so what is free is enough


def test_space_for_a_trained_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_config(tmp_path, {f"{i}.txt": f"{i} " + "word " * (200 << 10) for i in range(4)}, split=TAIL)

    class Usage:
        free = 3 << 20  # four MiB of text, two bytes for three

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    assert make(replace(config, tokenizer=bpe())).train.rows


def test_versions_are_recorded(tmp_path: Path) -> None:
    source = SourceConfig(kind="python", packages=("stdlib", "tqdm"), exclude=("[!tj]*/*", "[!tj]*"))
    write_files(tmp_path / "v", {"v.txt": "held out"})
    split = SplitConfig(sources={"v": text_source(tmp_path / "v")})
    prepared = make(DataConfig({"py": source}, dir=str(tmp_path), tokenizer=BYTE, split=split))
    assert set(prepared.store.manifest["packages"]) == {"stdlib", "tqdm"}
    assert prepared.store.manifest["python"] == prepared.store.manifest["packages"]["stdlib"]


def test_conversations_are_equal_when_the_same_was_said_by_the_same(tmp_path: Path) -> None:
    turns = (
        [("user", "ab"), ("assistant", "c")],
        [("user", "a"), ("assistant", "bc")],
        [("system", "ab"), ("user", "c")],
    )
    said = [[{"role": role, "content": text} for role, text in each] for each in (*turns, turns[0])]
    write_files(tmp_path, {"c.jsonl": "\n".join(json.dumps({"m": each}) for each in said)})
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/c.jsonl",), messages="m", train_on=("user", "assistant"))
    prepared = make(text_config(tmp_path, {}, sources={"c": source}, split=SplitConfig(val=0.5)))
    assert prepared.plan.facts["dropped"] == {"c": {"duplicate": 1}}


def test_a_file_edited_between_attempts_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TASK_BYTES", 100)
    config = text_config(tmp_path, random_texts(20), split=SPLIT)
    assert isinstance(prepare_slice(config, 32, 0, 2, progress=False), list)
    path = tmp_path / "a" / "f000.txt"
    before, about = path.read_bytes(), path.stat()
    path.write_bytes(b"X" * len(before))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    store = make(config).store
    stored = b"".join(store.tokens(shard).astype(np.uint8).tobytes() for shard in range(len(store.shards)))
    assert b"X" * len(before) in stored and before not in stored


def test_a_char_tokenizer_reads_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TASK_BYTES", 100)
    config = text_config(tmp_path, random_texts(20) | {"z.txt": "\u03c9"}, tokenizer=TokenizerConfig(level="char"))
    assert make(replace(config, split=SPLIT)).tokenizer.encode("\u03c9")
