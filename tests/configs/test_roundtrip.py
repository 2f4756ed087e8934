"""dump and load are inverse, for any config."""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import RunConfig, changes, dump, load, to_tree
from configs.validate import validate

text = st.text(max_size=12).filter(lambda s: not any("\ud800" <= c <= "\udfff" or c == "\0" for c in s))
tricky = text | st.sampled_from(
    [
        "off",
        "no",
        "3e-4",
        "1e9",
        "0o17",
        "12:30:00",
        "2024-01-01",
        "null",
        "~",
        "",
        " x ",
        "a: b",
        "#",
        "'",
        "\x85",
        "\ufeff",
        "=",
        "<<",
    ]
)
fraction = st.floats(0, 1, exclude_min=True, exclude_max=True)
rate = st.floats(0, 1e6)
period = st.integers(1, 10**6) | fraction | st.sampled_from(["5M tokens", "1.5B tokens", "300 tokens"])
source = st.one_of(
    st.fixed_dictionaries({"kind": st.just("python"), "packages": st.lists(tricky, min_size=1, max_size=2)}),
    st.fixed_dictionaries(
        {"kind": st.just("jsonl"), "files": st.lists(tricky, min_size=1, max_size=2), "text": tricky},
        optional={"max_documents": st.integers(1, 2**63 - 1)},
    ),
    st.fixed_dictionaries({"kind": st.just("hf"), "path": tricky.filter(bool), "streaming": st.booleans()}),
)
name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
sources = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,7}", fullmatch=True), source, min_size=1, max_size=3
)
loss = st.fixed_dictionaries(
    {"base": st.sampled_from(["ce", {"smooth": {"eps": 0.1}}, {"smooth": None}])},
    optional={"add": st.lists(st.sampled_from(["z", {"z": {"coef": 1e-4}}]), max_size=2)},
)


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """Valid trees, in short forms as well."""
    heads, group, context = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 64))
    length: dict[str, Any] = draw(st.sampled_from([{"steps": 1000}, {"tokens": "5B"}, {"epochs": 1.5}]))
    tokenizer = draw(st.sampled_from(["byte", "char", {"train": {}}, {"level": "char"}, {"file": "t.json"}]))
    return {
        "run": {"name": draw(name), "dir": draw(tricky), "seed": draw(st.integers(0, 2**63 - 1))},
        "data": {"sources": draw(sources), "tokenizer": tokenizer, "split": {"val": draw(fraction)}},
        "model": {
            "heads": heads * group,
            "kv_heads": heads,
            "dim": 2 * heads * group * draw(st.integers(1, 9)),
            "context": context,
            "norm_eps": draw(st.floats(5e-324, 1)),
            "gelu": draw(st.sampled_from(["tanh", "erf"])),
        },
        "loss": draw(loss | st.just("ce")),
        "optim": {
            "rates": {"matrix": draw(rate)},
            "betas": [draw(fraction), 0],
            "grad_clip": draw(st.none() | st.just(1)),
        },
        "schedule": {"warmup": draw(st.integers(0, 9)), "decay": draw(st.floats(0, 0.9))},
        "train": {**length, "batch_tokens": context * draw(st.integers(1, 99))},
        "eval": {"every": draw(period), "prompts": draw(st.lists(tricky, max_size=3))},
        "track": {"every": draw(period), "group": draw(st.none() | tricky), "tags": draw(st.lists(tricky, max_size=2))},
    }


@given(trees())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_dump_loads_back(tmp_path: Path, tree: dict[str, Any]) -> None:
    config, problems = validate(tree)
    assert not problems and isinstance(config, RunConfig)
    path = tmp_path / "config.yaml"
    path.write_text(dump(config))
    again = load(path)
    assert again == config and dump(again) == dump(config)
    assert not any(vars(changes(to_tree(config), again)).values())
