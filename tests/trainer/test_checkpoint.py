"""Checkpoints of a run: what is kept, what happens to one that cannot be written, and faults inside a save."""

import errno
import json
import math
import shutil
import threading

import pytest
import torch
from safetensors.torch import save_file

import durable
from configs import explain
from durable import SaveFailed
from scripts.faults import saves
from scripts.faults.runs import Runs
from scripts.faults.saves import loaded, make_saver, steps, store
from scripts.faults.scenario import Outcome
from tests.conftest import Bench
from trainer.shelf import Shelf


def best(run):
    return durable.step_of(durable.find_checkpoint(run, "best"))


def names(run):
    return {path.name for path in (run / "checkpoints").iterdir()}


def events(run):
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] != "save"]


def damage(path):
    (path / saves.FILE).write_bytes(b"")


def flip(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def full_disk(directory):
    (directory / "part").write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device", str(directory / "part"))


def test_the_newest_and_the_best_are_kept(tmp_path):
    saver = make_saver(tmp_path, keep=2)
    for step, nll in enumerate((5.0, 2.0, 3.0, 2.0, 4.0), 1):
        store(saver, step, nll=nll)
    assert steps(tmp_path) == [2, 4, 5] and best(tmp_path) == 2  # the earliest of two that are as good
    store(saver, 6, nll=1.0)
    assert steps(tmp_path) == [5, 6] and best(tmp_path) == 6
    assert events(tmp_path)[-1].items() >= {"event": "pruned", "step": 6, "steps": [2, 4]}.items()


def test_what_was_not_measured_or_is_not_finite_is_never_the_best(tmp_path):
    saver = make_saver(tmp_path, keep=9)
    for step, nll in enumerate((None, math.nan, -math.inf), 1):
        store(saver, step, nll=nll)
        assert not (tmp_path / "checkpoints" / "best").exists()
    store(saver, 4, nll=7.0)
    store(saver, 5, nll=math.nan)
    assert best(tmp_path) == 4


def test_every_so_often_one_is_kept_for_ever(tmp_path):
    saver = make_saver(tmp_path, keep=1, keep_every=4)
    for step in range(1, 12):
        store(saver, step)
    assert steps(tmp_path) == [4, 8, 11]
    store(make_saver(tmp_path), 12)  # also once nobody asks for it any more
    assert steps(tmp_path) == [4, 8, 12]


def test_damaged_ones_do_not_count_among_those_kept(tmp_path):
    saver = make_saver(tmp_path, keep=2)
    for step in (1, 2, 3):
        store(saver, step, nll=float(step))
    damage(saver.shelf.place(3))
    damage(saver.shelf.place(1))
    store(saver, 4, nll=9.0)
    assert steps(tmp_path) == [2, 3, 4] and best(tmp_path) == 2  # 1, the best, is of no use to anybody
    store(saver, 5, nll=9.0)
    assert steps(tmp_path) == [2, 4, 5]


def test_a_flipped_bit_from_before_this_start_is_seen_before_others_are_pruned(tmp_path):
    for step in (1, 2, 3):
        store(make_saver(tmp_path, keep=3), step, nll=float(step))
    flip(Shelf(tmp_path).place(3) / saves.FILE)
    store(make_saver(tmp_path, keep=2), 4, nll=9.0)
    assert steps(tmp_path) == [1, 2, 3, 4] and best(tmp_path) == 1
    flip(Shelf(tmp_path).place(1) / saves.FILE)
    store(make_saver(tmp_path, keep=9), 5, nll=9.0)
    assert best(tmp_path) == 2


def test_saving_a_step_again_replaces_it(tmp_path):
    saver = make_saver(tmp_path)
    store(saver, 1, nll=3.0)
    store(saver, 1, nll=2.0)
    assert durable.verify(durable.find_checkpoint(tmp_path))["nll"] == 2.0
    assert names(tmp_path) == {"step_00000001", "best"}


def test_going_on_removes_leftovers_and_sets_damaged_ones_aside(tmp_path):
    saver = make_saver(tmp_path, keep=9)
    for step, nll in enumerate((4.0, 3.0, 2.0, 1.0), 1):
        store(saver, step, nll=nll)
    folder = tmp_path / "checkpoints"
    (folder / "step_00000009.tmp").mkdir()
    (folder / "step_00000008.trash" / "deep").mkdir(parents=True)
    (folder / ".best.123.tmp").write_text("")
    shutil.copytree(folder / "step_00000001", folder / "step_00000001.old")
    (folder / "step_00000002").rename(folder / "step_00000002.old")  # killed while a new one of this step took over
    damage(folder / "step_00000003")
    damage(folder / "step_00000004")
    assert loaded(tmp_path) == 2
    make_saver(tmp_path).shelf.go_on_from(2)
    aside = {"step_00000003.damaged", "step_00000004.damaged"}
    assert names(tmp_path) == {"step_00000001", "step_00000002", "best"} | aside and best(tmp_path) == 2
    damage(folder / "step_00000002")
    Shelf(tmp_path).go_on_from(1)
    assert best(tmp_path) == 1
    Shelf(tmp_path / "new").go_on_from(0)


def test_a_failed_save_leaves_all_as_it_was_and_the_third_in_a_row_is_raised(tmp_path):
    told: list[str] = []
    saver = make_saver(tmp_path, warn=told.append)
    store(saver, 1, nll=1.0)

    def bug(directory):
        raise KeyError("w")

    for step, write in ((2, full_disk), (3, bug)):
        saver.save(step, write, {"nll": 0.0}, 0)
        assert names(tmp_path) == {"step_00000001", "best"} and loaded(tmp_path) == best(tmp_path) == 1
    assert "step 2 was not saved" in told[0] and "step_00000002.tmp/part: No space left" in told[0]
    assert "the newest is that of step 1" in told[0] and "KeyError: 'w'" in told[1]
    with pytest.raises(SaveFailed, match=r"step 4 was not saved: .*step_00000004.tmp/part.* \(3 saves in a row failed"):
        saver.save(4, full_disk, {"nll": 0.0}, 0)
    assert [event["step"] for event in events(tmp_path)] == [2, 3, 4] and len(told) == 2
    store(saver, 5)
    saver.save(6, full_disk, {}, 0)  # counted anew
    assert len(told) == 3


def test_a_failed_last_save_is_raised_at_once(tmp_path):
    saver = make_saver(tmp_path, background=True)
    with pytest.raises(SaveFailed, match="step 1 was not saved"):
        saver.save(1, full_disk, {}, 0, last=True)
    assert names(tmp_path) == set()
    assert explain(SaveFailed("why")) == (1, ["why"])  # one line, no traceback


def test_a_full_disk_takes_what_the_new_checkpoint_makes_superfluous(tmp_path):
    told: list[str] = []
    saver = make_saver(tmp_path, keep=3, warn=told.append)
    for step, nll in enumerate((1.0, 5.0, 5.0, 5.0), 1):
        store(saver, step, nll=nll)
    tries = []

    def write(directory):
        tries.append(steps(tmp_path))
        if 2 in steps(tmp_path):
            full_disk(directory)
        (directory / "fits").write_text("now")

    saver.save(5, write, {"nll": 5.0}, 0)
    assert tries == [[1, 2, 3, 4], [1, 3, 4]] and steps(tmp_path) == [1, 3, 4, 5] and not told
    saver.save(6, full_disk, {}, 0)
    assert steps(tmp_path) == [1, 4, 5] and len(told) == 1  # no more goes than would have gone


def test_nothing_is_written_where_there_is_no_room(tmp_path):
    told: list[str] = []
    saver = make_saver(tmp_path, warn=told.append)
    saver.save(1, lambda directory: told.append("written"), {}, 2**60)
    assert len(told) == 1 and "wants 1319413953331.2 MiB of free space" in told[0] and names(tmp_path) == set()


def test_a_vanished_run_is_not_made_anew(tmp_path):
    told: list[str] = []
    saver = make_saver(tmp_path / "run", warn=told.append)
    (tmp_path / "run").rmdir()
    store(saver, 1)
    assert f"{tmp_path}/run/checkpoints: No such file or directory" in told[0] and not list(tmp_path.iterdir())


def test_the_library_says_in_words_alone_that_the_disk_is_full(tmp_path):
    from trainer.checkpoint import _explain

    with saves.largest_file(100), pytest.raises(Exception, match="os error 27") as caught:
        save_file({"w": torch.zeros(100)}, tmp_path / "w")
    assert not isinstance(caught.value, OSError)
    worded = type(caught.value)(str(caught.value).replace("os error 27", "os error 28"))
    assert _explain(worded, tmp_path).full and not _explain(caught.value, tmp_path).full


def test_in_the_background_training_goes_on_while_one_save_at_a_time_is_written(tmp_path):
    go, writing = threading.Event(), []
    saver = make_saver(tmp_path, keep=5, background=True)
    state = {"nll": 1.0, "sums": {"a": 1}}

    def slow(directory):
        writing.append(threading.current_thread().name)
        go.wait(60)
        assert len(writing) - len(steps(tmp_path)) == 1
        (directory / "file").write_text("")

    with saver:
        saver.save(1, slow, state, 0)
        state["sums"]["a"] = 2
        saver.check()
        assert steps(tmp_path) == []
        go.set()
        saver.save(2, slow, state, 0)
        saver.save(3, slow, state, 0, last=True)
        assert steps(tmp_path) == [1, 2, 3] and writing == ["saver", "saver", "MainThread"]
    assert durable.verify(saver.shelf.place(1))["sums"] == {"a": 1}


def test_a_save_that_fails_in_the_background_is_told_and_tried_again_in_the_foreground(tmp_path):
    told: list[str] = []
    saver = make_saver(tmp_path, background=True, warn=told.append)
    done = threading.Event()

    def fails(directory):
        done.set()
        full_disk(directory)

    saver.save(1, fails, {}, 0)
    done.wait(60)
    while not told:
        saver.check()
    assert "step 1 was not saved" in told[0] and "there is none yet" in told[0]
    saver.save(2, full_disk, {}, 0)
    assert len(told) == 2
    with pytest.raises(SaveFailed, match="3 saves in a row"):
        saver.save(3, full_disk, {}, 0)
    store(saver, 4)
    assert steps(tmp_path) == [4]
    with pytest.raises(RuntimeError, match="diverged"), saver:
        store(saver, 5)
        raise RuntimeError("diverged")
    assert steps(tmp_path) == [5] and len(told) == 2  # what was under way is finished


@pytest.mark.soak
def test_killed_at_every_system_call_of_a_save_the_run_stays_loadable(tmp_path):
    outcome = Outcome()
    saves.killed(Runs(tmp_path), outcome, 2000)  # all; a fifth or so of the other kinds of saves
    assert outcome.failures == [] and outcome.survived == outcome.injected > 500


def test_ranks_save_together_or_not_at_all(bench: Bench, tmp_path):
    """Two processes: both write, either fails, in the foreground and in the background."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = bench.run(*launcher, "-m", "tests.trainer.saving_ranks", str(tmp_path))
    assert told.count("all as it should be") == 2
