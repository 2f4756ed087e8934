"""What the data section of a config may say: plain frozen dataclasses, no behaviour."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

SOURCE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""What a source may be called: names become file names."""


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from. One document is one file, one JSON line or one dataset row."""

    kind: Literal["python", "text", "jsonl", "hf"]
    """python: installed packages; text: files; jsonl: JSON lines (.gz too); hf: a Hugging Face dataset."""
    packages: tuple[str, ...] = ()
    """python: `stdlib` or import names of installed packages; every non-test `.py` file is a document."""
    files: tuple[str, ...] = ()
    """text, jsonl: paths or globs (`**` recurses), relative to the working directory."""
    exclude: tuple[str, ...] = ()
    """Globs of paths (relative to the package or the working directory) to leave out."""
    path: str | None = None
    """hf: dataset name on the hub, a local dataset directory, or a builder (`json`, `parquet`, `text`)."""
    name: str | None = None
    """hf: configuration name."""
    split: str = "train"
    """hf: split to read."""
    data_files: tuple[str, ...] = ()
    """hf: local files for a builder."""
    streaming: bool = False
    """hf: read without downloading the whole dataset first."""
    text: str = "text"
    """jsonl, hf: the field that holds the text."""
    max_documents: Annotated[int, Ge(1)] | None = None
    """Stop after so many documents."""


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """Byte-level BPE trained on the corpus itself."""

    vocab_size: Annotated[int, Ge(257), Le(1 << 20)] = 4096
    """Ids in all: 256 bytes, merges, and one special `<|endoftext|>`."""
    sample_bytes: Annotated[int, Ge(1)] = 50_000_000
    """Train on a deterministic sample of about this many bytes."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Exactly one of `train`, `file`, `level`. `tokenizer: byte` is short for `{level: byte}`."""

    train: TrainTokenizerConfig | None = None
    """Train a byte-level BPE."""
    file: str | None = None
    """A tokenizer.json to load."""
    level: Literal["byte", "char"] | None = None
    """byte: 256 ids, nothing to learn; char: one id for each character of the corpus."""


@dataclass(frozen=True)
class SplitConfig:
    """How validation documents are held out."""

    val: Annotated[float, Gt(0), Lt(1)] = 0.01
    """Fraction held out."""
    by: Literal["hash", "tail"] = "hash"
    """hash: by a hash of the text, so that equal texts share a side and a growing corpus moves none;
    tail: the last part of each file, for a single long text."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Validation documents from sources of their own; `val` and `by` are then unused."""


@dataclass(frozen=True)
class PackConfig:
    """How documents become rows of equal length."""

    mode: Literal["bfd", "concat"] = "bfd"
    """bfd: documents longer than a row are split, then best-fit decreasing; concat: one stream, cut."""
    document_mask: bool = True
    """Attention stays inside a document and positions restart at each one."""


@dataclass(frozen=True)
class DataConfig:
    sources: Annotated[dict[str, SourceConfig], MinLen(1)]
    """Named corpora; validation is reported for each."""
    dir: str = "corpora"
    """Prepared corpora live in `<dir>/<hash>/`."""
    tokenizer: TokenizerConfig = TokenizerConfig(train=TrainTokenizerConfig())
    """How text becomes ids."""
    split: SplitConfig = SplitConfig()
    """What is held out for validation."""
    pack: PackConfig = PackConfig()
    """How documents become rows."""
    mixture: dict[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """Share of training tokens (valid targets) for each source; empty: in proportion to size."""
    max_bad_fraction: Annotated[float, Ge(0), Le(1)] = 0.01
    """Refuse a corpus in which more documents than this are unreadable."""
