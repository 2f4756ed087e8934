"""Every fault of `python -m scripts.bench faults`, injected a few times each, and the page that it writes."""

import json

import pytest

from scripts.benches.faults_report import markdown
from scripts.faults import kills
from scripts.faults.matrix import MATRIX
from scripts.faults.runs import SAVE_EVERY
from scripts.faults.scenario import Outcome, Scenario
from tests.conftest import ROOT, Bench

# In trainer/test_checkpoint.py; test_faults_ranks.py; test_guard_in_runs.py, which share what is injected.
ELSEWHERE = {"F2", "F3"} | {"F8", "F9", "F10", "F11", "F22"} | {"F13", "F14"}
LONG = {"F12", "F13", "F14", "F16", "F21", "F24"}
"""Of several processes, many starts or many steps: for soak."""
CASES = [
    pytest.param(
        scenario, id=f"{scenario.fault}-{scenario.name}", marks=[pytest.mark.soak] if scenario.fault in LONG else []
    )
    for scenario in MATRIX
    if scenario.fault not in ELSEWHERE - LONG
]


@pytest.mark.parametrize("scenario", CASES)
def test_survived(bench: Bench, scenario: Scenario):
    outcome = scenario.run(bench, scenario.quick)
    if any(failure.startswith("NotAllowed") for failure in outcome.failures):
        pytest.skip(outcome.failures[0])  # this machine does not let a process trace its child
    assert not outcome.failures
    assert outcome.survived == outcome.injected > 0 and (outcome.lost or 0) <= SAVE_EVERY


def test_the_page_is_written_from_the_numbers_beside_it():
    report = json.loads((ROOT / "docs" / "reliability.json").read_text())
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert page == markdown(report)
    assert all(found["survived"] == found["injected"] > 0 for found in report["faults"].values())
    assert set(report["faults"]) == {scenario.fault for scenario in MATRIX}, "run python -m scripts.bench faults again"


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_twenty_times(bench: Bench, precision: str):
    outcome = Outcome()
    kills.killed(bench, outcome, 20, f"train.precision={precision}")
    assert not outcome.failures and outcome.survived == 20 and (outcome.lost or 0) <= SAVE_EVERY
