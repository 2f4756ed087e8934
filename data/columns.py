"""The columns of a shard: what is known of each of its documents, and how text is packed into arrays."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

COLUMNS = {
    "offsets": "i8 (documents + 1): position of the E before each document, then of the last E",
    "hash": "u8 (documents, 2): blake2b-128 of the text",
    "nbytes": "i8 (documents): UTF-8 bytes of the text; of a conversation, with its roles",
    "flags": "u2 (documents): see UNDECODABLE and BLANK",
    "id": "u1: the documents' ids, UTF-8, one after another",
    "id_offsets": "i8 (documents + 1): where each id starts",
    "stat:*": "f4 (documents): a statistic of the text, see data.cleaning.measures",
    "label:*": "i4 (documents): index of the document's value of a label, -1: it has none",
    "values:*": "u1: the values of a label, a JSON list",
    "weight": "f4 (documents): weight in the loss; missing when all are 1",
}
UNDECODABLE = 1
"""Flag: the input was not Unicode; U+FFFD stands where it was not."""
BLANK = 2
"""Flag: nothing but white space."""


def ids_of(columns: Mapping[str, np.ndarray]) -> list[str]:
    """The documents' ids of one shard's columns."""
    blob, offsets = columns["id"].tobytes(), columns["id_offsets"].tolist()
    return [blob[start:stop].decode() for start, stop in zip(offsets, offsets[1:], strict=False)]


def pack_labels(labels: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    """The columns `label:<name>` and `values:<name>` of documents with these labels; values in sorted order."""
    columns: dict[str, np.ndarray] = {}
    for name in sorted({name for each in labels for name in each}):
        values = sorted({each[name] for each in labels if name in each})
        number = {value: i for i, value in enumerate(values)}
        columns[f"label:{name}"] = np.array(
            [number.get(each.get(name, ""), -1) if name in each else -1 for each in labels], np.int32
        )
        columns[f"values:{name}"] = np.frombuffer(json.dumps(values).encode(), np.uint8)
    return columns


def pack_ids(ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns `id` and `id_offsets`."""
    encoded = [identity.encode(errors="backslashreplace") for identity in ids]
    return {
        "id": np.frombuffer(b"".join(encoded), np.uint8),
        "id_offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
    }
