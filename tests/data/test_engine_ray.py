"""Ray writes what one process writes, also when a machine is lost: long, so run by `make soak`."""

import gzip
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data import sources
from data.config import DataConfig, SourceConfig
from data.corpus import prepare
from data.errors import DataError
from data.making import engine_ray
from data.making.build import tasks_of
from data.making.engines import Engine
from data.making.place import corpus_directory

from .helpers import BYTE, bpe, content, random_texts, text_config, write_files

pytestmark = pytest.mark.soak
STORE = 80 << 20


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token to the home directory
    pytest.importorskip("ray")
    monkeypatch.setattr(sources, "TASK_BYTES", 2000)
    return text_config(tmp_path, random_texts(120), tokenizer=bpe())


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 30
    while (left := _ray_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def _ray_processes() -> list[str]:
    """Command lines of Ray's processes that descend from this one."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = int(stat.parent.name), stat.read_text().rsplit(")", 1)[1].split()
            parents[pid] = int(fields[1])
            names[pid] = (stat.parent / "cmdline").read_text().replace("\0", " ") if fields[0] != "Z" else ""
        except OSError:
            continue
    found = []
    for pid, name in names.items():
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and any(word in name for word in ("raylet", "gcs_server", "ray::")):
            found.append(name)
    return found


def want(config: DataConfig, tmp_path: Path) -> dict[str, bytes]:
    local = replace(config, dir=str(tmp_path / "want"), workers=1)
    return content(prepare(local, 32, progress=False).directory)


def test_a_cluster_of_this_machine(config: DataConfig, tmp_path: Path) -> None:
    made = prepare(config, 32, progress=False, engine=Engine("ray"))
    assert content(made.directory) == want(config, tmp_path)


def test_bad_input_comes_out_as_one_line(config: DataConfig, tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "line %d"}\n' % i for i in range(9999))
    write_files(tmp_path, {"bad.jsonl.gz": gzip.compress(lines)[:-9]})
    source = SourceConfig(kind="jsonl", files=(f"{tmp_path}/bad.jsonl.gz",))
    bad = replace(config, sources={**config.sources, "z": source}, tokenizer=BYTE)
    with pytest.raises(DataError, match="bad.jsonl.gz") as caught:
        prepare(bad, 32, progress=False, engine=Engine("ray"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no Ray cluster at 127.0.0.1:1"):
        list(engine_ray.run(print, [()], "127.0.0.1:1"))


def test_a_task_that_fails_twice(config: DataConfig, tmp_path: Path) -> None:
    def work(kind: str, folder: str) -> None:
        tries = os.path.join(folder, kind)
        with open(tries, "a") as file:
            file.write("x")
        if os.path.getsize(tries) < 3:
            if kind == "dies":
                os._exit(1)
            raise OSError(5, "the file system was away")

    calls = [(kind, str(tmp_path)) for kind in ("dies", "fails")]
    assert sorted(engine_ray.run(work, calls, None)) == [0, 1]
    assert [(tmp_path / kind).read_text() for kind in ("dies", "fails")] == ["xxx", "xxx"]


def test_a_node_is_lost(config: DataConfig, tmp_path: Path) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    write_files(tmp_path / "a", random_texts(2000, seed=1))
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    done: list[int] = []
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
        cluster.wait_for_nodes()

        def lose_one() -> None:
            tasks = corpus_directory(config) / "tasks"
            while not tasks.is_dir() or len(done) < 20:
                time.sleep(0.01)
                done[:] = [1 for _ in tasks.glob("*.json")] if tasks.is_dir() else []
            cluster.remove_node(nodes[0], allow_graceful=False)

        watch = threading.Thread(target=lose_one, daemon=True)
        watch.start()
        made = prepare(config, 32, progress=False, engine=Engine("ray", cluster.address))
        watch.join(30)
        assert not watch.is_alive() and 20 <= len(done) < len(tasks_of(config)) - 20
        assert [node.is_alive() for node in nodes] == [False, True] if hasattr(nodes[0], "is_alive") else True
    finally:
        cluster.shutdown()
    assert content(made.directory) == want(config, tmp_path)
