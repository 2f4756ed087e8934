"""Throughput of the data pipeline: `python -m scripts.bench data`.

Tokenizing beside tiktoken alone, tokenizers, `datasets.map` as nanoGPT's recipe uses it and, where it is installed,
datatrove: the same documents and the same ids, each measurement in a process of its own, repeats interleaved. Then
packing, loading and start-up of ours. The default sizes take about 7 minutes on two CPU cores.
"""

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from configs import entry, load
from durable import atomic_write

from .data_contest import FILES, Place, entrants, request
from .measuring import ROOT, Parser, asked_for, last_words, positive

RECIPE = "configs/quickstart.yaml"
METRICS = ROOT / "docs" / "quickstart.metrics.jsonl"
SHAPES = {"the quickstart's rows": (256, 8), "long rows": (2048, 32)}  # context, rows of a step
LOADED = 20_000_000  # tokens
PACKED = 1_000_000  # documents
WORDS = ("one", "of", "many", "short", "documents", "with", "nothing", "to", "say")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("data", "Throughput of tokenizing, packing, loading and start-up.")
    parser.add_argument("--megabytes", type=positive, default=64, metavar="N", help="text that is tokenized, at most")
    parser.add_argument("--repeats", type=positive, default=3, metavar="R", help="medians are of so many")
    parser.add_argument("--documents", type=positive, default=1_000_000, metavar="N", help="documents of the start-up")
    parser.add_only("encoders")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), metavar="DIR",
                        help="where bench_data.json and bench_data.png go")  # fmt: skip
    return parser.parse_args(argv)


@entry
def main(argv: Sequence[str]) -> None:
    args = arguments(argv)
    from .data_report import draw, tables

    names = asked_for(entrants(), args.only)
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {**surroundings(), "settings": {**vars(args), "out": str(args.out)}}
    print(report["told"], flush=True)
    with tempfile.TemporaryDirectory(prefix="thimble-bench-") as folder:
        report["corpus"] = write_corpus(Path(folder) / "corpus", args.megabytes * 10**6)
        report |= our_own(Path(folder), args.documents)
        report["encode"] = contest(Path(folder), names, args.repeats, report["preparing"]["tokenizer"])
    atomic_write(args.out / "bench_data.json", json.dumps(report, indent=1) + "\n")
    print(*tables(report), f"files   {args.out}/bench_data.json and .png", sep="\n")
    draw(report, args.out / "bench_data.png")


def surroundings() -> dict[str, Any]:
    """Hardware and versions, one line that tells them, and how fast the quickstart trains."""
    from assemble import usable_cpus
    from trainer.rundir import environment

    made = environment("cpu", 0, {"load": list(os.getloadavg())})
    told = f"{made['cpu']}, {usable_cpus()} CPUs; load {made['load'][0]:.1f} before the start"
    rates = [json.loads(line).get("train/tokens_per_s") for line in METRICS.read_text().splitlines()]
    return {"told": told, "environment": made, "consumption": statistics.median(filter(None, rates))}


def write_corpus(folder: Path, nbytes: int) -> dict[str, int]:
    """About `nbytes` of the quickstart's documents, drawn by a hash of their text, as FILES JSON lines files and, in
    `files/` beside `folder`, as one file each."""
    from data.sources import list_tasks, read

    config = load(RECIPE).data
    tasks = [task for name, source in config.sources.items() for task in list_tasks(name, "train", source)]
    share = nbytes / max(sum(task.size for task in tasks), 1)
    singles = folder.with_name("files")
    folder.mkdir()
    singles.mkdir()
    documents = written = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{i}.jsonl", "w", encoding="utf-8")) for i in range(FILES)]
        for document in (document for task in tasks for document in read(task)):
            if document.problem or not document.text or _draw(document.text) >= share:
                continue
            files[documents % FILES].write(json.dumps({"text": document.text}) + "\n")
            (singles / f"{documents:06d}.py").write_bytes(document.text.encode())
            documents, written = documents + 1, written + len(document.text.encode())
    return {"documents": documents, "bytes": written}


def _draw(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") / 2**32


def our_own(folder: Path, documents: int) -> dict[str, Any]:
    """What only we do: preparing, packing, loading, start-up. Each in a new process."""
    files, directory, small = f"{folder}/corpus/*.jsonl", str(folder / "corpora"), SHAPES["the quickstart's rows"][0]
    place: dict[str, Any] = {"files": files, "directory": directory}
    found: dict[str, Any] = {"preparing": step("preparing", **place, context=small, tokenizer=None)}
    found["packing"] = step("packing", **place, documents=PACKED, context=2048)
    found["loading"] = {
        name: {"context": context, "rows": rows, **step("loading", **place, context=context, rows=rows, tokens=LOADED)}
        for name, (context, rows) in SHAPES.items()
    }
    many = folder / "many.jsonl"
    with many.open("w", encoding="utf-8") as file:
        for i in range(documents):
            file.write(json.dumps({"text": f"{i}: " + " ".join(WORDS[: 2 + i % 8])}) + "\n")
    place = {"files": str(many), "directory": directory, "context": small}
    found["many"] = step("preparing", **place, tokenizer="byte")
    found["startup"] = step("startup", **place)
    return found


def step(part: str, **options: Any) -> dict[str, Any]:
    print(part, file=sys.stderr, flush=True)
    answer = ask(request(part, **options))
    if "failed" in answer:
        raise RuntimeError(f"{part}: {answer['failed']}")
    return answer


def contest(folder: Path, names: Sequence[str], repeats: int, tokenizer: str) -> dict[str, list[dict[str, Any]]]:
    """Answers of each encoder; repeats are interleaved, each starting from another one."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for i in range(repeats):
        turn = i % len(names)
        for name in [*names[turn:], *names[:turn]]:
            print(f"[{i + 1}/{repeats}] {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                found[name].append(ask(request(name, Place(str(folder / "corpus"), tokenizer, scratch))))
    return found


def ask(words: str) -> dict[str, Any]:
    """The answer of a new process, with the peak of what it and its children held in memory; or why it `failed`."""
    command = [sys.executable, "-m", "scripts.benches.data_contest", words]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process, watched(process.pid) as peak:  # fmt: skip
        out, err = process.communicate()
    if process.returncode:
        return {"failed": last_words(process.returncode, err)}
    return json.loads(out.splitlines()[-1]) | {"peak": max(peak, default=None)}


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Resident bytes of a process and all below it, four times a second; pages that they share count for each."""
    seen, ended = list[int](), threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            if total := _resident(pid):
                seen.append(total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def _resident(pid: int) -> int:
    parents, sizes = dict[int, int](), dict[int, int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has just ended
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)], sizes[int(stat.parent.name)] = int(fields[1]), int(fields[21])
    own = {pid}
    while more := {child for child, parent in parents.items() if parent in own} - own:
        own |= more
    return sum(sizes.get(member, 0) for member in own) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
