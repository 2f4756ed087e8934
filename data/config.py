"""What the data section of a config may say: plain frozen dataclasses, no behaviour."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

SOURCE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""What a source may be called: names become file names."""


STATISTICS = {
    "chars": "characters",
    "words": "runs of letters and digits",
    "lines": "lines that are not blank",
    "mean_word": "mean length of words, characters",
    "mean_line": "mean length of lines, characters",
    "max_line": "longest line, characters",
    "letters": "share of characters that are letters",
    "digits": "share of characters that are digits",
    "symbols": "share of characters that are neither letters, digits nor white space",
    "whitespace": "share of characters that are white space",
    "duplicate_lines": "share of bytes in lines that stood before",
    "repeated_ngrams": "share of word 5-grams that stood before",
}
"""What is measured of every document and may be bounded."""


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from. One document is one file, one line, one table row or one dataset row."""

    kind: Literal["python", "code", "text", "jsonl", "csv", "parquet", "hf"]
    """python: installed packages; code: folders of source code; text: files; jsonl: JSON lines; csv, parquet: tables;
    hf: a Hugging Face dataset. Files of text, jsonl and csv may be compressed (.gz, .zst)."""
    packages: tuple[str, ...] = ()
    """python: `stdlib` or import names of installed packages; every non-test `.py` file is a document."""
    files: tuple[str, ...] = ()
    """Paths or globs (`**` recurses), relative to the working directory; code: folders too; text, jsonl: `-` is
    standard input."""
    exclude: tuple[str, ...] = ()
    """Globs of paths (relative to the package, the folder or the working directory) to leave out."""
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
    """jsonl, csv, parquet, hf: the field that holds the text."""
    messages: str | None = None
    """jsonl, parquet, hf: the field that holds a conversation, `[{role, content}, ...]`, instead of a text."""
    template: Literal["chatml", "plain"] = "chatml"
    """How a conversation is spelled; see `data.chat`."""
    train_on: tuple[str, ...] = ("assistant",)
    """Roles whose turns are targets; all else of a conversation is only read."""
    id: str | None = None
    """jsonl, csv, parquet, hf: the field that names a document; without it, its place does."""
    labels: dict[str, str] = field(default_factory=dict)
    """Label -> the field that holds it, such as `{language: lang, domain: site}`; results are reported by label."""
    constants: dict[str, str] = field(default_factory=dict)
    """Label -> its value for every document of this source."""
    weight: str | None = None
    """jsonl, csv, parquet, hf: the field that holds a document's weight in the loss, a number of at least 0."""
    encoding: str = "utf-8"
    """text, code, python, jsonl, csv: how files are encoded, such as `latin-1`."""
    license: str | None = None
    """For the data card; those of Python packages are found."""
    origin: str | None = None
    """code, text, jsonl, csv, parquet: where the files are to be had, such as an address; told when one is missing."""
    max_documents: Annotated[int, Ge(1)] | None = None
    """Stop after so many documents."""


@dataclass(frozen=True)
class TrainTokenizerConfig:
    """Byte-level BPE trained on the corpus itself."""

    vocab_size: Annotated[int, Ge(257), Le(1 << 20)] = 4096
    """Ids in all: 256 bytes, merges, specials, and last `<|endoftext|>`."""
    sample_bytes: Annotated[int, Ge(1)] = 50_000_000
    """Train on a deterministic sample of about this many bytes."""
    max_document_bytes: Annotated[int, Ge(1)] | None = None
    """At most so much of one document, so that a few long ones do not fill the sample."""
    pattern: str = "gpt4"
    """How text is cut before merges: `gpt4`, `gpt2`, or a regular expression."""
    digits: Annotated[int, Ge(1), Le(3)] = 3
    """gpt4: digits in groups of at most so many."""
    min_frequency: Annotated[int, Ge(0)] = 0
    """Merge only pairs that are seen so often."""


TOKENIZERS = ("train", "file", "level", "tiktoken")
"""The ways to come by a tokenizer."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Exactly one of `train`, `file`, `level`, `tiktoken`. `tokenizer: byte` is short for `{level: byte}`."""

    train: TrainTokenizerConfig | None = None
    """Train a byte-level BPE."""
    file: str | None = None
    """A tokenizer.json to load."""
    level: Literal["byte", "char"] | None = None
    """byte: 256 ids, nothing to learn; char: one id for each character of the corpus."""
    tiktoken: str | None = None
    """A `.tiktoken` file, or a name (`gpt2`, `cl100k_base`, `o200k_base`) whose file is in TIKTOKEN_CACHE_DIR;
    nothing is downloaded."""
    specials: tuple[str, ...] = ()
    """More special tokens, such as `<|fim_prefix|>`; those that `pack.fim` and `messages` need are added by
    themselves."""


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
class Bounds:
    """What is kept: values from `min` to `max`, both included; null: no bound."""

    min: float | None = None
    max: float | None = None


