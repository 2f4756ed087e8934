"""The card of a prepared corpus: what is in it, what was left out, how it was made; for people.

A card is a pure function of the corpus, the plan and the config: no times, no paths of the machine but those that the
config spells. Counts are exact, unless the card says that they come from a sample.
"""

import dataclasses
import functools
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from durable import atomic_write, sha256

from ..config import SourceConfig
from ..reading.packages import licenses
from ..store import MANIFEST
from . import contents as card_contents
from .markup import to_html
from .page import Bars, Block, Code, Section, Stack, Table, Tiles, share, short, size_text, to_markdown

if TYPE_CHECKING:
    from ..prepared import Prepared

FILES = ("card.md", "card.html")
_TOP = 10  # values of a label
_LANGUAGES = 7  # in the picture

_log = logging.getLogger(__name__)


def write_card(prepared: "Prepared") -> list[Path]:
    """Write `card.md` and `card.html` into the corpus directory; gives their paths. A file that is right stays."""
    title, parts = f"Data card: {', '.join(prepared.source_names)}", sections(prepared)
    paths = [prepared.directory / name for name in FILES]
    for path, make in zip(paths, (to_markdown, to_html), strict=True):
        content = make(title, parts).encode(errors="backslashreplace")
        if not path.is_file() or path.read_bytes() != content:
            atomic_write(path, content)
    return paths


def try_write_card(prepared: "Prepared") -> None:
    """`write_card` for a preparation, which a card may never fail: what goes wrong is logged."""
    try:
        write_card(prepared)
    except Exception as error:
        _log.warning("no data card: %s: %s", type(error).__name__, error)


def sections(prepared: "Prepared") -> list[Section]:
    """All that a card says."""
    labels = _labels(prepared)
    return [
        Section("", _overview(prepared)),
        Section("Sources", _sources(prepared)),
        *([Section("Labels", labels)] if labels else []),
        Section("Documents", card_contents.documents(prepared)),
        Section("Left out", card_contents.left_out(prepared)),
        Section("Split and rows", card_contents.rows(prepared)),
        Section("Tokenizer", card_contents.tokenizer(prepared)),
        Section("Samples", card_contents.samples(prepared)),
        Section("How to make it again", _recipe(prepared)),
    ]


