"""What one field cannot know: checks across fields. A message names the nearest values that would do."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches

from data.config import SOURCE_NAME, STATISTICS, TOKENIZERS, SourceConfig, TokenizerConfig
from loss.terms import check as check_loss
from model.config import ModelConfig
from trainer.schedule import parse_tokens

from .schema import Path, RunConfig, dotted


@dataclass(frozen=True)
class Problem:
    """A mistake: where it is, one line about it, and the other fields that the verdict rests on."""

    path: Path
    message: str
    reads: tuple[Path, ...] = ()


# The fields that say something for a kind of source; the first one is required.
_ANY = ("constants", "license", "max_documents")
_RECORDS = ("text", "id", "labels", "weight")
_CHATS = ("messages", "template", "train_on")
_SOURCE_FIELDS = {
    "python": ("packages", "exclude", "encoding", *_ANY),
    "code": ("files", "origin", "exclude", "encoding", *_ANY),
    "text": ("files", "origin", "exclude", "encoding", *_ANY),
    "jsonl": ("files", "origin", "exclude", "encoding", *_RECORDS, *_CHATS, *_ANY),
    "csv": ("files", "origin", "exclude", "encoding", *_RECORDS, *_ANY),
    "parquet": ("files", "origin", "exclude", *_RECORDS, *_CHATS, *_ANY),
    "hf": ("path", "name", "split", "data_files", "streaming", *_RECORDS, *_CHATS, *_ANY),
}
_LABEL = r"[a-z][a-z0-9_]*"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def hint(word: str, known: Mapping[str, str] | Iterable[str]) -> str:
    """A suggestion, or an empty string: the known word nearest to `word`, or what a mapping gives for it."""
    names = known if isinstance(known, Mapping) else {name: name for name in known}
    near = get_close_matches(word, names, n=1)
    return f" — did you mean {names[near[0]]!r}?" if near else ""


def nearest(value: int, valid: Callable[[int], bool], limit: int) -> str:
    """The valid numbers next to `value` from 1 to `limit`, such as `4 or 8`."""
    far = 10_000  # nobody means a number further away, and there may be none
    start = min(value, limit)
    below = next((n for n in range(start, max(0, start - far), -1) if valid(n)), None)
    above = next((n for n in range(value + 1, min(limit, value + far) + 1) if valid(n)), None)
    return " or ".join(str(n) for n in (below, above) if n is not None) or "none"


def around(value: int, step: int) -> str:
    """The multiples of `step` next to `value`."""
    low = value // step * step
    return " or ".join(str(n) for n in (low, low + step) if n > 0)


def check(config: RunConfig) -> list[Problem]:
    """Every mistake that lies between fields of a config whose fields are each valid."""
    return [p for part in (_run, _sources, _data, _model, _loss, _optim, _train, _lengths) for p in part(config)]


def _run(config: RunConfig) -> Iterator[Problem]:
    name = config.run.name
    if not _NAME.fullmatch(name):
        fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:100]
        more = f", such as {fitting!r}" if fitting else ""
        rule = "is not a folder name of letters, digits and . _ -"
        yield Problem(("run", "name"), f"run.name: {name!r} {rule}{more}")
    if config.run.device == "cpu" and config.train.precision == "fp16":
        message = "train.precision: fp16 needs a GPU; on run.device cpu use bf16 or fp32"
        yield Problem(("train", "precision"), message, (("run", "device"),))


def _sources(config: RunConfig) -> Iterator[Problem]:
    plain = SourceConfig(kind="text")
    defaults = {f.name: getattr(plain, f.name) for f in fields(SourceConfig)}
    groups = {("data", "sources"): config.data.sources, ("data", "split", "sources"): config.data.split.sources}
    for place, name, source in ((p, n, s) for p, group in groups.items() for n, s in group.items()):
        path = (*place, name)
        if not re.fullmatch(SOURCE_NAME, name):
            rule = "is 1 to 64 letters, digits, _ and -, the first a letter or digit"
            yield Problem(path, f"{dotted(path)}: the name of a source {rule}")
        used = _SOURCE_FIELDS[source.kind]
        if not getattr(source, used[0]):
            yield Problem(path, f"{dotted(path)}: kind {source.kind} needs {used[0]}", ((*path, used[0]),))
        for key, default in defaults.items():
            if key != "kind" and key not in used and getattr(source, key) != default:
                message = f"{dotted(path)}.{key}: kind {source.kind} does not use it; it takes {', '.join(used)}"
                yield Problem((*path, key), message, ((*path, "kind"),))
        yield from _source(path, source)
    readers = [(*place, name) for place, group in groups.items() for name in group if "-" in group[name].files]
    for path in readers[1:]:
        message = f"{dotted(path)}.files: only one source can read `-`, standard input; {dotted(readers[0])} does"
        yield Problem((*path, "files"), message, ((*readers[0], "files"),))


def _source(path: Path, source: SourceConfig) -> Iterator[Problem]:
    """What one source says that cannot be meant."""
    if source.messages is not None and source.text != "text":
        message = f"{dotted(path)}.text: messages takes its place; leave it out"
        yield Problem((*path, "text"), message, ((*path, "messages"),))
    chats = "messages" in _SOURCE_FIELDS[source.kind] and source.messages is None
    for key in ("template", "train_on") if chats else ():
        if getattr(source, key) != getattr(SourceConfig(kind="text"), key):
            message = f"{dotted(path)}.{key}: is for conversations; name the field that holds them in messages"
            yield Problem((*path, key), message, ((*path, "messages"),))
    if "-" in source.files and source.kind not in ("text", "jsonl"):
        message = f"{dotted(path)}.files: `-` is standard input, which kinds text and jsonl can read, not {source.kind}"
        yield Problem((*path, "files"), message, ((*path, "kind"),))
    if not _decodes(source.encoding):
        message = f"{dotted(path)}.encoding: no encoding is called {source.encoding!r}; try utf-8, utf-16 or latin-1"
        yield Problem((*path, "encoding"), message)
    for key in ("labels", "constants"):
        for label in getattr(source, key):
            place = (*path, key, label)
            if not re.fullmatch(_LABEL, label):
                yield Problem(place, f"{dotted(place)}: a label's name is lower-case letters, digits and _")
            elif label == "source":
                yield Problem(place, f"{dotted(place)}: results are by source without a label; use another name")
            elif key == "constants" and label in source.labels:
                message = f"{dotted(place)}: {dotted((*path, 'labels'))} has this label too; name it in one of them"
                yield Problem(place, message, ((*path, "labels", label),))


def _decodes(encoding: str) -> bool:
    """Whether an encoding is known and makes text of any bytes, if with replacements."""
    try:
        bytes(range(256)).decode(encoding, "replace")
    except (LookupError, ValueError):  # a UnicodeError is a ValueError, and so is a NUL in the name
        return False
    return True


def _data(config: RunConfig) -> Iterator[Problem]:
    if config.data.mixture:
        yield from _shares(config, ("data", "mixture"), config.data.mixture, "name every source or none")
    for number, phase in enumerate(config.data.phases):
        path: Path = ("data", "phases", number)
        yield from _shares(config, (*path, "mixture"), phase.mixture, "name every source; 0 leaves one out")
        before = config.data.phases[number - 1].at
        if number and not _after(config, before, phase.at):
            message = f"{dotted((*path, 'at'))}: {phase.at!r} is not after the phase before, at {before!r}"
            reads: tuple[Path, ...] = (("data", "phases", number - 1, "at"), ("train",))
            yield Problem((*path, "at"), message, reads)
    for name, bounds in config.data.clean.keep.items():
        if name not in STATISTICS:
            known = hint(name, list(STATISTICS)) or f"; there are {', '.join(STATISTICS)}"
            path = ("data", "clean", "keep", name)
            yield Problem(path, f"{dotted(path)}: no statistic has this name{known}")
        elif bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
            path = ("data", "clean", "keep", name)
            yield Problem(path, f"{dotted(path)}: min {bounds.min:g} is above max {bounds.max:g}, which keeps nothing")
    yield from _fim(config)
    yield from _tokenizer(config.data.tokenizer)


def _tokenizer(tokenizer: TokenizerConfig) -> Iterator[Problem]:
    given = [name for name in TOKENIZERS if getattr(tokenizer, name) is not None]
    if len(given) != 1:
        which = " and ".join(given) if given else "none"
        ways = f"{', '.join(TOKENIZERS[:-1])} and {TOKENIZERS[-1]}"
        message = f"data.tokenizer: takes exactly one of {ways}, not {which}"
        yield Problem(("data", "tokenizer"), message)
    if tokenizer.train is not None and tokenizer.train.pattern != "gpt4" and tokenizer.train.digits != 3:
        path: Path = ("data", "tokenizer", "train")
        message = f"{dotted((*path, 'digits'))}: only the pattern gpt4 groups digits; leave it out"
        yield Problem((*path, "digits"), message, ((*path, "pattern"),))


def _fim(config: RunConfig) -> Iterator[Problem]:
    fim, names = config.data.pack.fim, list(config.data.sources)
    if fim is None:
        return
    path: Path = ("data", "pack", "fim")
    for name in fim.sources:
        if name not in names:
            known = hint(name, names) or f"; there are {', '.join(names)}"
            message = f"{dotted((*path, 'sources'))}: no source is called {name!r}{known}"
            yield Problem((*path, "sources"), message, (("data", "sources"),))
    if config.model.context < 4:
        message = f"{dotted(path)}: a piece takes 3 more positions; model.context is {config.model.context}, at least 4"
        yield Problem(path, message, (("model", "context"),))


def _shares(config: RunConfig, path: Path, mixture: Mapping[str, float], rule: str) -> Iterator[Problem]:
    """Whether a mixture names all sources and no others, and leaves any in."""
    names, reads = list(config.data.sources), (("data", "sources"),)
    for name in mixture:
        if name not in names:
            known = hint(name, names) or f"; there are {', '.join(names)}"
            yield Problem((*path, name), f"{dotted((*path, name))}: no source has this name{known}", reads)
    missing = [name for name in names if name not in mixture]
    if missing:
        yield Problem(path, f"{dotted(path)}: no share for {', '.join(missing)}; {rule}", reads)
    elif not any(mixture.values()):
        yield Problem(path, f"{dotted(path)}: every share is 0")


def _after(config: RunConfig, first: int | float | str, second: int | float | str) -> bool:
    """Whether a length is longer than another, or they cannot be compared yet."""
    train = config.train

    def steps(length: int | float | str) -> float | None:
        if isinstance(length, str):
            return parse_tokens(length) / train.batch_tokens
        if isinstance(length, int):
            return length
        total = train.steps if train.tokens is None else parse_tokens(train.tokens) / train.batch_tokens
        return None if total is None else length * total

    if isinstance(first, float) and isinstance(second, float):
        return first < second
    if any(isinstance(text, str) and _bad_length(text, zero=True) for text in (first, second)):
        return True  # reported elsewhere
    a, b = steps(first), steps(second)
    return a is None or b is None or a < b


def check_model(model: ModelConfig) -> Iterator[Problem]:
    """Heads that fit the width; `model` may be anything with a model's fields, since the class refuses misfits."""
    rope = model.preset != "gpt2"
    unit = 2 if rope else 1  # rotary embeddings turn pairs
    if model.dim % (unit * model.heads):
        even = " into heads of even width" if model.dim % model.heads == 0 else ""
        heads = nearest(model.heads, lambda n: model.dim % (unit * n) == 0, model.dim)
        message = (
            f"model.heads: {model.heads} does not divide model.dim {model.dim}{even}; nearest heads {heads}, "
            f"nearest dim {around(model.dim, unit * model.heads)}"
        )
        yield Problem(("model", "heads"), message, (("model", "dim"), ("model", "preset")))
    if model.kv_heads is not None and not rope and model.kv_heads != model.heads:
        message = f"model.kv_heads: gpt2 has no grouped-query attention; leave it null or set {model.heads}"
        yield Problem(("model", "kv_heads"), message, (("model", "heads"), ("model", "preset")))
    elif model.kv_heads is not None and model.heads % model.kv_heads:
        good = nearest(model.kv_heads, lambda n: model.heads % n == 0, model.heads)
        message = f"model.kv_heads: {model.kv_heads} does not divide model.heads {model.heads}; nearest {good}"
        yield Problem(("model", "kv_heads"), message, (("model", "heads"),))


