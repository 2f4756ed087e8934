"""Where and how often a corpus is encoded never shows: engines, slices, attempts that were stopped, and repairs."""

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import durable
from configs import explain
from data import sources, store
from data.config import DataConfig, SplitConfig
from data.corpus import prepare, prepare_slice, repair
from data.errors import DataError
from data.making import attempt, build, encode, engines, verified
from data.making.engines import Engine, run_pool
from data.making.place import corpus_directory
from data.prepared import Prepared
from scripts import prepare as script

from .helpers import bpe, content, random_texts, text_config, write_files

SPLIT = SplitConfig(val=0.2)
ROOT = Path(durable.__file__).parent


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TASK_BYTES", 2000)
    monkeypatch.setattr(build, "SHARD_BYTES", 1500)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return text_config(tmp_path, random_texts(60), split=SPLIT, tokenizer=bpe())


def make(config: DataConfig, **kwargs: Any) -> Prepared:
    return prepare(config, 32, progress=False, **kwargs)


def part(config: DataConfig, index: int, count: int) -> Prepared | list[str]:
    return prepare_slice(config, 32, index, count, progress=False)


def elsewhere(config: DataConfig, name: str) -> DataConfig:
    return replace(config, dir=str(Path(config.dir).with_name(name)))


def want(config: DataConfig) -> dict[str, bytes]:
    return content(make(replace(elsewhere(config, "want"), workers=1)).directory)


def test_every_engine_writes_the_same(config: DataConfig) -> None:
    same = want(config)
    assert len(same) > 20 and not any(name.startswith((attempt.TASKS, attempt.ATTEMPT)) for name in same)
    assert content(make(replace(elsewhere(config, "two"), workers=2)).directory) == same
    slices = elsewhere(config, "slices")
    first = part(slices, 2, 3)
    assert isinstance(first, list) and len(first) > 3 and "train-a-00000" in first
    second = part(slices, 0, 3)
    assert isinstance(second, list) and set(second) < set(first)
    last = part(slices, 1, 3)
    assert isinstance(last, Prepared) and content(last.directory) == same
    again = part(slices, 0, 3)  # nothing is left to do
    assert isinstance(again, Prepared) and content(again.directory) == same


def test_a_lost_slice_is_made_up_for(config: DataConfig, reads: list[str]) -> None:
    same = want(config)
    for index in (0, 2):
        assert isinstance(part(config, index, 3), list)
    reads.clear()
    assert content(make(config).directory) == same
    assert reads and all(int(label[-5:]) % 3 == 1 for label in reads)


