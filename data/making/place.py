"""Where the corpus of a config lives, and what no corpus can be made of."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from durable import sha256

from ..config import SOURCE_NAME, TOKENIZERS, DataConfig, SourceConfig
from ..errors import DataError
from ..reading.files import STDIN
from ..store import FORMAT
from ..tokens.ranks import find_ranks
from ..tokens.vocabulary import all_specials, checked_pattern
from .attempt import deciding, given

_NEEDS = {"python": "packages", "hf": "path"} | dict.fromkeys(("code", "text", "jsonl", "csv", "parquet"), "files")


def corpus_directory(config: DataConfig) -> Path:
    """Where the corpus of a config lives: named by the sources and the tokenizer, which decide its tokens."""
    tokenizer: dict[str, Any] = given(config.tokenizer)
    if config.tokenizer.file is not None:
        path = Path(config.tokenizer.file)
        if not path.is_file():
            raise DataError(f"data.tokenizer.file: no file {path}")
        tokenizer["file"] = sha256(path)
    if config.tokenizer.tiktoken is not None:
        tokenizer["tiktoken"] = sha256(find_ranks(config.tokenizer.tiktoken))
    if specials := all_specials(config):
        tokenizer["specials"] = specials
    key = {
        "format": FORMAT,
        "sources": [[name, _located(source)] for name, source in config.sources.items()],
        "val": [[name, _located(source)] for name, source in config.split.sources.items()],
        "tokenizer": tokenizer,
        "text": [config.redact, config.detect_language],
    }
    return Path(config.dir) / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def _located(source: SourceConfig) -> dict[str, Any]:
    """What is given of a source, with the place of what is relative to the working directory."""
    found = deciding(source)
    if source.files:
        found["files"] = [pattern if pattern == STDIN else os.path.abspath(pattern) for pattern in source.files]
        if source.exclude:  # its patterns are held against paths as they are spelled
            found["spelled"] = source.files
    if source.kind == "hf" and source.path is not None:
        builder = "/" not in source.path  # a name on the hub has its files there
        if source.data_files and builder:
            found["data_files"] = [file if "://" in file else os.path.abspath(file) for file in source.data_files]
        if os.path.exists(source.path):
            found["path"] = os.path.abspath(source.path)
    return found


def checked_directory(config: DataConfig, context: int) -> Path:
    """Where the corpus lives. Raises DataError for a config or context that cannot be prepared."""
    check(config)
    if context < 1:
        raise DataError(f"context is {context}; rows need at least 1 token")
    return corpus_directory(config)


def check(config: DataConfig) -> None:
    """Raise DataError for what the types of a config cannot rule out."""
    if not config.sources:
        raise DataError("data.sources is empty: name at least one source")
    for where, sources in (("data.sources", config.sources), ("data.split.sources", config.split.sources)):
        for name, source in sources.items():
            if not re.fullmatch(SOURCE_NAME, name):
                rule = "is 1 to 64 letters, digits, _ and -, the first a letter or digit"
                raise DataError(f"{where}: the name of a source {rule}, not {name!r}")
            if source.kind not in _NEEDS:
                raise DataError(f"{where}.{name}.kind is {source.kind!r}; it may be {', '.join(_NEEDS)}")
            if not getattr(source, _NEEDS[source.kind]):
                raise DataError(f"{where}.{name}: kind {source.kind} needs {_NEEDS[source.kind]}")
    chosen = [name for name in TOKENIZERS if getattr(config.tokenizer, name) is not None]
    if len(chosen) != 1:
        ways = ", ".join(TOKENIZERS)
        raise DataError(f"data.tokenizer needs exactly one of {ways}; given: {', '.join(chosen) or 'none'}")
    specials = all_specials(config)
    if config.tokenizer.train is not None:
        checked_pattern(config.tokenizer.train, specials)
    unknown = set(config.mixture) ^ set(config.sources) if config.mixture else set()
    if unknown:
        raise DataError(f"data.mixture must name every source once or be empty; look at {', '.join(sorted(unknown))}")
