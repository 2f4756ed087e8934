"""A run that goes on with another value: each field of the schema is refused, recorded or let through by its tag."""

from pathlib import Path
from typing import Any

import pytest

from scripts.faults.edits import KEYS, base_tree, check_change


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return base_tree(tmp_path_factory.mktemp("changes"))


@pytest.mark.parametrize("key", KEYS)
def test_a_change_is_refused_recorded_or_free(key: str, tree: dict[str, Any], tmp_path: Path) -> None:
    check_change(key, tree, tmp_path)
