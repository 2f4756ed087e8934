"""A prepared corpus and its rows, opened."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator

import numpy as np

from .config import DataConfig
from .reading.changes import changed
from .rows.curriculum import difficulty
from .rows.fim import special_ids
from .rows.plan import Plan, RowPlan
from .store import FORMAT, Store
from .tokenizer import Tokenizer


class Prepared:
    """A committed corpus and its rows for one config and context. Opened, never changed."""

    def __init__(self, store: Store, plan: Plan, config: DataConfig, context: int) -> None:
        self.store = store
        self.plan = plan
        self.config = config
        self.context = context
        self.directory = store.directory
        self.tokenizer_hash: str = store.manifest["tokenizer_sha256"]
        """sha256 of tokenizer.json."""
        self.source_names = tuple(store.manifest["names"])
        """What `Batch.source` indexes."""

    @property
    def train(self) -> RowPlan:
        """Rows to train on."""
        return self.plan.train

    @property
    def val(self) -> RowPlan:
        """Held-out rows."""
        return self.plan.val

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return self.store.tokenizer

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of everything that decides a batch and the order of rows, hexadecimal: token and mask files, tokenizer, rows,
        and what a curriculum goes by."""
        shards = [shard.sha256 for shard in self.store.shards]
        content = [FORMAT, self.tokenizer_hash, [each["bin"] for each in shards], self.plan.digest]
        if any("mask" in each for each in shards):
            content.append([each.get("mask") for each in shards])
        if self.config.curriculum:
            content.append(hashlib.sha256(difficulty(self, self.config.curriculum).tobytes()).hexdigest())
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def bytes_by_source(self, side: str) -> dict[str, int]:
        """UTF-8 bytes of the `train` or `val` texts, for each source that has any."""
        return dict(self.plan.facts["bytes"][side])

    def token_counts(self) -> np.ndarray:
        """How often each id is a target of the training rows, int64 (V,)."""
        plan, counts = self.train, np.zeros(self.tokenizer.vocab_size, np.int64)
        for shard in np.unique(plan.shard).tolist():
            here = plan.shard == shard
            first, length = plan.start[here] + 1, plan.length[here]
            tokens = self.store.tokens(shard)
            steps = np.zeros(len(tokens) + 1, np.int32)  # +1 where a piece's targets begin, -1 after their end
            np.add.at(steps, first, 1)
            np.add.at(steps, first + length, -1)
            read, mask = np.cumsum(steps[:-1]) > 0, self.store.mask(shard)
            counts += np.bincount(tokens[read if mask is None else read & (mask > 0)], minlength=len(counts))
        if plan.fim.any():
            counts[list(special_ids(self.tokenizer))] += int((plan.fim > 0).sum())
        return counts

    def val_documents(self) -> Iterator[bytes]:
        """The held-out texts in store order, UTF-8."""
        spans, pieces = self.plan.val_spans, self.tokenizer.pieces
        table = np.array([*pieces, None], object)[:-1]  # the None keeps numpy from making one array of bytes
        for shard, start, length in zip(spans.shard.tolist(), spans.start.tolist(), spans.length.tolist(), strict=True):
            yield b"".join(table[self.store.tokens(shard)[start + 1 : start + length]])

    def changed(self) -> list[str]:
        """What differs in the sources from when they were read, a few words each: versions, or files by name, size
        and time. Reads no document."""
        return changed(self.config, self.store.manifest, self.directory)

    def doubts(self) -> list[str]:
        """What is probably a mistake, a line each: sources that nothing is left of, labels that no document has."""
        found, facts = [], self.plan.facts
        for name in self.config.sources:
            if not facts["documents"]["train"].get(name):
                reasons = {**self.store.manifest["problems"][name], **facts["dropped"].get(name, {})}
                why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count) or "no document"
                found.append(f"nothing of source {name!r} is trained on: {why}")
        shards = np.repeat(
            [shard.source for shard in self.store.shards], [shard.documents for shard in self.store.shards]
        )
        for name, source in self.config.sources.items():
            for label, field in source.labels.items():
                codes = self.store.label(label)[0] if label in self.store.label_names else np.zeros(0, np.int32)
                if not (codes[shards[: len(codes)] == name] >= 0).any():
                    found.append(f"no document of source {name!r} has the label {label!r}: look at its field {field!r}")
        return found

    def summary(self) -> list[str]:
        """Facts worth printing, one a line."""
        shards, facts = self.store.shards, self.plan.facts
        documents, nbytes, tokens = (sum(getattr(s, name) for s in shards) for name in ("documents", "bytes", "tokens"))
        problems = self.store.manifest["problems"].values()
        dropped: Counter[str] = Counter(unparsable=sum(counts["unparsable"] for counts in problems))
        for reasons in facts["dropped"].values():
            dropped.update(reasons)
        kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()) if count) or "none"
        lines = [
            f"corpus      {self.directory} (read once; delete it to read the sources again)",
            f"read        {documents:,} documents, {nbytes:,} bytes, {tokens:,} tokens, "
            f"{nbytes / max(tokens, 1):.2f} bytes/token, vocabulary {self.store.manifest['vocab_size']:,}",
            f"dropped     {kinds}",
        ]
        for side, plan in (("train", self.train), ("val", self.val)):
            lines.append(
                f"{side:<11} {sum(facts['documents'][side].values()):,} documents, {plan.targets:,} targets, "
                f"{plan.rows:,} rows of {self.context}, {plan.padding:.2%} padding"
            )
            if side == "train" and (lost := sum(facts["lost"].values())):
                lines.append(f"lost        {lost:,} targets, in documents longer than a row")
            if len(self.source_names) > 1:
                lines += [f"  {name:<9} {rows:,} rows" for name, rows in plan.rows_by_source.items() if rows]
        return lines
