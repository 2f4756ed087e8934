"""Checkpoints on disk: whole or not there, and every damage is seen."""

import errno
import json
import os
import random
import subprocess
import sys

import pytest

import durable
from durable import Damaged, Locked


def make(run, step, **state):
    tmp = run / "checkpoints" / f"step_{step:08d}.tmp"
    tmp.mkdir(parents=True)
    (tmp / "weights").write_bytes(bytes(range(200)))
    (tmp / "empty").write_bytes(b"")
    final = tmp.with_suffix("")
    durable.commit_directory(tmp, final, {"step": step, **state})
    return final


def test_a_committed_directory_verifies_and_gives_its_state_back(tmp_path):
    path = make(tmp_path, 5, tokens=12, nested={"a": [1.5, None]})
    state = durable.verify(path)
    assert state["tokens"] == 12 and state["nested"] == {"a": [1.5, None]}
    assert not list(path.parent.glob("*.tmp"))


def test_committing_a_step_again_replaces_it(tmp_path):
    make(tmp_path, 5, tokens=1)
    path = make(tmp_path, 5, tokens=2)
    assert durable.verify(path)["tokens"] == 2
    assert [p.name for p in path.parent.iterdir()] == ["step_00000005"]


def test_every_changed_byte_of_every_file_is_seen(tmp_path):
    path = make(tmp_path, 5, tokens=12, loss=0.12345)
    make(tmp_path, 4)
    rng = random.Random(0)
    for name in ("weights", "state.json"):
        whole = (path / name).read_bytes()
        for at in range(len(whole)):  # also white space, and line ends
            changed = bytearray(whole)
            changed[at] = rng.choice([changed[at] ^ 1 << rng.randrange(8), *({10, 13} - {changed[at]})])
            (path / name).write_bytes(changed)
            found, reasons = durable.newest_checkpoint(tmp_path)
            assert found is not None and durable.step_of(found) == 4 and str(path) in reasons[0], (name, at)
        (path / name).write_bytes(whole)
    durable.verify(path)