def _model(config: RunConfig) -> Iterator[Problem]:
    yield from check_model(config.model)


def _loss(config: RunConfig) -> Iterator[Problem]:
    for path, message in check_loss(config.loss):
        yield Problem(("loss", *path), f"{dotted(('loss', *path))}: {message}")


def _optim(config: RunConfig) -> Iterator[Problem]:
    if config.optim.cautious and config.optim.name != "muon":
        message = f"optim.cautious: {config.optim.name} has no cautious decay; muon has"
        yield Problem(("optim", "cautious"), message, (("optim", "name"),))


def _train(config: RunConfig) -> Iterator[Problem]:
    train, context = config.train, config.model.context
    given = [name for name in ("steps", "tokens", "epochs") if getattr(train, name) is not None]
    if len(given) != 1:
        which = " and ".join(given) if given else "none"
        reads: tuple[Path, ...] = (("train", "steps"), ("train", "tokens"), ("train", "epochs"))
        message = f"train: takes exactly one of steps, tokens and epochs, not {which}"
        yield Problem(("train", *given[1:2]), message, reads)
    size = (("model", "context"),)
    rows, rest = divmod(train.batch_tokens, context)
    if rest:
        message = (
            f"train.batch_tokens: {train.batch_tokens} is not a multiple of model.context {context}; "
            f"nearest {around(train.batch_tokens, context)}"
        )
        yield Problem(("train", "batch_tokens"), message, size)
    elif train.micro_rows != "auto" and train.micro_rows > rows:
        most = f"at most {rows} (train.batch_tokens / model.context)"
        message = f"train.micro_rows: {train.micro_rows} is more than the rows of a step; {most}"
        yield Problem(("train", "micro_rows"), message, (*size, ("train", "batch_tokens")))
    if config.eval.max_tokens < context:
        message = f"eval.max_tokens: {config.eval.max_tokens} is less than a row; at least {context} (model.context)"
        yield Problem(("eval", "max_tokens"), message, size)


