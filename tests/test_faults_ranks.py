"""Ranks that are killed, raise, hang, are paused and asked to stop (F8 to F11, F22), in as few launches as possible."""

from pathlib import Path

import pytest

from scripts.faults import supervised
from scripts.faults.runs import Runs, check_code
from scripts.faults.scenario import Outcome
from scripts.faults.supervised import Fault


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("ranks"))


def test_killed_raising_hanging_and_paused_the_run_is_the_one_it_would_have_been(runs: Runs):
    killed, raised, hung = Fault("kill", 1, 8), Fault("raise", 1, 14), Fault("hang", 1, 20)
    faults = [killed, raised, Fault("pause", 0, 16), hung]
    struck = supervised.strike(runs, "struck", faults, f"train.timeout={supervised.TIMEOUT}")
    check_code(struck.ended, 0)
    assert struck.codes() == [137, 1, 1, 0]
    supervised.check_root_cause(struck, raised)
    supervised.check_stacks(Path(runs.runs / "struck"), struck.ended.told)
    runs.check_same(supervised.clean(runs), "struck")


@pytest.mark.soak
def test_asked_to_stop(runs: Runs):
    outcome = Outcome()
    supervised.asked_once(runs, outcome)
    assert not outcome.failures and outcome.survived == 2


@pytest.mark.soak
def test_asked_twice_while_one_rank_waits_for_the_other(runs: Runs):
    outcome = Outcome()
    supervised.asked_twice(runs, outcome)
    assert not outcome.failures and outcome.survived == 1
