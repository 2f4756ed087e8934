"""The ways to tokens that `python -m scripts.bench data` compares, and what is timed of our own data pipeline.

`python -m scripts.benches.data_contest JSON` does one measurement in a process of its own and prints a JSON object.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

END = "<|endoftext|>"
PROCESSES = 2
FILES = PROCESSES
"""Files of the corpus: datatrove gives a process whole files, and ours shares out parts of them."""
MODES = ("bfd", "truncate", "concat", "pad")
Answer = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a measurement finds its input and may write."""

    corpus: str
    """Folder of FILES JSON lines files; beside it is `files/` with a file for each document."""
    tokenizer: str
    """tokenizer.json that everyone uses."""
    scratch: str
    """An empty folder."""

    def texts(self) -> list[str]:
        """All documents, as strings in memory."""
        files = sorted(Path(self.corpus).glob("*.jsonl"))
        return [json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8")]


# -- tokenizing --------------------------------------------------------------------------------------------------------


def ours(place: Place, workers: int) -> Answer:
    """From files to verified shards on disk, as `prepare` does it: reading, hashing, statistics, starting and
    ending the processes, and the check of the encoder are all in it."""
    from data import DataConfig, SourceConfig, TokenizerConfig
    from data.making.build import Build
    from data.making.engines import LOCAL

    directory = Path(place.scratch)
    for folder in ("shards", "plans"):
        (directory / folder).mkdir()
    source = SourceConfig(kind="text", files=(str(Path(place.corpus).with_name("files") / "*"),))
    config = DataConfig({"corpus": source}, tokenizer=TokenizerConfig(file=place.tokenizer), workers=workers)
    build = Build(config, directory, False)
    start = time.perf_counter()
    build.encode(range(len(build.tasks)), LOCAL)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": sum(shard.tokens for shard in build.commit().shards)}


def raw_tiktoken(place: Place) -> Answer:
    """The encoder alone: texts in memory, one process, ids thrown away."""
    encoding, texts = _tiktoken(place), place.texts()
    start = time.perf_counter()
    tokens = sum(len(encoding.encode_to_numpy(text, disallowed_special=())) for text in texts)
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def batches(place: Place, method: str) -> Answer:
    """`tokenizers` with all its threads, texts in memory, ids thrown away."""
    import tokenizers

    encode = getattr(tokenizers.Tokenizer.from_file(place.tokenizer), method)
    texts, tokens = place.texts(), 0
    start = time.perf_counter()
    for first in range(0, len(texts), 1000):
        tokens += sum(len(found.ids) for found in encode(texts[first : first + 1000]))
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def dataset_map(place: Place, library: str) -> Answer:
    """nanoGPT's recipe (data/openwebtext/prepare.py): ids of one document at a time by `datasets.map`, to Arrow files.
    Making the dataset, and copying the ids from Arrow into one file, are not in it."""
    import datasets

    datasets.disable_progress_bars()
    if library == "tokenizers":
        import tokenizers

        whole = tokenizers.Tokenizer.from_file(place.tokenizer)

        def encode(text: str) -> list[int]:
            return whole.encode(text).ids
    else:
        encode = _tiktoken(place).encode_ordinary

    def process(example: dict[str, str]) -> dict[str, Any]:
        ids = [*encode(example["text"]), 0]
        return {"ids": ids, "len": len(ids)}

    files = sorted(map(str, Path(place.corpus).glob("*.jsonl")))
    data = datasets.load_dataset("json", data_files=files, split="train", cache_dir=place.scratch)
    start = time.perf_counter()
    done = data.map(process, remove_columns=data.column_names, num_proc=PROCESSES)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": sum(done["len"]) - len(done)}


def datatrove(place: Place) -> Answer:
    """Its JSON lines reader and document tokenizer, in two processes of its local executor, which are in it."""
    read, write, run = (  # not declared as a dependency, and imported only where it is installed
        getattr(import_module(f"datatrove.{module}"), name)
        for module, name in (("pipeline.readers", "JsonlReader"), ("pipeline.tokens", "DocumentTokenizer"),
                             ("executor", "LocalPipelineExecutor"))
    )  # fmt: skip
    out = Path(place.scratch)
    steps = [read(place.corpus), write(str(out / "tokens"), place.tokenizer, eos_token=END, shuffle_documents=False)]
    start = time.perf_counter()
    run(steps, tasks=FILES, workers=PROCESSES, logging_dir=str(out / "logs")).run()
    seconds = time.perf_counter() - start
    itemsize = 2 if _vocabulary(place) <= 1 << 16 else 4
    nbytes = sum(file.stat().st_size for file in (out / "tokens").glob("*.ds"))
    return {"seconds": seconds, "tokens": nbytes // itemsize - len(place.texts())}


def _tiktoken(place: Place) -> Any:
    import tiktoken

    from data import load_tokenizer

    tokenizer = load_tokenizer(place.tokenizer)
    steps = tokenizer.spec["pre_tokenizer"]["pretokenizers"]
    pattern = next(step["pattern"]["Regex"] for step in steps if "pattern" in step)
    ranks = {piece: i for i, piece in enumerate(tokenizer.pieces) if piece}
    return tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def _vocabulary(place: Place) -> int:
    from data import load_tokenizer

    return load_tokenizer(place.tokenizer).vocab_size


OURS, OURS_ALONE, RAW = f"ours, {PROCESSES} processes", "ours, 1 process", "tiktoken alone, 1 process"
RECIPE = f"datasets.map, tokenizers, {PROCESSES} processes"
ENCODERS: dict[str, Callable[[Place], Answer]] = {
    OURS: lambda place: ours(place, PROCESSES),
    OURS_ALONE: lambda place: ours(place, 1),
    RAW: raw_tiktoken,
    f"datasets.map, tiktoken, {PROCESSES} processes": lambda place: dataset_map(place, "tiktoken"),
    "tokenizers encode_batch_fast": lambda place: batches(place, "encode_batch_fast"),
    RECIPE: lambda place: dataset_map(place, "tokenizers"),
    "tokenizers encode_batch": lambda place: batches(place, "encode_batch"),
    f"datatrove, {PROCESSES} processes": datatrove,
}


def entrants() -> list[str]:
    """What can be measured here."""
    there = importlib.util.find_spec("datatrove") is not None
    return [name for name in ENCODERS if there or "datatrove" not in name]


# -- the rest of the pipeline ------------------------------------------------------------------------------------------


def corpus_config(files: str, directory: str, tokenizer: str | None) -> Any:
    """JSON lines, as bytes for `byte` and for None with the quickstart's kind of tokenizer."""
    from configs import load
    from data import DataConfig, SourceConfig, SplitConfig, TokenizerConfig

    trained = load("configs/quickstart.yaml").data.tokenizer
    chosen = TokenizerConfig(level="byte") if tokenizer == "byte" else trained
    sources = {"corpus": SourceConfig(kind="jsonl", files=(files,))}
    return DataConfig(sources, dir=directory, tokenizer=chosen, split=SplitConfig(val=0.1))


def packing(files: str, directory: str, documents: int, context: int) -> Answer:
    """`modes` {mode: {seconds, pieces, rows, padding, lost}}: planning rows for so many documents, those of the corpus
    over and over. `lost` is the share of targets that stand in no row."""
    import numpy as np

    from data import prepare
    from data.rows.plan import make_rows
    from data.rows.split import Documents

    prepared = prepare(corpus_config(files, directory, None), context, progress=False)
    gathered = Documents.gather(prepared.store, prepared.source_names)
    index = np.arange(documents) % len(gathered.nbytes)
    spans, source = gathered.spans.take(index), gathered.source[index]
    modes: dict[str, Answer] = {}
    for mode in MODES:
        start = time.perf_counter()
        rows = make_rows(spans, source, prepared.source_names, mode, context)
        seconds, targets = time.perf_counter() - start, int(spans.length.sum())
        modes[mode] = {
            "seconds": seconds, "pieces": len(rows.length), "rows": rows.rows,
            "padding": rows.padding, "lost": 1 - int(rows.length.sum()) / targets,
        }  # fmt: skip
    return {"modes": modes}


def loading(files: str, directory: str, context: int, rows: int, tokens: int) -> Answer:
    """Steps of `rows` rows from the loader's thread, with masks and positions, to a consumer that does nothing."""
    from data import Loader, prepare

    prepared = prepare(corpus_config(files, directory, None), context, progress=False)
    loader = Loader(prepared, batch_rows=rows, micro_rows=rows, seed=0)
    steps = max(1, tokens // (rows * context))
    for _ in loader.steps(0, max(1, steps // 10)):  # pages are then in memory
        pass
    start = time.perf_counter()
    for _ in loader.steps(0, steps):
        pass
    return {"seconds": time.perf_counter() - start, "tokens": steps * rows * context}


def startup(files: str, directory: str, context: int) -> Answer:
    """Opening a prepared corpus until the first batch is there; importing is not in it."""
    from data import Loader, prepare

    config = corpus_config(files, directory, "byte")
    start = time.perf_counter()
    prepared = prepare(config, context, progress=False)
    opened = time.perf_counter() - start
    Loader(prepared, batch_rows=8, micro_rows=8, seed=0).step(0)
    return {"seconds": time.perf_counter() - start, "opened": opened, "documents": _documents(prepared)}


def preparing(files: str, directory: str, context: int, tokenizer: str | None) -> Answer:
    """Preparing a corpus from nothing."""
    from data import prepare

    start = time.perf_counter()
    prepared = prepare(corpus_config(files, directory, tokenizer), context, progress=False)
    return {"seconds": time.perf_counter() - start, "documents": _documents(prepared),
            "tokenizer": str(prepared.directory / "tokenizer.json")}  # fmt: skip


def _documents(prepared: Any) -> int:
    return sum(shard.documents for shard in prepared.store.shards)


PARTS: dict[str, Callable[..., Answer]] = {
    "packing": packing,
    "loading": loading,
    "startup": startup,
    "preparing": preparing,
}


def request(part: str, place: Place | None = None, **options: Any) -> str:
    """What `main` takes: the name of an encoder, with its place, or that of a part, with its options."""
    return json.dumps({"part": part, "place": asdict(place) if place else None, "options": options})


def main(argv: Sequence[str]) -> None:
    asked = json.loads(argv[0])
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    if asked["place"]:
        answer = ENCODERS[asked["part"]](Place(**asked["place"]))
    else:
        answer = PARTS[asked["part"]](**asked["options"])
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
