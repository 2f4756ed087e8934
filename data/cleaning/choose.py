"""Which documents are used: masks over the documents of a store, and a reason for each that is left out.

A document that several rules would leave out is counted under the first of: empty, undecodable, no target (a
conversation without a turn to learn from), the bounds of `keep` in their order (`chars < 32`), language, duplicate,
contaminated, near duplicate. Each rule of the last three judges only what the rules before it left, so that of equal
texts one that may be used stays.

Of duplicates the first is used, in the order of the store with held-out sources before all others: what stands in both
is held out. So the sides of a split share no text, and no two near duplicates. Decontamination leaves out documents
before a split by hash or tail, so that neither side has them, but none of held-out sources, which may well be the
evaluation itself.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..columns import BLANK, UNDECODABLE, ids_of
from ..config import STATISTICS, Bounds, CleanConfig
from ..errors import DataError
from ..rows.split import Documents
from ..store import UNREADABLE, Store
from .contamination import contaminated
from .near import clusters
from .repetition import repeated_ngrams

if TYPE_CHECKING:
    from ..prepared import Prepared


@dataclass(frozen=True)
class Verdict:
    """What became of every document, in the order of the store."""

    code: np.ndarray
    """int16: index into `reasons`, -1: it is used."""
    reasons: tuple[str, ...]

    @property
    def chosen(self) -> np.ndarray:
        """Which documents are used, bool."""
        return self.code < 0

    def counts(self, documents: Documents) -> dict[str, dict[str, int]]:
        """{source: {reason: how many were left out}}, without zeros."""
        width = len(self.reasons)
        left_out = ~self.chosen
        cells = documents.source[left_out].astype(np.int64) * width + self.code[left_out]
        found: dict[str, dict[str, int]] = {}
        for cell, count in zip(*(part.tolist() for part in np.unique(cells, return_counts=True)), strict=True):
            found.setdefault(documents.names[cell // width], {})[self.reasons[cell % width]] = count
        return found


def choose_documents(
    documents: Documents, store: Store, config: CleanConfig
) -> tuple[np.ndarray, dict[str, dict[str, int]]]:
    """(mask of the documents to use, {source: {reason: how many were left out}}). Errors as of `judge`."""
    verdict = judge(documents, store, config)
    return verdict.chosen, verdict.counts(documents)


def dropped_documents(prepared: "Prepared") -> Iterator[tuple[str, str, str]]:
    """(id, source, reason) of every document that is not used: those without any text first, which are not stored, then
    in the order of the store."""
    store = prepared.store
    for line in (store.directory / UNREADABLE).read_text(encoding="utf-8").splitlines():
        source, identity, problem = json.loads(line)
        yield identity, source, f"unparsable: {problem}"
    documents = Documents.gather(store, prepared.source_names)
    verdict = judge(documents, store, prepared.config.clean)
    seen = 0
    for blob, offsets in zip(store.column("id"), store.column("id_offsets"), strict=True):
        ids = ids_of({"id": blob, "id_offsets": offsets})
        for place in np.flatnonzero(verdict.code[seen : seen + len(ids)] >= 0).tolist():
            source = documents.names[documents.source[seen + place]]
            yield ids[place], source, verdict.reasons[verdict.code[seen + place]]
        seen += len(ids)


def judge(documents: Documents, store: Store, config: CleanConfig) -> Verdict:
    """Hold every rule against every document. Raises DataError for a statistic or label that there is not, and for
    evaluation files that are not there."""
    code, reasons = np.full(len(documents.source), -1, np.int16), list[str]()

    def drop(reason: str, mask: np.ndarray) -> None:
        code[(code < 0) & mask] = len(reasons)
        reasons.append(reason)

    spans = documents.spans
    drop("empty", (documents.flags & BLANK) > 0)
    if config.undecodable == "drop":
        drop("undecodable", (documents.flags & UNDECODABLE) > 0)
    drop("no target", store.count_targets(spans.shard, spans.start, spans.length) == 0)
    for name, bounds in config.keep.items():
        for reason, mask in _outside(name, bounds, store):
            drop(reason, mask)
    if config.languages:
        drop("language", _other_languages(store, config.languages))
    if config.exact:
        drop("duplicate", _repeated(documents, np.ascontiguousarray(documents.hash).view("V16")[:, 0], code < 0))
    if config.decontaminate:
        drop("contaminated", contaminated(store, config.decontaminate) & ~documents.held_out)
    if config.near:
        left = code < 0
        drop("near duplicate", _repeated(documents, clusters(store, config.near, left), left))
    return Verdict(code, tuple(reasons))


def _outside(name: str, bounds: Bounds, store: Store) -> Iterator[tuple[str, np.ndarray]]:
    """(reason, which documents are beyond it) for each bound of a statistic, compared as float32."""
    if name not in STATISTICS:
        raise DataError(f"data.clean.keep: nothing is called {name!r}; there are {', '.join(STATISTICS)}")
    values = statistic(store, name)
    if bounds.min is not None:
        yield f"{name} < {bounds.min:.9g}", values < np.float32(bounds.min)
    if bounds.max is not None:
        yield f"{name} > {bounds.max:.9g}", values > np.float32(bounds.max)


def statistic(store: Store, name: str) -> np.ndarray:
    """One of STATISTICS for each document of a store, float32."""
    columns = repeated_ngrams(store) if name == "repeated_ngrams" else store.column(f"stat:{name}")
    return np.concatenate([np.zeros(0, np.float32), *columns])


def _other_languages(store: Store, languages: tuple[str, ...]) -> np.ndarray:
    """Which documents have another value of the label `language`, or none."""
    codes, values = store.label("language")
    wanted = [number for number, value in enumerate(values) if value in languages]
    if not wanted:
        have = f"; there are {', '.join(values[:20])}" if values else (
            ": no document has the label `language`; name its field in `labels`, or set data.detect_language: true"
        )  # fmt: skip
        raise DataError(f"data.clean.languages: no document is in {', '.join(languages)}{have}")
    return ~np.isin(codes, wanted)


def _repeated(documents: Documents, key: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which documents of the mask `among` are not the first with their key, bool."""
    candidates = np.flatnonzero(among)
    candidates = candidates[np.argsort(~documents.held_out[candidates], kind="stable")]
    _, first = np.unique(key[candidates], return_index=True)
    repeated = among.copy()
    repeated[candidates[first]] = False
    return repeated
