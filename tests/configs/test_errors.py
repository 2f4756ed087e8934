"""Every mistake is one line with its place, all of them at once, and says what would work."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from configs import ConfigError, describe, load
from configs.strict_yaml import parse
from tests.configs.helpers import BASE, errors
from trainer.schedule import rate_factor


def test_all_at_once_in_order(tmp_path: Path) -> None:
    text = """\
run: {name: "a b", threads: true}
data:
  sources:
    a: {kind: pythn, packages: json}
  mixture: {a: true}
model:
  dim: on
  heads: 0
  heads: 3
  hidden: "3"
  contxt: 4
optim: {betas: [0.9], warmup: 3}
train: {steps: 1e3, batch_tokens: 1000}
loss: {base: smoth, add: [{z: {cof: 1}}]}
track: {wandb: false}
steps: 3
"""
    assert errors(tmp_path / "bad.yaml", text, "--model.layer=3", "save.every=0", "what") == [
        "bad.yaml:1: run.threads: true is not an integer >= 1 or auto",
        "bad.yaml:1: run.name: 'a b' is not a folder name of letters, digits and . _ -, such as 'a-b'",
        "bad.yaml:4: data.sources.a.kind: 'pythn' is not python, code, text, jsonl, csv, parquet or hf "
        "— did you mean 'python'?",
        "bad.yaml:4: data.sources.a.packages: 'json' is not a list of text; write [json]",
        "bad.yaml:5: data.mixture.a: true is not a number > 0",
        "bad.yaml:7: model.dim: 'on' is not an integer >= 1",
        "bad.yaml:8: model.heads: 0 is not an integer >= 1",
        "bad.yaml:9: model.heads is given twice, first in line 8",
        "bad.yaml:10: model.hidden: '3' is not an integer >= 1 or null; write 3",
        "bad.yaml:11: unknown key 'model.contxt' — did you mean 'model.context'?",
        "bad.yaml:12: optim.betas: [0.9] is not a list of 2 numbers in [0, 1)",
        "bad.yaml:12: unknown key 'optim.warmup' — did you mean 'schedule.warmup'?",
        "bad.yaml:13: train.steps: 1000.0 is not an integer >= 1 or null; write 1000",
        "bad.yaml:13: train.batch_tokens: 1000 is not a multiple of model.context 256; nearest 768 or 1024",
        "bad.yaml:14: loss.base.smoth: unknown loss term 'smoth' — did you mean 'smooth'?",
        "bad.yaml:14: loss.add[0].z.cof: z has no option 'cof' — did you mean 'coef'?",
        "bad.yaml:15: track.wandb: false is not off, offline or online; write off",
        "bad.yaml:16: unknown key 'steps' — did you mean 'train.steps'?",
        "command line: --model.layer=3: unknown key 'model.layer' — did you mean 'model.layers'?",
        "command line: save.every=0: save.every: 0 is not a length > 0: 0.1 (a fraction of the run), 500 (steps) "
        "or '5M tokens'",
        "command line: what: not of the form key.sub=value",
    ]


def test_count_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("run: 3\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [*caught.value.errors, "3 errors; nothing was run."]
    assert str(ConfigError(["x"])).endswith("\n1 error; nothing was run.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: an empty config"),
        ("# nothing\n", "1: an empty config"),
        ("- a\n", "1: a config is a mapping of sections, not a list"),
        ("text", "1: a config is a mapping of sections, not 'text'"),
        ("run:\n\tname: x\n", "2: a tab; YAML indents with spaces"),
        (b"run:\n  name: \xff\n", "2: byte 0xff is not UTF-8"),
        ("run:\n  name: \0x\n", "2: character U+0000 is not allowed"),
        ("a: 1\n---\nb: 2\n", "2: expected a single document in the stream but found another document"),
        ("a: &x [1]\nb: *x\n", "2: aliases are not supported"),
        ("a: &x [*x]\n", "1: aliases are not supported"),
        ("[" * 5000, "1: nested too deeply"),
    ],
)
def test_unreadable(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert errors(tmp_path / "x.yaml", text) == [f"x.yaml:{message}"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1: x", "4: a config has '1' as a key; keys are text"),
        ("[a]: x", "4: a config has a list or mapping as a key; keys are text"),
        ("model: {dim: !!float x}", "4: model.dim: x is not a finite number"),
        ("model: {dim: !!python/tuple [1]}", "4: model.dim: the tag '!!python/tuple' is not supported"),
        ("model: {dim: 99999999999999999999}", "4: model.dim: 99999999999999999999 does not fit into 64 bits"),
        ("model: {norm_eps: .inf}", "4: model.norm_eps: .inf is not a finite number"),
        ("model: {norm_eps: 1e999}", "4: model.norm_eps: 1e999 is not a finite number"),
        ("data: {}", "4: data is given twice, first in line 2"),
        (
            "<<: {run: {}}",
            "4: unknown key '<<'; there are run, data, model, loss, optim, schedule, train, eval, save, track",
        ),
        ('model: {dim: "\\ud800"}', "4: model.dim: text that is not valid Unicode"),
        ("extends: [a]", "4: extends: takes the path of one file"),
        ('extends: "a\\0b"', "4: extends: text with a NUL, which no path or name can hold"),
    ],
)
def test_yaml_mistakes(tmp_path: Path, line: str, message: str) -> None:
    assert errors(tmp_path / "x.yaml", BASE + line + "\n") == [f"x.yaml:{message}"]


CROSS = {
    "model.heads=6": "model.heads: 6 does not divide model.dim 256; nearest heads 4 or 8, nearest dim 252 or 264",
    "model.heads=256": "model.heads: 256 does not divide model.dim 256 into heads of even width; nearest heads 128, "
    "nearest dim 512",
    "model.kv_heads=3": "model.kv_heads: 3 does not divide model.heads 4; nearest 2 or 4",
    "train.batch_tokens=100": "train.batch_tokens: 100 is not a multiple of model.context 256; nearest 256",
    "train.micro_rows=5": "train.micro_rows: 5 is more than the rows of a step; at most 4 (train.batch_tokens / "
    "model.context)",
    "eval.max_tokens=9": "eval.max_tokens: 9 is less than a row; at least 256 (model.context)",
    "train.steps=": "train: takes exactly one of steps, tokens and epochs, not none",
    "train={steps: 1, epochs: 2}": "train: takes exactly one of steps, tokens and epochs, not steps and epochs",
    "train.tokens=5X": "train.tokens: '5X' is not a number of tokens such as '5M tokens' (k, M or B)",
    "train.tokens=0M": "train.tokens: '0M' is not above 0",
    "eval.every='500'": "eval.every: '500' is not a length: 0.1 (a fraction of the run), 500 (steps) or '5M tokens'",
    "save.every=0 tokens": "save.every: '0 tokens' is not above 0",
    "schedule={warmup: 0.5, decay: 0.6}": "",
    "schedule={name: cosine, warmup: 101}": "",
    "data.mixture.b=1": "data.mixture.b: no source has this name; there are a",
    "data.pack.fim={sources: [b]}": "data.pack.fim.sources: no source is called 'b'; there are a",
    "data.phases=[{at: 0.5, mixture: {b: 1}}]": "data.phases[0].mixture.b: no source has this name; there are a",
    "data.phases=[{at: 0.5, mixture: {a: 0}}]": "data.phases[0].mixture: every share is 0",
    "data.phases=[{at: 0.5, mixture: {a: -1}}]": "data.phases[0].mixture.a: -1 is not a number >= 0",
    "data.phases=[{at: 1.5, mixture: {a: 1}}]": "data.phases[0].at: 1.5 is not a length > 0: 0.1 (a fraction of the "
    "run), 500 (steps) or '5M tokens'",
    "data.phases=[{at: 5M, mixture: {a: 1}}]": "data.phases[0].at: '5M' is not a length: 0.1 (a fraction of the run), "
    "500 (steps) or '5M tokens'",
    "data.phases=[{at: 0.5, mixture: {a: 1}}, {at: 0.5, mixture: {a: 1}}]": "data.phases[1].at: 0.5 is not after the "
    "phase before, at 0.5",
    "data.phases=[{at: 0.5, mixture: {a: 1}}, {at: 50, mixture: {a: 1}}]": "data.phases[1].at: 50 is not after the "
    "phase before, at 0.5",
    "data.phases=[{at: 50, mixture: {a: 1}}, {at: 51k tokens, mixture: {a: 1}}]": "data.phases[1].at: '51k tokens' is "
    "not after the phase before, at 50",
    "data.phases=[{at: 49, mixture: {a: 1}}, {at: 0.5, mixture: {a: 1}}]": "",
    "data.curriculum={by: chars, over: 0M tokens}": "data.curriculum.over: '0M tokens' is not above 0",
    "data.curriculum={by: chars, over: 1.0}": "",
    "data.max_epochs=0": "data.max_epochs: 0 is not a number > 0 or null",
    "data.tokenizer={}": "data.tokenizer: takes exactly one of train, file, level and tiktoken, not none",
    "data.tokenizer={train: {}, level: byte}": "data.tokenizer: takes exactly one of train, file, level and tiktoken, "
    "not train "
    "and level",
    "data.tokenizer=null": "data.tokenizer: null is not a mapping; write byte, char, {file: PATH} or {train: "
    "{vocab_size: N}}",
    "data.tokenizer={train: null}": "data.tokenizer: takes exactly one of train, file, level and tiktoken, not none",
    "data.sources.a.packages=[json]": "data.sources.a.packages: kind text does not use it; it takes files, origin, "
    "exclude, encoding, constants, license, max_documents",
    "data.sources.b={kind: python}": "data.sources.b: kind python needs packages",
    "data.sources.b={kind: jsonl}": "data.sources.b: kind jsonl needs files",
    "data.sources.b={kind: hf}": "data.sources.b: kind hf needs path",
    "data.sources={}": "data.sources: {} is not a mapping that is not empty",
    "data.sources={a/b: {kind: text, files: [x]}}": "data.sources.a/b: the name of a source is 1 to 64 letters, "
    "digits, _ and -, the first a letter or digit",
    "data.sources={_a: {kind: text, files: [x]}}": "data.sources._a: the name of a source is 1 to 64 letters, "
    "digits, _ and -, the first a letter or digit",
    "data.tokenizer={train: {pattern: gpt2, digits: 1}}": "data.tokenizer.train.digits: only the pattern gpt4 groups "
    "digits; leave it out",
    "data.tokenizer={train: {vocab_size: 3}}": "data.tokenizer.train.vocab_size: 3 is not an integer in [257, 1048576]",
    "run.name=../up": "run.name: '../up' is not a folder name of letters, digits and . _ -, such as 'up'",
    "run.name=..": "run.name: '..' is not a folder name of letters, digits and . _ -",
    "run.name=7": 'run.name: 7 is not text (not empty); write "7"',
    "run={name: x, device: cpu, seed: -1}": "run.seed: -1 is not an integer >= 0",
    "loss.add=z": "loss.add: 'z' is not a list of mappings; write [z]",
    "loss.base={ce: {}, z: {}}": "loss.base: takes exactly one loss term, not 2: ce, z",
    "loss.fused=true": "loss.fused: true is not auto, on or off; write on",
    "optim=null": "",
    "optim.grad_clip=null": "",
    "model.tie=yes": "model.tie: 'yes' is not true or false; write true",
    "model.dim=1_024": "model.dim: '1_024' is not an integer >= 1; write 1024",
    "extends=x": "extends: is for files; give the other file instead",
}


@pytest.mark.parametrize(("override", "message"), CROSS.items())
def test_between_fields(tmp_path: Path, override: str, message: str) -> None:
    found = errors(tmp_path / "x.yaml", BASE, override)
    if "mixture" in override:
        found = found[:1]
    assert found == ([f"command line: {override}: {message}"] if message else [])


def test_gpt2_and_fp16(tmp_path: Path) -> None:
    changed = ("model.preset=gpt2", "model.kv_heads=2", "run.device=cpu", "train.precision=fp16")
    assert errors(tmp_path / "x.yaml", BASE, *changed) == [
        "command line: model.kv_heads=2: model.kv_heads: gpt2 has no grouped-query attention; leave it null or set 4",
        "command line: train.precision=fp16: train.precision: fp16 needs a GPU; on run.device cpu use bf16 or fp32",
    ]


def test_a_mixture_names_every_source(tmp_path: Path) -> None:
    given = ("data.sources.b={kind: text, files: [g]}", "data.mixture={a: 1}")
    line = "command line: data.mixture={a: 1}: data.mixture: no share for b; name every source or none"
    assert errors(tmp_path / "x.yaml", BASE, *given) == [line]


@pytest.mark.parametrize("recipe", ["tiny", "quickstart"])
def test_a_recipe_may_be_cut_to_fewer_steps_than_its_warmup(recipe: str) -> None:
    for steps in (1, 5):
        config = load(f"configs/{recipe}.yaml", [f"train.steps={steps}"])
        factors = [rate_factor(step, steps, config.schedule, config.train.batch_tokens) for step in range(steps)]
        assert all(0 < factor <= 1 for factor in factors)


def test_upper_bounds_are_shown_unless_they_are_those_of_the_type(tmp_path: Path) -> None:
    text = describe()
    assert "integer in [257, 1048576]" in text and "number in [0, 1]" in text and "2**" not in text
    assert errors(tmp_path / "x.yaml", BASE, "run.seed=-1")[0].endswith("-1 is not an integer >= 0")


def test_missing_keys_say_what_they_are(tmp_path: Path) -> None:
    assert errors(tmp_path / "x.yaml", "model: {dim: 256}\ntrain: {epochs: 1.5}\n") == [
        "x.yaml:1: run.name is missing (Name of the run)",
        "x.yaml:1: data.sources is missing (Named corpora)",
    ]


def test_a_missing_file_lists_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("configs/quikstart.yaml")
    (line,) = caught.value.errors
    assert line.startswith("configs/quikstart.yaml: no such file — did you mean 'configs/quickstart.yaml'? recipes: ")
    assert "configs/tiny.yaml" in line
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "a\0b")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("on", "off", "yes", "no", "On", "y", "12:30:00", "2024-01-01", "1_000", "=", "0x")),
        *((word, None) for word in ("~", "null", "NULL", "")),
        ("true", True),
        ("FALSE", False),
        ("3e-4", 3e-4),
        ("1e9", 1e9),
        ("1.", 1.0),
        (".5", 0.5),
        ("-0.0", 0.0),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("'3'", "3"),
    ],
)
def test_scalars_of_yaml_1_2(text: str, value: object) -> None:
    document = parse(f"key: {text}")
    assert not document.problems
    assert document.tree == {"key": value} and type(document.tree["key"]) is type(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["run", "run.name", "data", "data.sources", "data.sources.a", "data.sources.a.kind", "data.tokenizer", "model",
        "data.mixture", "model.dim", "model.heads", "loss", "loss.base", "loss.add", "optim.betas", "schedule.warmup",
        "train", "train.steps", "train.tokens", "eval.every", "track.tags", "data.split.sources"]  # fmt: skip


@example([("loss.base", {"": None, "\x1f": None})])
@given(st.lists(st.tuples(st.sampled_from(KEYS), json_values), max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_loads_or_is_a_config_error(tmp_path: Path, changes: list[tuple[str, object]]) -> None:
    for line in errors(tmp_path / "x.yaml", BASE, *(f"{key}={json.dumps(value)}" for key, value in changes)):
        assert line.isprintable()


@given(st.text(max_size=60) | st.text(alphabet="ab:{}[]-'\"\n #&*!|>%@`,?~0.e", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    document = parse(text)
    assert all(message.isprintable() and line >= 1 for line, message in document.problems)
