"""The shape of the house: who may import whom, where third parties live, and what importing costs."""

import ast
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from scripts.doctor import ROOT, dependencies

LEAVES = {"data", "model", "loss", "trainer", "eval"}
ROOTS = {
    "train", "resume", "instruments", "assemble", "course", "hardware", "learner", "sizing", "durable", "tensorfiles",
}  # fmt: skip
OURS = LEAVES | ROOTS | {"configs", "scripts", "tests"}
HOMES = {  # third party -> the places that may import it; tests and benchmarks are exempt
    "wandb": {"trainer/tracking.py"},
    "tensorboard": {"trainer/tracking.py"},
    "torch.utils.tensorboard": {"trainer/tracking.py"},
    "torch.distributed": {"trainer/"},
    "datasets": {"data/sources.py", "scripts/benches/data_contest.py"},
    "pyarrow": {"data/reading/files.py", "data/reading/tables.py"},
    "tokenizers": {"data/tokenizer.py", "data/tokens/vocabulary.py", "scripts/benches/data_contest.py"},
    "tiktoken": {"data/tokenizer.py", "scripts/benches/data_contest.py"},
    "py3langid": {"data/cleaning/language.py"},
    "yaml": {"configs/"},
    "pydantic": {"configs/"},
    "matplotlib": {"eval/", "scripts/benches/picture.py", "scripts/benches/faults_picture.py"},
    "transformers": set(),
    "safetensors": {"model/", "tensorfiles.py", "scripts/faults/guarded.py"},
    "tqdm": {"data/", "trainer/"},
    "ray": {"data/making/engine_ray.py"},
    "liger_kernel": {"loss/liger.py", "scripts/benches/loss_contest.py"},
}


def sources() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines()]


def imports(path: Path) -> set[str]:
    """Every absolute module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


PRODUCT = [path for path in sources() if path.relative_to(ROOT).parts[0] != "tests"]
each_file = pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))


@each_file
def test_imports_go_one_way(path: Path):
    home = path.relative_to(ROOT).parts[0].removesuffix(".py")
    used = {name.partition(".")[0] for name in imports(path)} & OURS - {home}
    allowed = {
        "durable": set[str](),
        "model": {"durable", "tensorfiles"},
        "trainer": {"durable", "tensorfiles"},
        "configs": {*LEAVES, "durable"},
        "sizing": {*LEAVES, "configs", "durable"},
        "hardware": {"configs", "model", "trainer"},
        "learner": {*LEAVES, "configs", "durable", "sizing", "hardware"},
        "course": {*LEAVES, "configs", "durable", "learner"},
        "assemble": {*LEAVES, "configs", "durable", "sizing", "learner", "course"},
        "instruments": {*LEAVES, "course", "assemble"},
        "resume": {*LEAVES, "configs", "durable", "course", "assemble"},
        "train": {*LEAVES, "configs", "durable", "course", "assemble", "instruments", "resume", "scripts"},
        "scripts": {*LEAVES, "configs", "durable", "sizing", "learner", "course", "assemble"},
    }.get(home, {"durable"})
    if "faults" in path.parts or path.name == "recipe.py":  # they make whole runs, from the inside too
        allowed = allowed | {"train", "instruments", "resume"}
    assert used <= allowed, f"{path.name} imports {sorted(used - allowed)}"


def test_configs_takes_only_types_and_pure_checks_from_the_leaves():
    pure = {"config", "terms", "registry", "schedule", "rules"}  # torch-free modules
    for path in PRODUCT:
        if path.parent.name == "configs":
            deep = {name for name in imports(path) if name.partition(".")[0] in LEAVES and name.count(".") >= 1}
            assert all(name.split(".")[1] in pure for name in deep), (path.name, deep)


@each_file
def test_third_parties_live_in_their_homes(path: Path):
    place = str(path.relative_to(ROOT))
    for module, homes in HOMES.items():
        if any(name == module or name.startswith(f"{module}.") for name in imports(path)):
            allowed = any(place == home or (home.endswith("/") and place.startswith(home)) for home in homes)
            assert allowed, f"{place} imports {module}"


def test_every_import_is_declared():
    ours = {d.replace("-", "_").lower() for d in dependencies("liger", "cluster", "language")} | {"torch"}
    distributions = packages_distributions()
    for path in PRODUCT:
        for name in {n.partition(".")[0] for n in imports(path)} - OURS - sys.stdlib_module_names:
            declared = {d.replace("-", "_").lower() for d in distributions.get(name, [name])}
            assert declared & ours, f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not list"


def test_no_module_bears_the_name_of_another():
    taken = sys.stdlib_module_names | set(packages_distributions()) - OURS
    for path in PRODUCT:
        assert path.stem.startswith("__") or path.stem not in taken or path.stem in LEAVES, path


def test_the_command_line_waits_for_nothing_heavy():
    heavy = ["torch", "numpy", "datasets", "tokenizers", "tiktoken", "wandb", "matplotlib", "transformers"]
    code = f"""
import sys, train
try:
    train.main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "rates.matrix" in done.stdout and "--dry-run" in done.stdout


@pytest.mark.parametrize("package", sorted(LEAVES | ROOTS | {"configs"}))
def test_importing_does_nothing(package: str, tmp_path: Path):
    code = f"""
import os, threading, torch
before = dict(os.environ), torch.get_rng_state().tolist(), torch.get_num_threads(), threading.active_count()
import {package}
assert before == (dict(os.environ), torch.get_rng_state().tolist(), torch.get_num_threads(), threading.active_count())
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == done.stderr == "" and not list(tmp_path.iterdir())


def test_packages_are_listed_for_installation():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(p.relative_to(ROOT).parts[:-1]) for p in PRODUCT if p.name == "__init__.py"}
    files = {p.stem for p in PRODUCT if p.parent == ROOT}
    assert set(settings["packages"]) == folders and set(settings["py-modules"]) == files


def test_the_loop_can_be_read_at_one_go():
    tree = ast.parse((ROOT / "train.py").read_text())
    fit = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "fit")
    loop = next(node for node in fit.body if isinstance(node, ast.For))
    lines = {line for node in ast.walk(loop) if (line := getattr(node, "lineno", None))}
    assert len(lines) <= 45
