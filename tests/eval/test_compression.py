"""The yardstick against one-shot compression and the programs it is named after."""

import gzip
import lzma
import os
import random
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.compression import compressed


def documents() -> list[bytes]:
    source = Path(random.__file__).read_bytes() + Path(os.__file__).read_bytes()
    return [source[i : i + 997] for i in range(0, len(source), 997)] + [b""]


def test_one_pass_equals_one_shot() -> None:
    pieces = documents()
    data = b"".join(pieces)
    got = compressed(iter(pieces))
    assert got["gzip -9"] == 8 * len(gzip.compress(data, 9, mtime=0)) / len(data)
    assert got["xz -9"] == 8 * len(lzma.compress(data, preset=9)) / len(data)
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    size = len(raw.compress(data) + raw.flush())
    assert got["gzip -9"] == 8 * (size + 18) / len(data)  # 10 bytes before, checksum and length after
    assert 1 < got["xz -9"] < got["gzip -9"] < 3


@pytest.mark.parametrize(("program", "label", "within"), [("gzip", "gzip -9", 2e-3), ("xz", "xz -9", 1e-3)])
def test_the_programs_agree(program: str, label: str, within: float) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    data = b"".join(documents())
    flags = ["-9", "-n", "-c"] if program == "gzip" else ["-9", "-c"]
    out = subprocess.run([program, *flags], input=data, capture_output=True, check=True).stdout
    assert compressed([data])[label] == pytest.approx(8 * len(out) / len(data), rel=within)


def test_the_documents_are_not_kept() -> None:
    alive = 0

    class Document(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream() -> Iterator[bytes]:
        nonlocal alive
        for i in range(50):
            assert alive <= 2
            alive += 1
            yield Document(str(i).encode() * 100)

    assert set(compressed(stream())) == {"gzip -9", "xz -9"}


def test_an_empty_stream() -> None:
    assert compressed([]) == {} == compressed([b""])
