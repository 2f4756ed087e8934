"""Every model opens in transformers with the same logits, and comes back bit for bit."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from durable import Damaged
from model import beam_search, from_huggingface, generate, to_huggingface

from .conftest import PRESETS, Make

SHAPES = [
    (preset, tie, kv_heads)
    for preset, tie, kv_heads in itertools.product(PRESETS, (True, False), (None, 2, 1))
    if preset != "gpt2" or kv_heads is None
]


def open_in_transformers(config: dict[str, Any], state: dict[str, Tensor], folder: Path) -> Any:
    """The model as transformers loads it from files; nothing may be missing or left over."""
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    opened: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, notes = opened
    assert not notes["missing_keys"] and not notes["unexpected_keys"] and not notes["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize(("preset", "tie", "kv_heads"), SHAPES)
def test_same_logits_and_back_bit_for_bit(
    make: Make, tmp_path: Path, preset: str, tie: bool, kv_heads: int | None
) -> None:
    ours = make(preset=preset, tie=tie, kv_heads=kv_heads, rope_theta=500.0, norm_eps=1e-3, hidden=40)
    config, state = to_huggingface(ours)
    foreign = open_in_transformers(config, state, tmp_path)
    assert type(foreign).__name__ == config["architectures"][0]
    for length in (1, 2, 17, 24):
        tokens = torch.randint(61, (2, length), generator=torch.Generator().manual_seed(length))
        assert (foreign(tokens).logits - ours(tokens)).abs().max() < 1e-5
    back = from_huggingface(config, state)
    assert list(back.state_dict()) == list(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), ours.state_dict().values(), strict=True))
    assert back.config.num_kv_heads == ours.config.num_kv_heads
    theta = 10_000.0 if preset == "gpt2" else 500.0  # gpt2 has no such thing
    assert replace(back.config, kv_heads=kv_heads) == replace(ours.config, rope_theta=theta)


@pytest.mark.parametrize(("gelu", "theirs"), [("tanh", "gelu_new"), ("erf", "gelu")])
def test_each_gelu_is_theirs_and_not_the_other(make: Make, tmp_path: Path, gelu: str, theirs: str) -> None:
    ours, other = (make(preset="gpt2", gelu=name) for name in (gelu, "erf" if gelu == "tanh" else "tanh"))
    config, state = to_huggingface(ours)
    foreign, tokens = open_in_transformers(config, state, tmp_path), torch.arange(48).view(2, 24)
    assert config["activation_function"] == theirs and from_huggingface(config, state).config.gelu == gelu
    assert (foreign(tokens).logits - ours(tokens)).abs().max() < 1e-5 < (ours(tokens) - other(tokens)).abs().max()
    made = foreign.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=21, do_sample=False, pad_token_id=0)
    assert made[0, 3:].tolist() == generate(ours, [[1, 2, 3]], max_new_tokens=21, temperature=0)[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_made_by_transformers_comes_in(preset: str) -> None:
    sizes: dict[str, Any] = {
        "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 24},
        "llama": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
        "qwen3": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
    }[preset]
    if preset != "gpt2":
        sizes |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 24}
    torch.manual_seed(0)
    config = AutoConfig.for_model(preset, vocab_size=61, bos_token_id=0, eos_token_id=0, **sizes)
    foreign = AutoModelForCausalLM.from_config(config).eval()
    ours = from_huggingface(config.to_dict(), foreign.state_dict())
    tokens = torch.randint(61, (2, 24))
    assert (foreign(tokens).logits - ours(tokens)).abs().max() < 1e-5


@pytest.mark.parametrize(("preset", "tie", "kv_heads"), SHAPES)
def test_same_greedy_text(make: Make, tmp_path: Path, preset: str, tie: bool, kv_heads: int | None) -> None:
    ours = make(preset=preset, tie=tie, kv_heads=kv_heads)
    foreign = open_in_transformers(*to_huggingface(ours), tmp_path)
    for prompts in ([[1, 2, 3]], [[4, 5, 6], [7, 8, 9]]):
        theirs = foreign.generate(torch.tensor(prompts), max_new_tokens=21, do_sample=False, pad_token_id=0)
        assert theirs[:, 3:].tolist() == generate(ours, prompts, max_new_tokens=21, temperature=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_same_text_by_beams(make: Make, tmp_path: Path, preset: str) -> None:
    ours = make(preset=preset)
    foreign = open_in_transformers(*to_huggingface(ours), tmp_path)
    theirs = foreign.generate(
        torch.tensor([[1, 2, 3]]), max_new_tokens=16, num_beams=4, do_sample=False, pad_token_id=0
    )
    assert theirs[0, 3:].tolist() == beam_search(ours, [1, 2, 3], beams=4, max_new_tokens=16)


@pytest.mark.parametrize(
    ("preset", "change"),
    [
        ("qwen3", {"model_type": "mamba"}),
        ("qwen3", {"head_dim": 16}),
        ("qwen3", {"use_sliding_window": True}),
        ("llama", {"attention_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ],
)
def test_what_no_preset_holds_is_refused(make: Make, preset: str, change: dict[str, Any]) -> None:
    config, state = to_huggingface(make(preset=preset))
    with pytest.raises(ValueError, match=f"{next(iter(change))}|rope_type"):
        from_huggingface(config | change, state)


@pytest.mark.parametrize("preset", PRESETS)
def test_wrong_weights_are_refused(make: Make, preset: str) -> None:
    config, state = to_huggingface(make(preset=preset))
    name = next(name for name in state if "mlp" in name)
    with pytest.raises(Damaged, match="is missing"):
        from_huggingface(config, {k: v for k, v in state.items() if k != name})
    with pytest.raises(Damaged, match=r"extra\.weight does not belong"):
        from_huggingface(config, state | {"extra.weight": torch.zeros(1)})
    with pytest.raises(Damaged, match="shape"):
        from_huggingface(config, state | {name: torch.zeros(3, 3)})
