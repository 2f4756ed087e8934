"""Small corpora for the tests of data/."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.config import DataConfig, SourceConfig, TokenizerConfig, TrainTokenizerConfig

BYTE = TokenizerConfig(level="byte")
WORDS = ["def", "return", "self", "import", "for", "while", "in", "é", "中文", "x1", "0.5", "==", "{", "}", "#", "note"]


def write_files(folder: Path, texts: Mapping[str, str | bytes]) -> Path:
    """Files below a folder, made in the order given."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def random_texts(count: int, seed: int = 0, longest: int = 80) -> dict[str, str]:
    """Texts of 1 to `longest` words, all different."""
    rng = random.Random(seed)
    texts = {}
    for i in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, longest))]
        texts[f"f{i:03d}.txt"] = f"{seed}:{i} " + " ".join(words) + "\n"
    return texts


def text_source(folder: Path, **kwargs: Any) -> SourceConfig:
    return SourceConfig(kind="text", files=(f"{folder}/**/*",), **kwargs)


def text_config(tmp_path: Path, texts: Mapping[str, str | bytes] | None = None, **kwargs: Any) -> DataConfig:
    """One source `a` of files in `tmp_path/a`, bytes as tokens, unless told otherwise."""
    folder = tmp_path / "a"
    write_files(folder, random_texts(40) if texts is None else texts)
    defaults: dict[str, Any] = {"sources": {"a": text_source(folder)}, "dir": str(tmp_path / "out"), "tokenizer": BYTE}
    return DataConfig(**(defaults | kwargs))


def bpe(vocab_size: int = 300) -> TokenizerConfig:
    return TokenizerConfig(train=TrainTokenizerConfig(vocab_size=vocab_size))


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory and what it holds."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def corpora(folder: str | Path) -> Sequence[Path]:
    """The corpus directories in `data.dir`."""
    return [path for path in sorted(Path(folder).iterdir()) if path.is_dir()]
