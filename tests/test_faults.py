"""Every fault of `python -m scripts.bench faults`, injected a few times each, and the page that it writes."""

import pytest

from scripts.faults import kills
from scripts.faults.matrix import MATRIX
from scripts.faults.runs import SAVE_EVERY
from scripts.faults.scenario import Outcome, Scenario
from tests.conftest import Bench


@pytest.mark.parametrize("scenario", MATRIX, ids=lambda scenario: f"{scenario.fault}-{scenario.name}")
def test_survived(bench: Bench, scenario: Scenario):
    outcome = scenario.run(bench, scenario.quick)
    assert not outcome.failures
    assert outcome.survived == outcome.injected > 0 and (outcome.lost or 0) <= SAVE_EVERY


def killed(bench: Bench, count: int, *overrides: str) -> None:
    outcome = Outcome()
    kills.killed(bench, outcome, count, *overrides)
    assert not outcome.failures and outcome.survived == count and (outcome.lost or 0) <= SAVE_EVERY


def test_killed_in_bf16(bench: Bench):
    killed(bench, 2, "train.precision=bf16")


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_twenty_times(bench: Bench, precision: str):
    killed(bench, 20, f"train.precision={precision}")
