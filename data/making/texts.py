"""Any text as held-out rows, to measure a model on: a corpus of its own, with nothing to train on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..cleaning.choose import choose_documents
from ..config import CleanConfig, DataConfig, PackConfig, SourceConfig, SplitConfig, TokenizerConfig
from ..errors import DataError
from ..prepared import Prepared
from ..rows.plan import VAL_MODE, Plan, from_store, make_rows
from ..rows.split import Documents
from .build import build
from .engines import LOCAL

NAME = "data"
"""What the only source is called."""
_RECORDS = ("jsonl", "csv", "parquet", "hf")


def prepare_file(
    file: str, config: DataConfig, labels: Sequence[str], directory: Path, context: int, like: str | None = None
) -> Prepared:
    """The documents of a JSON lines file as rows, prepared in the empty `directory` with the tokenizer in its
    `tokenizer.json`. Every readable one counts, duplicates too; both sides of the result are all of them.

    Fields are named as in the source `like` of `config` or, without, the first that has fields; a label that it does
    not name is the field of that name.
    """
    records = {name: source for name, source in config.sources.items() if source.kind in _RECORDS}
    if like is not None and like not in records:
        raise DataError(f"no source {like!r} with fields; there are {', '.join(records) or 'none'}")
    fields = records[like] if like else next(iter(records.values()), SourceConfig("jsonl"))
    source = SourceConfig(
        kind="jsonl", files=(file,), text=fields.text, messages=fields.messages, template=fields.template,
        train_on=fields.train_on, labels=fields.labels | {name: name for name in labels if name not in fields.labels},
    )  # fmt: skip
    own = replace(
        config, sources={NAME: source}, split=SplitConfig(), pack=PackConfig(document_mask=config.pack.document_mask),
        tokenizer=TokenizerConfig(file=str(directory / "tokenizer.json")), mixture={}, phases=(), curriculum=None,
        max_epochs=None, workers=1, clean=CleanConfig(exact=False),
    )  # fmt: skip
    for folder in ("shards", "plans"):
        (directory / folder).mkdir()
    store = build(own, directory, False, LOCAL)
    documents = Documents.gather(store, (NAME,))
    chosen, dropped = choose_documents(documents, store, own.clean)
    index = np.flatnonzero(chosen)
    if not len(index):
        raise DataError(f"{file}: no document holds text to predict")
    spans = documents.spans.take(index)
    rows = from_store(make_rows(spans, documents.source[index], (NAME,), VAL_MODE, context), store)
    sides = ("train", "val")
    facts = {
        "dropped": dropped,
        "documents": {side: {NAME: len(index)} for side in sides},
        "bytes": {side: {NAME: int(documents.nbytes[index].sum())} for side in sides},
        "lost": {},
    }
    return Prepared(store, Plan(rows, rows, spans, facts), own, context)