def _sums(prepared: "Prepared") -> dict[tuple[str, str], Counter[str]]:
    """documents, bytes and tokens of each (side, source), in the order of the store."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for shard in prepared.store.shards:
        here = found.setdefault((shard.side, shard.source), Counter())
        here.update(documents=shard.documents, bytes=shard.bytes, tokens=shard.tokens)
    return found


def _overview(prepared: "Prepared") -> list[Block]:
    total = sum(_sums(prepared).values(), Counter[str]())
    facts = prepared.plan.facts
    used, held_out = (sum(facts["bytes"][side].values()) for side in ("train", "val"))
    return [
        Tiles([
            ("documents read", f"{total['documents']:,}"),
            ("text", size_text(total["bytes"])),
            ("tokens", short(total["tokens"])),
            ("bytes a token", f"{total['bytes'] / max(1, total['tokens']):.2f}"),
            ("vocabulary", f"{prepared.tokenizer.vocab_size:,}"),
            ("trained on", size_text(used)),
            ("held out", size_text(held_out)),
            ("training rows", f"{prepared.train.rows:,}"),
        ])
    ]  # fmt: skip


# Sources and labels


def _sources(prepared: "Prepared") -> list[Block]:
    sums = _sums(prepared)
    whole = sum(here["tokens"] for here in sums.values())
    rows, stack, ratio = [], [], []
    for (side, name), here in sums.items():
        config = (prepared.config.sources if side == "train" else prepared.config.split.sources)[name]
        shown = name if side == "train" else f"{name} (held out)"
        rows.append((shown, _places(config), f"{here['documents']:,}", size_text(here["bytes"]),
                     f"{here['tokens']:,}", share(here["tokens"], whole), _license(config)))  # fmt: skip
        stack.append((shown, here["tokens"], share(here["tokens"], whole)))
        per_token = here["bytes"] / max(1, here["tokens"])
        ratio.append((shown, per_token, f"{per_token:.2f}"))
    blocks: list[Block] = [Stack("Share of tokens", stack)] if len(stack) > 1 else []
    head = ("source", "from", "documents", "text", "tokens", "share", "license")
    return [
        *blocks,
        Table(head, rows),
        *([Bars("Bytes a token", ratio)] if len(ratio) > 1 else []),
        *_packages(prepared),
    ]


def _license(config: SourceConfig) -> str:
    return config.license or ("by package, see below" if config.kind == "python" else "not given")


def _places(config: SourceConfig) -> str:
    """What a source reads, as the config spells it, and where that is to be had."""
    places = (*config.packages, *config.files, *([config.path] if config.path else []), *config.data_files)
    return f"{config.kind}: {', '.join(places)}{f' ({config.origin})' * bool(config.origin)}"


def _packages(prepared: "Prepared") -> list[Block]:
    versions: dict[str, str] = prepared.store.manifest["packages"]
    if not versions:
        return []
    sources = (*prepared.config.sources.values(), *prepared.config.split.sources.values())
    packages = tuple(package for source in sources for package in source.packages)
    found = licenses(SourceConfig("python", packages=packages))
    rows = [(name, version, found.get(name, "unknown")) for name, version in versions.items()]
    return [Table(("package", "version", "license"), rows)]


def _labels(prepared: "Prepared") -> list[Block]:
    """Every label's most frequent values; languages first, and as a picture."""
    store, blocks = prepared.store, list[Block]()
    nbytes = np.concatenate([np.zeros(0, np.int64), *store.column("nbytes")])
    tokens = card_contents.lengths(prepared)
    for name in sorted(store.label_names, key=lambda name: (name != "language", name)):
        codes, values = store.label(name)
        columns = [np.bincount(codes + 1, weights, len(values) + 1) for weights in (None, nbytes, tokens)]
        sums = np.stack(columns, -1).astype(np.int64)  # (values + 1, 3); first those without a value
        order = np.argsort(-sums[1:, 1], kind="stable")
        parts = [(values[i], sums[1 + i]) for i in order[:_TOP].tolist()]
        if len(values) > _TOP:
            parts.append((f"{len(values) - _TOP:,} others", sums[1:][order[_TOP:]].sum(0)))
        if sums[0, 0]:
            parts.append(("(none)", sums[0]))
        if name == "language":
            named = [(value, int(part[1])) for value, part in parts[:_LANGUAGES]]
            named.append(("all else", int(nbytes.sum()) - sum(size for _, size in named)))
            blocks.append(Stack("Languages by bytes", [(x, y, share(y, nbytes.sum())) for x, y in named if y]))
        rows = [(value, f"{part[0]:,}", size_text(part[1]), f"{part[2]:,}", share(part[2], tokens.sum()))
                for value, part in parts]  # fmt: skip
        blocks.append(Table((name, "documents", "text", "tokens", "share"), rows))
    return blocks


# How to make it again


def _recipe(prepared: "Prepared") -> list[Block]:
    store = prepared.store
    rows = [
        ("corpus", store.directory.name),
        ("manifest.json", sha256(store.directory / MANIFEST)),
        ("tokenizer.json", prepared.tokenizer_hash),
        ("plan", prepared.plan.digest),
        ("fingerprint", prepared.fingerprint),
        ("shards", f"{len(store.shards):,}, each with its sha256 in manifest.json"),
        ("python", store.manifest["python"]),
    ]
    lines = [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in spelled(prepared.config).items()
             if name not in ("dir", "workers")]  # fmt: skip
    text = "\n".join(["data:", *lines, f"model: {{context: {prepared.context}}}"])
    return [Table((), rows), Code("In a config", text)]


@functools.singledispatch
def spelled(value: Any) -> Any:
    """What of a config is not at its default, as JSON values."""
    if not dataclasses.is_dataclass(value):
        return value
    defaults = {f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
                for f in dataclasses.fields(value)}  # fmt: skip
    return {name: spelled(x) for name, default in defaults.items() if (x := getattr(value, name)) != default}


@spelled.register
def _(value: dict) -> Any:
    return {name: spelled(x) for name, x in value.items()}


@spelled.register(tuple)
@spelled.register(list)
def _(value: Sequence[Any]) -> Any:
    return [spelled(x) for x in value]
