"""What a bigger corpus costs per token, for `python -m scripts.bench scaling`.

`python -m scripts.benches.scaling_corpus JSON` makes a corpus, or measures one, and prints a JSON object.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .train_pace import Shape, resident

CONTEXT, ROWS = 256, 16
DOCUMENT = 1000  # tokens, on average
SHARD_BYTES = 64 << 20
ORDERED = 2000  # steps whose rows are looked up, from the middle of the first epoch on
LOADED = 4_000_000  # tokens


def data_config(folder: str) -> Any:
    from data import DataConfig, SourceConfig, SplitConfig, TokenizerConfig

    source = SourceConfig(kind="jsonl", files=(f"{folder}/text.jsonl",))
    split = SplitConfig(val=0.05)
    return DataConfig({"text": source}, dir=f"{folder}/corpora", tokenizer=TokenizerConfig(level="byte"), split=split)


def make(folder: str, nbytes: int) -> dict[str, Any]:
    """A corpus whose tokens take `nbytes` on disk: random ids in documents of every length up to twice the average.

    A small text is prepared as usual; then its shards are replaced, and all that is derived from them removed.
    """
    import numpy as np

    from data import prepare
    from data.columns import pack_ids
    from data.store import MANIFEST, write_shard

    start, generator = time.perf_counter(), np.random.default_rng(0)
    Path(folder).mkdir()
    lines = (json.dumps({"text": f"{i} is a number\n" * 20}) + "\n" for i in range(50))
    Path(folder, "text.jsonl").write_text("".join(lines), encoding="utf-8")
    prepared = prepare(data_config(folder), CONTEXT, progress=False)
    directory, end = prepared.directory, prepared.tokenizer.end_id
    for path in ("shards", "plans", "derived"):
        shutil.rmtree(directory / path, ignore_errors=True)
    (directory / "shards").mkdir()
    (directory / "plans").mkdir()
    shards: list[dict[str, Any]] = []
    left = nbytes // 2
    while left > 0:
        lengths = generator.integers(1, 2 * DOCUMENT, size=max(1, min(left, SHARD_BYTES // 2) // (DOCUMENT + 1)))
        offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
        tokens = generator.integers(0, 256, size=int(offsets[-1]) + 1, dtype=np.uint8).astype("<u2")
        tokens[offsets] = end
        columns = {
            "offsets": offsets, "hash": generator.integers(0, 1 << 63, size=(len(lengths), 2)).astype(np.uint64),
            "nbytes": lengths.astype(np.int64), "flags": np.zeros(len(lengths), np.uint16),
            **pack_ids([str(i) for i in range(len(lengths))]),
        }  # fmt: skip
        name = f"text-{len(shards):05d}"
        shards.append(asdict(write_shard(directory / "shards", name, tokens, None, columns, "text", "train")))
        left -= max(len(tokens), 1)
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8")) | {"shards": shards}
    (directory / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    planned = time.perf_counter()
    prepare(data_config(folder), CONTEXT, progress=False)
    return {"made": planned - start, "planned": time.perf_counter() - planned,
            "tokens": sum(shard["tokens"] for shard in shards)}  # fmt: skip


def measure(folder: str, seconds: float, shape: dict[str, int]) -> dict[str, Any]:
    """Seconds to open; and per token to put rows in order, to load them, and of a training step with its rows."""
    import torch

    from assemble import set_up_process
    from data import Loader, prepare
    from learner import build_learner
    from trainer.distributed import Place, Ranks

    from .train_ours import Step, config_of

    before, size, device = resident("RssAnon"), Shape(**shape), torch.device("cpu")
    start = time.perf_counter()
    prepared = prepare(data_config(folder), CONTEXT, progress=False)
    loader = Loader(prepared, batch_rows=ROWS, micro_rows=ROWS, seed=1)
    loader.step(0)
    opened, tokens = time.perf_counter() - start, ROWS * CONTEXT
    epoch = max(1, prepared.train.rows // ROWS)
    start = time.perf_counter()
    for i in range(epoch // 2, epoch // 2 + ORDERED):
        loader.row_ids(i)
    ordered = (time.perf_counter() - start) / (ORDERED * tokens)
    steps = max(1, min(LOADED // tokens, 4 * epoch))
    start = time.perf_counter()
    for _ in loader.steps(0, steps):
        pass
    loaded = (time.perf_counter() - start) / (steps * tokens)
    memory = resident("RssAnon") - before

    config = config_of(size, "auto", {})
    set_up_process(config, Place(), device)
    learner = build_learner(config, prepared.tokenizer.vocab_size, Ranks(Place(), device), device)
    step, loader = Step(learner), Loader(prepared, batch_rows=ROWS, micro_rows=learner.micro_rows, seed=1)
    start, count, targets = time.perf_counter(), 0, 0
    for rows in loader.steps(0, 1 << 30):
        step(rows.micro, rows.targets)
        count, targets = count + 1, targets + rows.targets
        if count == 2:  # what begins slowly has begun
            start, targets = time.perf_counter(), 0
        if count > 3 and time.perf_counter() - start > seconds:
            break
    trained = (time.perf_counter() - start) / targets
    return {"rows": prepared.train.rows, "opened": opened, "ordered": ordered, "loaded": loaded, "trained": trained,
            "memory": memory}  # fmt: skip


PARTS: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "measure": measure}


def main(argv: Sequence[str]) -> None:
    asked = json.loads(argv[0])
    part = PARTS[asked.pop("part")]
    print(json.dumps(part(**asked)))


if __name__ == "__main__":
    main(sys.argv[1:])
