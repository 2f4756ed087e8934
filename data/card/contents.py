"""What a card says of documents: lengths, what was left out, rows, tokens and samples."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from durable import Damaged

from ..cleaning.choose import dropped_documents
from ..config import STATISTICS
from ..rows.plan import RowPlan
from ..store import Store
from ..tokens.fertility import tokenizer_report
from .page import Bars, Block, Code, Histogram, Table, Text, size_text

if TYPE_CHECKING:
    from ..prepared import Prepared

EXCERPT = 600
"""Characters of a sample."""
_TOP = 10  # longest tokens
_SAMPLES = 3


def lengths(prepared: "Prepared") -> np.ndarray:
    """Tokens of each document of the store."""
    return np.concatenate([np.zeros(0, np.int64), *(np.diff(part) - 1 for part in prepared.store.column("offsets"))])


def _column(prepared: "Prepared", name: str) -> np.ndarray:
    """One value for each document of the store; empty when it was not measured."""
    try:
        return np.concatenate(prepared.store.column(name))
    except Damaged:
        return np.zeros(0)


def documents(prepared: "Prepared") -> list[Block]:
    tokens = lengths(prepared)
    bins = np.bincount(np.frexp(tokens)[1]).tolist()  # 0, 1, 2-3, 4-7, ...
    edges = ["0", *(_power(i) for i in range(len(bins) - 1))]
    columns = list(itertools.dropwhile(lambda column: not column[1], zip(edges, bins, strict=True)))
    blocks: list[Block] = [Histogram("Documents by length in tokens; each column from its number to the next", columns)]
    rows = [_quantiles("tokens", tokens)]
    for name, meaning in STATISTICS.items():
        values = _column(prepared, f"stat:{name}")
        if len(values):
            rows.append(_quantiles(f"{name}: {meaning}", values))
    return [*blocks, Table(("of a document", "least", "5 %", "median", "95 %", "most"), rows)]


def _power(exponent: int) -> str:
    """2 to that, short."""
    thousands, rest = divmod(exponent, 10)
    return f"{1 << rest}{'' if not thousands else 'kMGT'[thousands - 1]}"


def _quantiles(name: str, values: np.ndarray) -> tuple[str, ...]:
    found = np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).tolist()
    return name, *(f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}" for value in found)


def left_out(prepared: "Prepared") -> list[Block]:
    dropped: dict[str, dict[str, int]] = prepared.plan.facts["dropped"]
    problems = prepared.store.manifest["problems"].values()
    total: Counter[str] = Counter()
    for reasons in dropped.values():
        total.update(reasons)
    unparsable, redacted = sum(counts["unparsable"] for counts in problems), prepared.store.manifest["redacted"]
    blocks: list[Block] = []
    if total:
        bars = [(reason, count, f"{count:,}") for reason, count in total.most_common()]
        names = list(dropped)
        rows = [(reason, *(f"{dropped[name].get(reason, 0):,}" for name in names), all_) for reason, _, all_ in bars]
        blocks += [Bars("Documents left out, by reason", bars), Table(("reason", *names, "in all"), rows)]
        blocks.append(Table(("reason", "source", "for example"), _examples(prepared, [name for name, _, _ in bars])))
    else:
        blocks.append(Text("No document was left out."))
    told = [
        f"{total[kind]:,} {kind}{'s' * (total[kind] > 1)}" for kind in ("duplicate", "near duplicate") if total[kind]
    ]
    said = [f"Of equal texts one is used: {' and '.join(told)}."] if told else ["No text stands in it twice."]
    if unparsable:
        said.append(f"Records that could not be read at all, and count as no documents: {unparsable:,}.")
    if prepared.config.redact:
        places = "1 place was" if redacted == 1 else f"{redacted:,} places were"
        said.append(f"{places} redacted ({', '.join(prepared.config.redact)}).")
    return [*blocks, Text(" ".join(said))]


def _examples(prepared: "Prepared", reasons: Sequence[str]) -> list[tuple[str, str, str]]:
    """Up to two documents for each reason."""
    found: dict[str, list[tuple[str, str]]] = {reason: [] for reason in reasons}
    for identity, source, reason in dropped_documents(prepared):
        if reason in found and len(found[reason]) < 2:
            found[reason].append((source, identity))
            if all(len(each) == 2 for each in found.values()):
                break
    return [(reason, source, identity) for reason, each in found.items() for source, identity in each]


def rows(prepared: "Prepared") -> list[Block]:
    pack, facts = prepared.config.pack, prepared.plan.facts
    sides = (("train", prepared.train), ("val", prepared.val))
    rows = []
    for side, plan in sides:
        documents, pieces = sum(facts["documents"][side].values()), len(plan.length)
        rows.append((side, f"{documents:,}", size_text(sum(facts["bytes"][side].values())), f"{plan.targets:,}",
                     f"{plan.rows:,}", f"{pieces / max(1, plan.rows):.2f}", f"{max(0, pieces - documents):,}",
                     f"{100 * plan.padding:.2f} %"))  # fmt: skip
    head = ("side", "documents", "text", "targets", "rows", "pieces a row", "cuts", "padding")
    how = f"Rows of {prepared.context:,} tokens, packed by {pack.mode}; attention "
    how += "stays inside a document." if pack.document_mask else "crosses documents."
    if pack.fim:
        where = f" of {', '.join(pack.fim.sources)}" if pack.fim.sources else ""
        how += f" Fill in the middle: {100 * pack.fim.rate:g} % of the training documents{where}."
    if lost := sum(facts["lost"].values()):
        how += f" {lost:,} training targets are in no row."
    if prepared.config.mixture:
        shares = ", ".join(f"{name} {share:g}" for name, share in prepared.config.mixture.items())
        how += f" Sources are mixed by {shares}."
    return [Table(head, rows), Text(how)]


# Tokenizer and samples


def tokenizer(prepared: "Prepared") -> list[Block]:
    report = tokenizer_report(prepared)
    special = int((prepared.tokenizer.token_bytes == 0).sum())
    rows = [
        ("sha256", prepared.tokenizer_hash),
        ("ids", f"{report.vocab_size:,}, of which {special:,} special"),
        ("unused ids", f"{report.unused:,}{_such_as(report.unused_examples)}"),
        ("longest tokens", "  ".join(map(_run, report.longest[:_TOP]))),
    ]
    words = [(each.name, each.per_word, f"{each.per_word:.2f}") for each in report.fertility if each.per_word]
    letters = [(each.name, each.per_character, f"{each.per_character:.3f}") for each in report.fertility]
    read = f"in a sample of {sum(each.documents for each in report.fertility):,} documents, by {report.by}"
    blocks: list[Block] = [Table((), rows)]
    blocks += [Bars(f"Tokens a word, {read}", words)] if words else []
    return [*blocks, Bars(f"Tokens a character, {read}", letters)]


def _such_as(examples: Sequence[str]) -> str:
    return f", such as {'  '.join(examples[:_TOP])}" if examples else ""


def _run(quoted: str) -> str:
    """A token in quotes; a long run of one character by its length."""
    text = quoted[1:-1]
    return f"{quoted[0]}{text[0]}{quoted[0]} × {len(text)}" if len(text) > 4 and len(set(text)) == 1 else quoted


def samples(prepared: "Prepared") -> list[Block]:
    """The starts of a few training documents, chosen by hash; from as many sources as there are."""
    blocks: list[Block] = [Text("The starts of a few training documents, chosen by hash.")]
    for shard, document, start, length in itertools.islice(_chosen(prepared), _SAMPLES):
        record = prepared.store.shards[shard]
        ids = prepared.store.tokens(shard)[start + 1 : start + 1 + min(length, EXCERPT)]
        text = prepared.tokenizer.decode(ids.tolist())
        identity = document_id(prepared.store, shard, document)
        cut = text[:EXCERPT] + ("…" if len(text) > EXCERPT or length > EXCERPT else "")
        blocks.append(Code(f"{record.source}: {identity}", cut))
    return blocks


def _chosen(prepared: "Prepared") -> Iterator[tuple[int, int, int, int]]:
    """(shard, document in it, first input, inputs) of training documents: first the one of least hash of each source,
    then the others by hash."""
    offsets, hashes = prepared.store.column("offsets"), prepared.store.column("hash")
    found = []
    for shard, first, length in _starts(prepared.train):
        document = np.searchsorted(offsets[shard], first)
        begins = offsets[shard][np.minimum(document, len(offsets[shard]) - 1)] == first
        keys = hashes[shard][document[begins], 1]
        least = np.argsort(keys, kind="stable")[:_SAMPLES]
        chosen = zip(keys[least].tolist(), document[begins][least].tolist(), first[begins][least].tolist(),
                     length[begins][least].tolist(), strict=True)  # fmt: skip
        found += [(key, shard, *rest) for key, *rest in chosen]
    found.sort()
    seen: set[str] = set()
    ranked = []
    for _, shard, *rest in found:
        source = prepared.store.shards[shard].source
        ranked.append((source in seen, (shard, *rest)))
        seen.add(source)
    yield from (place for _, place in sorted(ranked, key=lambda item: item[0]))


def _starts(plan: RowPlan) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(shard, first inputs, lengths) of a plan's pieces, shard by shard."""
    order = np.argsort(plan.shard, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(plan.shard[order])) + 1):
        if len(part):
            yield int(plan.shard[part[0]]), plan.start[part], plan.length[part]


def document_id(store: Store, shard: int, document: int) -> str:
    """What one document of a shard is called."""
    start, stop = store.column("id_offsets")[shard][document : document + 2].tolist()
    return store.column("id")[shard][start:stop].tobytes().decode()
