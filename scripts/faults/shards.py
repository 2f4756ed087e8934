"""Tokens that are damaged on disk (F7): flipped, cut off, and an id that no vocabulary has under a right hash."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

import durable
from configs import load
from data import Prepared, prepare

from .damage import SHARES, contents, flip
from .runs import SHORT, TINY, Runs, check, check_code
from .scenario import Outcome


def put_id_beyond(prepared: Prepared) -> str:
    """Write ids that the vocabulary does not have into a shard, with its hash; returns what is to be said of it."""
    record, size = prepared.store.shards[0], prepared.tokenizer.vocab_size
    path = prepared.store.folder / f"{record.name}.bin"
    before, ids = durable.sha256(path), np.fromfile(path, record.dtype)
    ids[5:8] = [size, size - 1, 60_000]
    path.write_bytes(ids.tobytes())
    for file in (prepared.directory / "manifest.json", path.with_suffix(".json")):
        file.write_text(file.read_text().replace(before, durable.sha256(path)))
    return f"{path.name}: token 5 is {size}, and ids end at {size - 1}"


def damaged(runs: Runs, outcome: Outcome, count: int) -> None:
    """F7: each file of a corpus cut, `count` bits flipped, an id beyond the vocabulary; a run is started on each."""
    clean, corpora = runs.clean(*SHORT), runs.runs / "damaged-corpora"
    shutil.copytree(runs.corpora, corpora)
    config = load(TINY, (f"data.dir={corpora}",))

    def found() -> Prepared:
        return prepare(config.data, config.model.context, progress=False)

    def refused(saying: str) -> None:
        try:
            found()
        except durable.Damaged as error:
            check(saying in str(error) and "\n" not in str(error), f"it said {error}")
        else:
            raise AssertionError("taken silently")

    prepared = found()
    files = sorted(file for file in prepared.store.folder.iterdir() if file.suffix in (".bin", ".npz"))
    for file in files:
        whole = file.read_bytes()
        for share in SHARES:
            with outcome.injection(f"{file.name} cut to {share:.0%}"):
                os.truncate(file, int(share * len(whole)))
                refused(f"{file.name}: {int(share * len(whole))} bytes, not {len(whole)}")
            file.write_bytes(whole)
    rng = random.Random(0)
    for number in range(count):
        file = files[number % len(files)]
        place, bit = rng.randrange(file.stat().st_size), rng.randrange(8)
        with outcome.injection(f"bit {bit} of byte {place} of {file.name}"):
            flip(file, place, bit)
            refused(f"{file.name}: sha256 differs")
        flip(file, place, bit)

    def beyond() -> str:
        return put_id_beyond(prepared)

    def flipped() -> str:
        flip(files[0], 100, 3)
        return f"{files[0].name}: sha256 differs"

    run = shutil.copytree(runs.runs / clean, runs.runs / "on-damaged-corpus")
    before = contents(run)
    with outcome.injection("a flipped bit, a run would go on"):
        _refused_start(runs, run.name, corpora, flipped)
        check(contents(run) == before, "files of the run were changed")
        flip(files[0], 100, 3)
    with outcome.injection("an id beyond the vocabulary, a new run"):
        _refused_start(runs, "new-on-damaged-corpus", corpora, beyond)
        check(not (runs.runs / "new-on-damaged-corpus" / "metrics.jsonl").exists(), "a run was begun")
    outcome.detection = f"{outcome.survived}/{outcome.injected}"


def _refused_start(runs: Runs, name: str, corpora: Path, hurt: Callable[[], str]) -> None:
    """A start on the damaged corpus says what is damaged."""
    saying = hurt()
    ended = runs.finish(name, *SHORT, "train.steps=30", f"data.dir={corpora}")
    check_code(ended, 3)
    check(saying in ended.told and "Traceback" not in ended.told, f"it said {ended.told[-500:]}")