def _lengths(config: RunConfig) -> Iterator[Problem]:
    """Texts that are lengths or token counts.

    A warm-up and a decay may overlap or be longer than the run: the rate is the product of both, and a short run of a
    recipe then has a lower peak.
    """
    lengths: dict[Path, int | float | str] = {
        ("optim", "momentum_warmup"): config.optim.momentum_warmup,
        ("schedule", "warmup"): config.schedule.warmup,
        ("schedule", "decay"): config.schedule.decay,
        ("eval", "every"): config.eval.every,
        ("save", "every"): config.save.every,
        ("track", "every"): config.track.every,
        **{("data", "phases", i, "at"): phase.at for i, phase in enumerate(config.data.phases)},
    }
    if config.save.keep_every is not None:
        lengths["save", "keep_every"] = config.save.keep_every
    if config.data.curriculum:
        lengths["data", "curriculum", "over"] = config.data.curriculum.over
    for path, length in lengths.items():
        message = _bad_length(length, zero=path[0] in ("optim", "schedule"))
        if message:
            yield Problem(path, f"{dotted(path)}: {message}")
    tokens = config.train.tokens
    if tokens is not None and (message := _bad_tokens(tokens)):
        yield Problem(("train", "tokens"), f"train.tokens: {message}")


def _bad_length(length: int | float | str, zero: bool) -> str:
    if not isinstance(length, str):
        return ""
    if not length.rstrip("s").endswith(" token"):
        return f"{length!r} is not a length: 0.1 (a fraction of the run), 500 (steps) or '5M tokens'"
    return _bad_tokens(length, zero)


def _bad_tokens(tokens: int | str, zero: bool = False) -> str:
    try:
        return "" if parse_tokens(tokens) > 0 or zero else f"{tokens!r} is not above 0"
    except ValueError as error:
        return str(error)
