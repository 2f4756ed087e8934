"""A run over two machines, network namespaces where these are permitted; and a link between them that fails."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.faults.nodes import Nodes, in_namespaces, launch_on, on_localhost
from scripts.faults.runs import Runs, check_code, read_lines
from scripts.faults.supervised import Fault, clean, wait_for


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("nodes"))


@pytest.fixture
def joined() -> Iterator[Nodes]:
    """Two nodes with a network of their own; the test is skipped where there can be none."""
    try:
        with in_namespaces() as nodes:
            yield nodes
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")


@pytest.mark.soak
def test_two_nodes_train_as_two_ranks_of_one(runs: Runs):
    try:
        with in_namespaces() as nodes:
            ended = launch_on(runs, nodes, "over-two")
    except OSError:
        ended = launch_on(runs, on_localhost(), "over-two")
    for each in ended:
        check_code(each, 0)
    runs.check_same(clean(runs), "over-two")


@pytest.mark.soak
def test_both_sides_of_a_lost_link_end_and_go_on_when_it_is_back(runs: Runs, joined: Nodes):
    first = joined.pair[0]

    def cut(log: Path) -> None:
        at = wait_for(log, "pause")["time"]
        first.link("down")
        ends = [line["time"] - at for line in wait_for_both(log)]
        print(f"the launchers saw an end after {ends} s")
        first.link("up")

    for each in launch_on(runs, joined, "cut-off", [Fault("pause", 0, 8)], act=cut):
        check_code(each, 0)
        print(f"ended after {each.seconds:.1f} s")
    assert [line["code"] for line in read_lines(runs.runs / "cut-off.log") if line["event"] == "ended"] == [1, 1, 0, 0]
    runs.check_same(clean(runs), "cut-off")


def wait_for_both(log: Path) -> list[dict[str, Any]]:
    """The lines that tell of the first end of a start on each node."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        ends = [line for line in read_lines(log) if line["event"] == "ended"]
        if len(ends) == 2:
            return ends
        time.sleep(0.1)
    raise AssertionError(f"a side did not end: {read_lines(log)}")