@pytest.mark.parametrize("numbers", [(3, 3), (-1, 3), (0, 0)])
def test_slices_that_do_not_exist(config: DataConfig, numbers: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="slices of"):
        part(config, *numbers)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the tasks that are encoded in this process."""
    found: list[str] = []
    real = encode.read

    def read(task: sources.Task) -> Iterator[Any]:
        found.append(task.label)
        return real(task)

    monkeypatch.setattr(encode, "read", read)
    return found


def stopped(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An attempt that did everything but commit."""
    with monkeypatch.context() as patch:
        patch.setattr(build.Build, "commit", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(config)
    return corpus_directory(config)


def test_what_is_done_is_not_read_again(config: DataConfig, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> None:
    same = want(config)
    directory = stopped(config, monkeypatch)
    damaged = sorted((directory / "shards").glob("*.bin"))[0]
    damaged.write_bytes(bytes(len(damaged.read_bytes())))  # the same size
    records = sorted((directory / attempt.TASKS).iterdir())
    records[-1].write_text("{")
    lost = [damaged.name.rsplit("-", 2)[0], records[-1].name.rsplit("-", 1)[0]]
    reads.clear()
    with monkeypatch.context() as patch:
        patch.setattr(build, "make_tokenizer", None)  # it is there
        assert content(make(config).directory) == same
    assert reads == lost


def test_nothing_is_read_when_all_is_done(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    same = want(config)
    stopped(config, monkeypatch)
    for name in ("make_tokenizer", "verification_sample", "run_tasks"):
        monkeypatch.setattr(build, name, None)
    assert content(make(config).directory) == same


def test_other_cleaning_needs_no_other_tokenizer(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(config, monkeypatch)
    monkeypatch.setattr(build, "make_tokenizer", None)
    assert make(replace(config, split=SplitConfig(val=0.4), workers=1)).train.rows


def test_a_changed_input_is_read_again(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = stopped(config, monkeypatch)
    old = (directory / "tokenizer.json").read_bytes()
    write_files(Path(config.dir).with_name("a"), {"f003.txt": "zzzz zzzz zzzz " * 90})
    assert content(make(config).directory) == want(config)
    assert (directory / "tokenizer.json").read_bytes() != old


def test_a_tokenizer_made_by_another_is_not_used(config: DataConfig) -> None:
    directory = corpus_directory(config)
    (directory / "shards").mkdir(parents=True)
    begun = build.Build(config, directory, False)
    write_files(Path(config.dir).with_name("a"), {"f003.txt": "zzzz zzzz zzzz " * 90})
    other = build.Build(config, directory, False)
    assert begun.tokenizer.sha256 != other.tokenizer.sha256
    with pytest.raises(DataError, match="tokenizer.json was made again, since sources have changed"):
        begun.encode([0], engines.LOCAL)


def test_rounds_hold_every_task_once() -> None:
    sizes = [5, 3, 9, 0, 1, 7]
    rounds = list(engines._rounds(sizes, [2, 5, 0, 1, 4, 3], 10))
    assert rounds == [[2], [5], [0, 1, 4, 3]]
    assert list(engines._rounds([], [], 10)) == []


def test_workers_are_light(tmp_path: Path) -> None:
    assert sorted(run_pool(_write_modules, lambda: [(str(tmp_path / str(i)),) for i in range(6)], 3)) == [*range(6)]
    found = [json.loads((tmp_path / str(i)).read_text()) for i in range(6)]
    here = [about for about in found if about["pid"] == os.getpid()]
    assert 0 < len(here) < 6, "this process takes part, and is not alone"
    for about in found:
        light = about["threads"] == ["false", "1"] and not {"torch", "datasets"} & set(about["modules"])
        assert light or about in here


def _write_modules(path: str) -> None:
    threads = [os.environ.get("TOKENIZERS_PARALLELISM"), os.environ.get("RAYON_NUM_THREADS")]
    Path(path).write_text(json.dumps({"pid": os.getpid(), "threads": threads, "modules": [*sys.modules]}))
    time.sleep(1)  # long enough for the others to start


def _end_worker() -> None:
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told() -> None:
    with pytest.raises(RuntimeError, match="a worker died while encoding, perhaps out of memory; the same command"):
        list(run_pool(_end_worker, lambda: [(), (), ()], 2))


def test_ray_is_an_extra(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"--engine ray needs the ray package: pip install -e '.\[cluster\]'"):
        make(config, engine=Engine("ray"))


# Damage


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def shard_files(prepared: Prepared, suffix: str) -> list[Path]:
    return sorted((prepared.directory / "shards").glob(f"*.{suffix}"))


def test_every_damaged_file_is_named(config: DataConfig) -> None:
    prepared = make(config)
    assert prepared.store.damages() == []
    bins, columns = shard_files(prepared, "bin"), shard_files(prepared, "npz")
    flip(bins[0])
    size = bins[1].stat().st_size
    os.truncate(bins[1], size - 2)
    columns[2].unlink()
    flip(prepared.directory / "tokenizer.json")
    (prepared.directory / "shards" / "unknown").write_text("")
    found = prepared.store.damages()
    kinds = [(bins[0], "sha256 differs"), (bins[1], f"{size - 2} bytes, not {size}"), (columns[2], "missing")]
    assert found[1:] == [f"{path}: {what}" for path, what in kinds]
    assert found[0].startswith(f"{prepared.directory / 'tokenizer.json'}: sha256 ")
    with pytest.raises(durable.Damaged) as caught:
        prepared.store.verify()
    assert all(line in str(caught.value) for line in found) and "--repair" in str(caught.value)
    assert len(prepared.store.damages(content=False)) == 3  # the tokenizer, and two sizes


def test_repair_makes_the_same_again(config: DataConfig, reads: list[str]) -> None:
    prepared = make(config)
    same = content(prepared.directory)
    assert repair(config, 32, progress=False) == []
    bins = shard_files(prepared, "bin")
    flip(bins[0])
    bins[-1].unlink()
    flip(prepared.directory / "tokenizer.json")
    reads.clear()
    assert set(repair(config, 32, progress=False)) == {"tokenizer.json", bins[0].stem, bins[-1].stem}
    assert content(prepared.directory) == same and len(reads) == 2


def test_repair_refuses_other_texts(config: DataConfig) -> None:
    prepared = make(config)
    bins = shard_files(prepared, "bin")
    flip(bins[0])
    flip(bins[-1])
    damaged = content(prepared.directory)
    write_files(Path(config.dir).with_name("a"), {"f000.txt": "quite another text"})
    with pytest.raises(DataError, match=f"{bins[0].stem} cannot be mended: the sources have changed") as caught:
        repair(config, 32, progress=False)
    assert bins[-1].stem not in str(caught.value)
    name = f"shards/{bins[-1].name}"
    now = content(prepared.directory)
    assert now.pop(name) != damaged.pop(name) and now == damaged


def test_repair_of_nothing(config: DataConfig) -> None:
    assert repair(config, 32, progress=False) == []


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found: list[Path] = []

    def sha256(path: Path) -> str:
        found.append(path)
        return durable.sha256(path)

    monkeypatch.setattr(store, "sha256", sha256)
    return found


def test_untouched_files_are_hashed_once(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, hashed: list[Path]
) -> None:
    monkeypatch.setattr(verified, "WORTH", 0)
    monkeypatch.setattr(verified, "_SETTLED", -(10**18))  # files as young as these count as settled
    prepared = make(config)
    same = content(prepared.directory)
    hashed.clear()
    make(config)
    assert [path.name for path in hashed] == ["tokenizer.json"]
    assert prepared.store.damages() == [] and len(hashed) > 10  # a verification looks at everything
    shard = shard_files(prepared, "bin")[0]
    about = shard.stat()
    flip(shard)
    os.utime(shard, ns=(about.st_atime_ns, about.st_mtime_ns))
    with pytest.raises(durable.Damaged, match=f"{shard.name}: sha256 differs"):
        make(config)
    flip(shard)
    make(config)
    assert content(prepared.directory) == same


def test_young_files_are_hashed_again(config: DataConfig, monkeypatch: pytest.MonkeyPatch, hashed: list[Path]) -> None:
    monkeypatch.setattr(verified, "WORTH", 0)
    make(config)
    hashed.clear()
    make(config)
    assert len(hashed) > 10


# A full disk


def test_a_disk_that_fills_up(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    same = want(config)
    room = [20]
    real = os.fsync

    def fsync(fd: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fsync)
        with pytest.raises(OSError) as caught:
            make(config)
    directory = corpus_directory(config)
    code, (line,) = explain(caught.value) or (0, [""])
    assert code == 1 and line.startswith(str(directory)) and line.endswith("No space left on device")
    assert not (directory / "manifest.json").exists()
    assert content(make(config).directory) == same


IN_A_NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-ec")


@pytest.mark.skipif(
    subprocess.run([*IN_A_NAMESPACE, "mount -t tmpfs tmpfs /mnt"], capture_output=True).returncode != 0,
    reason="no disk can be mounted here",
)
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A disk of 300 kB refuses 200 kB of text before the start, and, where more is written than was thought, fills up;
    with more room the same command ends with the bytes of one that always had it."""
    disk, text = tmp_path / "disk", "A line of text that is not long.\n"
    disk.mkdir()
    write_files(tmp_path, {f"in/{i:03d}.txt": f"{i}\n{text * 30}" for i in range(200)})
    (tmp_path / "c.yaml").write_text(
        "run: {name: x}\ntrain: {steps: 1}\n"
        f"data: {{sources: {{a: {{kind: text, files: ['{tmp_path}/in/*']}}}}, tokenizer: byte, split: {{val: 0.1}}}}\n"
    )
    prepare = f"{sys.executable} -m scripts.prepare {tmp_path}/c.yaml data.dir="
    told = f"mount -t tmpfs -o size=300k tmpfs {disk}; {prepare}{disk} || echo exit $?; "
    unseen = "import shutil, scripts.prepare as p; shutil.disk_usage = lambda _: type('', (), {'free': 1 << 40}); "
    argv = [f"{tmp_path}/c.yaml", f"data.dir={disk}"]
    fills = f'{sys.executable} -c "{unseen} raise SystemExit(p.main({argv}))"'
    ends = f"mount -o remount,size=20m {disk}; {prepare}{disk}; cp -r {disk}/. {tmp_path}/saved"
    done = subprocess.run(
        [*IN_A_NAMESPACE, f"{told}{fills} || echo exit $?; {ends}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exit 2") == 1 and "MiB free" in done.stderr
    assert done.stdout.count("exit 1\n") == 1 and "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    other = subprocess.run(f"{prepare}{tmp_path}/want", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 0, other.stderr
    (saved,), (want,) = (list(place.glob("[0-9a-f]*")) for place in (tmp_path / "saved", tmp_path / "want"))
    assert content(saved) == content(want)


# Kills


SCRIPT = """
import pickle, sys
from data import sources
from data.making import build
from data.corpus import prepare, prepare_slice
sources.TASK_BYTES, build.SHARD_BYTES = 2000, 1500
if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        config = pickle.load(file)
    if sys.argv[2:]:
        prepare_slice(config, 32, *map(int, sys.argv[2:]), progress=False)
    else:
        prepare(config, 32, progress=False)
"""


def program(tmp_path: Path, config: DataConfig) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of a process that prepares a corpus."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "config.pkl").write_bytes(pickle.dumps(config))
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "config.pkl")]
    return command, {**os.environ, "PYTHONPATH": str(ROOT)}


def test_slices_at_once(tmp_path: Path, config: DataConfig) -> None:
    command, environment = program(tmp_path, config)
    arguments = [["0", "3"], ["1", "3"], ["1", "3"], ["2", "3"], []]  # one twice, and one process for all
    processes = [subprocess.Popen([*command, *some], env=environment) for some in arguments]
    assert [process.wait(60) for process in processes] == [0] * 5
    assert content(corpus_directory(config)) == want(config)


def survives_kills(tmp_path: Path, config: DataConfig, kills: Sequence[float], victim: Callable[[int], int]) -> None:
    """Kill a process of an attempt once the given share of the tasks is done, again and again, then finish."""
    same = want(config)
    command, environment = program(tmp_path, config)
    directory, tasks = corpus_directory(config), len(build.tasks_of(config))
    for share in kills:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            done = len(list((directory / attempt.TASKS).glob("*.json")))
            if done >= share * tasks:
                os.kill(victim(process.pid), signal.SIGKILL)
                break
            time.sleep(0.002)
        process.wait(60)
    assert subprocess.run(command, env=environment, timeout=120).returncode == 0
    assert content(directory) == same


def a_worker(pid: int) -> int:
    """A process that this one has started to work, or itself while there is none."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in path.read_text().split()] if path.exists() else []
    return children[-1] if children else pid


@pytest.mark.parametrize("victim", [int, a_worker])
def test_killed_after_some_tasks(tmp_path: Path, config: DataConfig, victim: Callable[[int], int]) -> None:
    workers = 1 if victim is int else 2
    survives_kills(tmp_path, replace(config, workers=workers), [0.3, 0.6] if workers == 1 else [0.5], victim)


@pytest.mark.soak
@pytest.mark.parametrize("victim", [int, a_worker])
def test_killed_twenty_times(tmp_path: Path, victim: Callable[[int], int]) -> None:
    config = text_config(tmp_path, random_texts(900), split=SPLIT, tokenizer=bpe(), workers=2)
    survives_kills(tmp_path, config, [i / 22 for i in range(20)], victim)


# The command


TINY = "configs/tiny.yaml"


def run(*argv: str) -> int:
    return script.main([TINY, *argv])


def test_the_command_prepares_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sources, "TASK_BYTES", 200_000)
    small = [f"data.dir={tmp_path}", "data.sources.stdlib.packages=[json, tqdm]", "data.tokenizer=byte"]
    assert run(*small, "--slice", "0/2") == 0
    assert capsys.readouterr().out.startswith("slice 0/2 is done; 1 tasks of others are not: train-stdlib-00001")
    assert run(*small, "--slice=1/2") == 0 and "prepared " in capsys.readouterr().out
    assert run(*small, "--repair") == 0 and "nothing is damaged" in capsys.readouterr().out
    shard = next(tmp_path.glob("*/shards/*.bin"))
    flip(shard)
    assert run(*small) == 3 and "--repair" in capsys.readouterr().err
    assert run(*small, "--repair") == 0 and f"mended {shard.stem}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--slice", "1"], "--slice is I/N, such as 0/4, not '1'"),
        (["--slice", "4/4", "data.tokenizer=byte"], "slice 4/4: slices of 4 are 0/4 to 3/4"),
        (["--engine", "spark"], "--engine is local or ray, not 'spark'"),
        (["--slice", "0/2", "--engine", "ray"], "--slice and --engine ray both share out the tasks"),
        (["--address", "h:1"], "--address is that of a Ray cluster: add --engine ray"),
    ],
)
def test_flags_that_make_no_sense(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
