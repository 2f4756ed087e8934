"""Which checkpoint a diverged run goes back to, and with what."""

import dataclasses
import json
from pathlib import Path

import pytest

import durable
from configs import dump, load
from course import State
from resume import last_good, restore, roll_back


def put(run: Path, state: State) -> None:
    tmp = run / "checkpoints" / "tmp"
    tmp.mkdir(parents=True)
    (tmp / "weights").write_text("w")
    durable.commit_directory(tmp, run / "checkpoints" / f"step_{state.step:08d}", dataclasses.asdict(state))


def saved(step: int, in_a_row: int = 0, **more) -> State:
    return State(step=step, row=8 * step, tokens=64 * step, guard={"skipped": 1, "in_a_row": in_a_row}, **more)


def damage(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:08d}" / "weights").write_text("x")


def test_the_newest_intact_one_that_was_not_saved_while_steps_were_skipped(tmp_path: Path):
    assert last_good(tmp_path) is None
    for state in (saved(2), saved(4), saved(6), saved(8, in_a_row=3)):
        put(tmp_path, state)
    damage(tmp_path, 6)
    found = last_good(tmp_path)
    assert found and durable.step_of(found) == 4


def test_never_from_the_start_because_everything_is_damaged(tmp_path: Path):
    put(tmp_path, saved(2))
    damage(tmp_path, 2)
    with pytest.raises(durable.Damaged, match="no loadable checkpoint of 1"):
        last_good(tmp_path)


def test_it_goes_on_after_the_rows_that_did_harm_at_half_the_rate(tmp_path: Path, capsys):
    put(tmp_path, saved(4, rate=0.5, rollbacks=1, skipped_rows=[[8, 16]], sums={"nll": 1.5}, wandb_id="old"))
    failed = saved(9, 10, rate=0.5, rollbacks=1, skipped_rows=[[8, 16]], seconds=7.0, wandb_id="id")
    failed.guard["skipped"] = 12
    state, checkpoint = roll_back(tmp_path, failed)
    assert checkpoint and durable.step_of(checkpoint) == 4
    assert (state.step, state.tokens, state.row) == (4, 256, 72) and state.sums == {"nll": 1.5}
    assert (state.rate, state.rollbacks, state.skipped_rows) == (0.25, 2, [[8, 16], [32, 72]])
    assert (state.guard, state.seconds, state.wandb_id) == ({"skipped": 12}, 7.0, "id")
    again, _ = roll_back(tmp_path, dataclasses.replace(state, step=7, row=96, guard={"skipped": 22}))
    assert again.skipped_rows == [[8, 16], [32, 96]], "each row once, though it went back twice to the same place"
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert event["event"] == "rollback" and (event["step"], event["to"], event["rows"]) == (9, 4, [32, 72])
    assert "goes back from step 9 to 4, leaves out rows 32 to 71" in capsys.readouterr().err


def test_without_a_checkpoint_it_begins_again(tmp_path: Path):
    failed = State(step=9, row=72, guard={"skipped": 10}, auto={"device": "cpu"}, data="corpus", teacher="t")
    state, checkpoint = roll_back(tmp_path, failed)
    assert checkpoint is None and (state.step, state.row, state.tokens, state.rate) == (0, 72, 0, 0.5)
    assert (state.auto, state.data, state.teacher) == ({"device": "cpu"}, "corpus", "t")


def test_another_objective_is_not_compared_with_the_one_before(tmp_path: Path):
    given = "configs/tiny.yaml"
    (tmp_path / "config.yaml").write_text(dump(load(given, [])))
    state = saved(4, sums={"nll": 1.5})
    state.guard["losses"] = [2.0, 1.5]
    put(tmp_path, state)
    same, _ = restore(load(given, []), tmp_path)
    assert (same.sums, same.guard["losses"]) == ({"nll": 1.5}, [2.0, 1.5])
    other, checkpoint = restore(load(given, ["loss.base={smooth: {eps: 0.1}}"]), tmp_path)
    assert checkpoint and other.sums == {} and other.guard == {"skipped": 1, "in_a_row": 0}