@pytest.mark.parametrize("name", ["weights", "state.json"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_every_truncation_is_seen(tmp_path, name, share):
    path = make(tmp_path, 5)
    os.truncate(path / name, int((path / name).stat().st_size * share))
    with pytest.raises(Damaged, match=name):
        durable.verify(path)


def test_without_contents_only_names_and_sizes_are_compared(tmp_path):
    path = make(tmp_path, 5)
    (path / "weights").write_bytes(bytes(200))
    durable.verify(path, contents=False)
    (path / "weights").write_bytes(bytes(199))
    with pytest.raises(Damaged, match="199 bytes, not 200"):
        durable.verify(path, contents=False)


@pytest.mark.parametrize("content", [b"", b"[]", b"7", b'{"files": 3, "self": ""}', b"[" * 100_000, b"\xff", None])
def test_no_content_of_a_state_is_anything_but_damage(tmp_path, content):
    path = make(tmp_path, 5)
    (path / "state.json").unlink()
    if content is None:
        (path / "state.json").mkdir()
    else:
        (path / "state.json").write_bytes(content)
    with pytest.raises(Damaged, match="no readable state.json"):
        durable.verify(path)


def test_other_things_under_the_name_of_a_checkpoint_are_damage(tmp_path):
    make(tmp_path, 4)
    folder = tmp_path / "checkpoints"
    (folder / "step_00000005").write_text("a file")
    (folder / "step_00000006").symlink_to("step_00000006")
    (folder / "step_00000007").mkdir()
    found, reasons = durable.newest_checkpoint(tmp_path)
    assert found == folder / "step_00000004" and len(reasons) == 3


def test_a_disk_that_cannot_read_is_damage_and_a_lack_of_permission_is_not(tmp_path, monkeypatch):
    path = make(tmp_path, 5)
    for number, kind in ((errno.EIO, Damaged), (errno.EACCES, PermissionError)):

        def fails(file, number=number):
            raise OSError(number, os.strerror(number), str(file))

        monkeypatch.setattr(durable, "sha256", fails)
        with pytest.raises(kind):
            durable.verify(path)


def test_a_checkpoint_that_is_being_replaced_counts_until_the_new_one_is_there(tmp_path):
    five = make(tmp_path, 5)
    nine = make(tmp_path, 9)
    aside = nine.rename(nine.with_suffix(".old"))
    assert durable.newest_checkpoint(tmp_path) == (aside, []) and durable.list_checkpoints(tmp_path) == [five, aside]
    make(tmp_path, 9)
    aside.mkdir()
    assert durable.list_checkpoints(tmp_path) == [five, nine]


def test_what_is_not_read_back_as_it_was_written_gets_no_name(tmp_path, monkeypatch):
    first = make(tmp_path, 5, tokens=1)
    real = durable.sha256
    spoiled = iter([False, False, True])
    monkeypatch.setattr(durable, "sha256", lambda path: "0" * 64 if next(spoiled, False) else real(path))
    with pytest.raises(Damaged, match="sha256 differs"):
        make(tmp_path, 5, tokens=2)
    assert durable.verify(first)["tokens"] == 1


def test_a_missing_file_is_seen(tmp_path):
    path = make(tmp_path, 5)
    (path / "empty").unlink()
    with pytest.raises(Damaged, match="empty: missing"):
        durable.verify(path)


def test_newest_intact_checkpoint_is_found_past_damaged_ones(tmp_path):
    paths = [make(tmp_path, step) for step in (100, 90, 1100)]
    (tmp_path / "checkpoints" / "step_00002000.tmp").mkdir()
    (tmp_path / "checkpoints" / "note.txt").write_text("not a checkpoint")
    assert durable.newest_checkpoint(tmp_path) == (paths[2], [])
    (paths[2] / "weights").write_bytes(b"")
    found, reasons = durable.newest_checkpoint(tmp_path)
    assert found == paths[0] and len(reasons) == 1 and "0 bytes, not 200" in reasons[0]
    for path in paths[:2]:
        (path / "state.json").write_text("{}")
    with pytest.raises(Damaged, match="no loadable checkpoint of 3"):
        durable.newest_checkpoint(tmp_path)


def test_a_run_without_checkpoints_is_new_and_not_damaged(tmp_path):
    assert durable.newest_checkpoint(tmp_path) == (None, [])


def test_find_checkpoint_by_name(tmp_path):
    five, nine = make(tmp_path, 5), make(tmp_path, 9)
    (tmp_path / "checkpoints" / "best").write_text("step_00000005\n")
    assert durable.find_checkpoint(tmp_path) == nine
    assert durable.find_checkpoint(tmp_path, "best") == durable.find_checkpoint(str(tmp_path), "5") == five
    assert durable.find_checkpoint(five) == five
    with pytest.raises(ValueError, match="there are last, best and steps 5, 9"):
        durable.find_checkpoint(tmp_path, "7")
    with pytest.raises(ValueError, match="no such run"):
        durable.find_checkpoint(tmp_path / "absent")
    (five / "weights").write_bytes(b"x" * 200)
    with pytest.raises(Damaged, match="sha256 differs"):
        durable.find_checkpoint(tmp_path, "best")


def test_atomic_write_leaves_the_old_content_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    durable.atomic_write(path, "old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError):
        durable.atomic_write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_lock_refuses_a_second_process_and_dies_with_the_first(tmp_path):
    path = tmp_path / "lock"
    code = f"""
import sys; sys.path.insert(0, {os.getcwd()!r})
import durable, pathlib
with durable.file_lock(pathlib.Path({str(path)!r}), wait=False):
    print("held", flush=True); sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Locked, match=f"in use by process {holder.pid} on "), durable.file_lock(path, wait=False):
        pass
    holder.kill()
    holder.wait()
    with durable.file_lock(path, wait=False):
        assert json.dumps(os.getpid()) in path.read_text()
