"""Configs with mistakes (F15)."""

import random
from pathlib import Path

from .runs import Ended, Runs, check, check_code, end_of
from .scenario import Outcome

SECTIONS: list[tuple[str, dict[str, str]]] = [
    ("run: {name: mistaken}", {
        "run: {name: mistaken, seed: -3}": "run.seed: -3 is not an integer >= 0",
        "run: {name: mistaken, sed: 3}": "unknown key 'run.sed' — did you mean 'run.seed'?",
    }),
    ("data: {sources: {stdlib: {kind: python, packages: [json]}}, tokenizer: byte}", {
        "data: {sources: {stdlib: {kind: pythn, packages: [json]}}, tokenizer: byte}": "did you mean 'python'?",
        "data: {sources: {stdlib: {kind: python, packages: json}}, tokenizer: byte}": "write [json]",
    }),
    ("model: {layers: 2, dim: 64, heads: 2, context: 64}", {
        "model: {layers: 0, dim: 64, heads: 2, context: 64}": "model.layers: 0 is not an integer >= 1",
        "model: {layers: 2, dim: 64, heads: 3, context: 64}": "model.heads: 3 does not divide model.dim 64",
        "model: {layers: 2, dim: on, heads: 2, context: 64}": "model.dim: 'on' is not an integer >= 1",
    }),
    ("loss: ce", {
        "loss: {base: smoth}": "unknown loss term 'smoth' — did you mean 'smooth'?",
        "loss: {base: ce, add: [{z: {cof: 1}}]}": "z has no option 'cof' — did you mean 'coef'?",
    }),
    ("optim: {name: muon}", {
        "optim: {name: muom}": "did you mean 'muon'?",
        "optim: {betas: [0.9]}": "optim.betas: [0.9] is not a list of 2 numbers in [0, 1)",
        "optim: {warmup: 3}": "unknown key 'optim.warmup' — did you mean 'schedule.warmup'?",
    }),
    ("train: {steps: 10, batch_tokens: 2048}", {
        "train: {steps: 10, epochs: 2, batch_tokens: 2048}": "takes exactly one of steps, tokens and epochs",
        "train: {steps: 1e1, batch_tokens: 2048}": "train.steps: 10.0 is not an integer >= 1 or null; write 10",
    }),
    ("save: {every: 5}", {"save: {every: 0}": "save.every: 0 is not a length > 0"}),
    ("track: {wandb: off}", {"track: {wandb: false}": "track.wandb: false is not off, offline or online; write off"}),
]  # fmt: skip
"""The lines of a config, each with ways to get it wrong and what is to be said of them."""


def bad_configs(runs: Runs, outcome: Outcome, count: int) -> None:
    """F15: `count` configs with three mistakes or more, given to the real command."""
    rng, mistakes = random.Random(0), 0
    for number in range(count):
        folder = runs.runs / f"mistakes-{number}"
        folder.mkdir(parents=True)
        wrong = set(rng.sample(range(len(SECTIONS)), rng.randint(3, len(SECTIONS))))
        lines, wanted = [], []
        for line, (right, ways) in enumerate(SECTIONS):
            text = rng.choice(list(ways)) if line in wrong else right
            lines.append(text)
            wanted += [(line + 1, ways[text])] if line in wrong else []
        with outcome.injection(f"{len(wanted)} mistakes"):
            _refused(runs, folder, lines, wanted)
            mistakes += len(wanted)
    outcome.detection = f"{mistakes} mistakes in all"


def _refused(runs: Runs, folder: Path, lines: list[str], wanted: list[tuple[int, str]]) -> None:
    """Exit code 2, a line for each mistake, with its place, and nothing is made."""
    config = folder / "config.yaml"
    config.write_text("\n".join(lines) + "\n")
    places = (f"run.dir={folder / 'runs'}", f"data.dir={folder / 'corpora'}")
    ended: Ended = end_of(runs.start("train.py", str(config), *places))
    check_code(ended, 2)
    *told, last = ended.told.splitlines()
    for line, reason in wanted:
        here = [each for each in told if each.startswith(f"{config}:{line}: ") and reason in each]
        check(bool(here), f"nothing like {line}: {reason} in {told}")
    check(len(told) == len(wanted) and last == f"{len(wanted)} errors; nothing was run.", f"it said {told}, {last}")
    check([path.name for path in folder.iterdir()] == ["config.yaml"], "something was made")
