"""`python -m scripts.bench recipe`: real short runs, a table, a page and a picture from them, and going on."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from scripts import bench
from scripts.benches import recipe, recipe_report
from scripts.benches.recipe import BASE, LEVERS, RUNS, SWEEP, sweep


def test_short_runs_and_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {i} of a text that is short\n" for i in range(400)))
    command = ["recipe", "--quick", "--seeds", "1", "--only", "random", "4 iter", "--text", str(text),
               "--out", str(tmp_path)]  # fmt: skip
    assert bench.main(command) == 0
    report = json.loads((tmp_path / "recipe.json").read_text())
    answers = report["answers"][RUNS]
    assert list(answers) == [BASE, "random projections", "4 iterations"]
    assert len({each[0]["nll"] for each in answers.values()}) == 3  # each lever does something
    assert "a quick look" in (tmp_path / "recipe.md").read_text().lower()
    assert (tmp_path / "recipe.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(recipe, "run", lambda *_: pytest.fail("what is there was measured again"))
    assert bench.main([*command, "--resume"]) == 0
    assert json.loads((tmp_path / "recipe.json").read_text())["answers"] == report["answers"]
    assert "random projections" in capsys.readouterr().out
    assert bench.main(["recipe", "--only", "nothing like it"]) == 2


def test_every_lever_and_every_run_of_the_sweep_is_a_config_of_its_own() -> None:
    from configs import load

    base = load(str(recipe.ROOT / recipe.RECIPE))
    found = [load(str(recipe.ROOT / recipe.RECIPE), lever.overrides(base)) for lever in LEVERS]
    for lever, config in zip(LEVERS, found, strict=True):
        assert config != base or lever.patch is not nullcontext, lever.name
    assert len({str(load(str(recipe.ROOT / recipe.RECIPE), s.overrides(base))) for s in sweep().values()}) > 25


def report(**runs: list[float]) -> dict[str, Any]:
    answers = {name: [{"seed": i, "nll": nll, "steps": 5} for i, nll in enumerate(nlls)] for name, nlls in runs.items()}
    return {"answers": {RUNS: answers}, "settings": {"quick": False}, "told": "a machine", "date": "today",
            "command": "python -m scripts.bench recipe"}  # fmt: skip


def test_differences_are_between_runs_of_one_seed() -> None:
    found = report(**{BASE: [1.0, 2.0, 3.0], "worse": [1.1, 2.1, 3.1], "better": [0.9, 2.0]})
    base, worse, better = recipe_report.rows_of(found)
    assert base.name == BASE and base.nll == 2.0 and base.spread == 1.0 and base.apart == 0.0
    assert worse.apart == pytest.approx(0.1) and worse.apart_spread == pytest.approx(0.0)
    assert better.apart == pytest.approx(-0.05) and better.values == (0.9, 2.0)
    page = recipe_report.page(found)
    assert "| worse |  | 2.1000 | 1.0000 | +0.1000 | 0.0000 | 5 |" in page
    assert "{" not in page


def test_one_seed_has_no_spread_and_a_lever_that_failed_once_no_mean() -> None:
    found = report(**{BASE: [1.0], "one": [1.1], "failed": [0.1]})
    found["answers"][RUNS]["failed"].append({"seed": 1, "failed": "it diverged"})
    assert [row.name for row in recipe_report.rows_of(found)] == [BASE, "one"]
    assert "| one |  | 1.1000 | - | +0.1000 | - | 5 |" in recipe_report.page(found)
    assert "failed  failed (runs): it diverged" in recipe_report.table(found)


def test_the_best_of_a_sweep_is_the_vertex() -> None:
    assert recipe_report.vertex([(0.01, 2.0), (0.02, 1.0), (0.04, 2.0)]) == pytest.approx(0.02)
    assert recipe_report.vertex([(1.0, 4.0), (2.0, 1.0), (4.0, 0.0)]) == pytest.approx(4.0)  # at 2^2
    assert recipe_report.vertex([(1.0, 3.0), (2.0, 2.0), (4.0, 0.5)]) == 4.0  # no bottom
    found = report(**{BASE: [1.0]})
    found["answers"][SWEEP] = {f"64 wide: rates.matrix {x:g}": [{"seed": 0, "nll": y, "steps": 5}]
                               for x, y in ((0.01, 2.0), (0.02, 1.0), (0.04, 2.0))}  # fmt: skip
    assert recipe_report.swept(found) == ["64 wide: rates.matrix: 0.01 2.0000, 0.02 1.0000, 0.04 2.0000; best 0.02"]