@dataclass(frozen=True)
class NearConfig:
    """Near duplicates by MinHash (Broder, 1997) and banding: of texts that share most word n-grams one is kept."""

    ngram: Annotated[int, Ge(1)] = 5
    """Words of a shingle."""
    bands: Annotated[int, Ge(1)] = 14
    """Texts that agree in one band are candidates."""
    rows: Annotated[int, Ge(1)] = 8
    """Hashes of a band."""
    similarity: Annotated[float, Gt(0), Le(1)] = 0.75
    """Candidates whose estimated Jaccard similarity is lower are both kept."""


@dataclass(frozen=True)
class DecontaminateConfig:
    """Documents that share a word n-gram with an evaluation file are left out (Brown et al., 2020, appendix C)."""

    files: Annotated[tuple[str, ...], MinLen(1)]
    """Paths or globs; every text in them counts: `.jsonl` by its strings, all else as plain text; both may be
    compressed (.gz, .zst)."""
    ngram: Annotated[int, Ge(1)] = 13
    """Words; a shorter evaluation text counts whole, and one of fewer than 4 words only where a document is nothing
    else."""


@dataclass(frozen=True)
class CleanConfig:
    """Which documents are used. All are masks over tokenized documents: a change costs a new plan, no tokenization."""

    undecodable: Literal["drop", "keep"] = "drop"
    """What is not valid in its encoding: left out, or kept with U+FFFD where it is broken."""
    exact: bool = True
    """Of equal texts, use one."""
    near: NearConfig | None = None
    """Of nearly equal texts, use one."""
    keep: dict[str, Bounds] = field(default_factory=dict)
    """Bounds on statistics of a document, such as `{chars: {min: 32}, digits: {max: 0.3}}`; see STATISTICS."""
    languages: tuple[str, ...] = ()
    """Values of the label `language` to keep; empty: all."""
    decontaminate: DecontaminateConfig | None = None
    """Leave out what would leak evaluation texts into training."""


@dataclass(frozen=True)
class FimConfig:
    """Fill in the middle (Bavarian et al., 2022, arXiv:2207.14255): a piece as prefix, suffix, middle. Never in
    validation."""

    rate: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the documents."""
    spm: Annotated[float, Ge(0), Le(1)] = 0.5
    """Share of these that show the suffix first."""
    sources: tuple[str, ...] = ()
    """Names of the sources it is for; empty: all."""


@dataclass(frozen=True)
class PackConfig:
    """How documents become rows of equal length. Validation rows are always packed as by `bfd`, without `fim`, so that
    losses compare across modes."""

    mode: Literal["bfd", "truncate", "concat", "pad"] = "bfd"
    """bfd: documents longer than a row are split, then best-fit decreasing; truncate: their rest is lost instead;
    concat: one stream, cut; pad: one piece a row."""
    document_mask: bool = True
    """Attention stays inside a document and positions restart at each one."""
    fim: FimConfig | None = None
    """Fill in the middle."""


@dataclass(frozen=True)
class PhaseConfig:
    """Another mixture from some point of the run on."""

    at: Annotated[int, Ge(1)] | Annotated[float, Gt(0), Lt(1)] | str
    """A length: fraction below 1, steps, or such as `5M tokens`."""
    mixture: dict[str, Annotated[float, Ge(0)]]
    """Shares from there on; 0 leaves a source out."""


@dataclass(frozen=True)
class CurriculumConfig:
    """Easy rows first: the rows that may be drawn grow from the easiest quarter to all (Platanios et al., 2019)."""

    by: str
    """What makes a row hard: a statistic, `tokens` (a document's length), or a label that holds numbers."""
    descending: bool = False
    """Large values are easy."""
    over: Annotated[int, Ge(1)] | Annotated[float, Gt(0), Le(1)] | str = 0.5
    """A length: when all rows may be drawn."""


@dataclass(frozen=True)
class DataConfig:
    sources: Annotated[dict[str, SourceConfig], MinLen(1)]
    """Named corpora; validation is reported for each."""
    dir: str = "corpora"
    """Prepared corpora live in `<dir>/<hash>/`."""
    tokenizer: TokenizerConfig = TokenizerConfig(train=TrainTokenizerConfig())
    """How text becomes ids."""
    redact: tuple[Literal["email", "ip"], ...] = ()
    """Replace e-mail addresses and public IP addresses by reserved ones, before anything else."""
    detect_language: bool = False
    """Give documents without the label `language` the one that py3langid sees (extra `language`)."""
    clean: CleanConfig = CleanConfig()
    """Which documents are used."""
    split: SplitConfig = SplitConfig()
    """What is held out for validation."""
    pack: PackConfig = PackConfig()
    """How documents become rows."""
    mixture: dict[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    """Share of training tokens (valid targets) for each source; empty: in proportion to size."""
    phases: tuple[PhaseConfig, ...] = ()
    """Other mixtures later in the run, in the order of their starts."""
    curriculum: CurriculumConfig | None = None
    """Easy rows first."""
    max_epochs: Annotated[float, Gt(0)] | None = None
    """Refuse a run that would go through a source more often than this."""
    max_bad_fraction: Annotated[float, Ge(0), Le(1)] = 0.01
    """Refuse a corpus with a source of whose documents more than this share are unreadable."""
    workers: Literal["auto"] | Annotated[int, Ge(1)] = "auto"
    """Processes that encode; auto: one for each core, fewer for a small corpus. The result does not depend on it."""
