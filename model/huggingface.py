"""The same model in the words of Hugging Face transformers, both ways: configs and weight names. Needs no transformers.

Each preset is exactly one class: Qwen3ForCausalLM, LlamaForCausalLM, GPT2LMHeadModel. Logits are the same.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .config import ModelConfig
from .store import check_state
from .transformer import Transformer

CLASSES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}

# Ours -> theirs; the part of a name after `blocks.<n>.` is looked up by itself. `attn.q` and so on stand for the three
# parts of gpt2's fused `attn.c_attn`.
LLAMA = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
GPT2 = {
    "embed": "transformer.wte",
    "position": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "blocks": "transformer.h",
    "attention_norm": "ln_1",
    "attention.q": "attn.q",
    "attention.k": "attn.k",
    "attention.v": "attn.v",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def to_huggingface(model: Transformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The contents of `config.json` and of `model.safetensors`; a tied head is left out, as transformers does.

    The ids of special tokens belong to the tokenizer: the config names them null. Dropout belongs to training: 0.
    """
    config = model.config
    state = {theirs(name, config.preset): t.detach() for name, t in model.state_dict().items()}
    common = {
        "architectures": [CLASSES[config.preset]],
        "model_type": config.preset,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": config.tie,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    if config.preset == "gpt2":
        return common | gpt2_config(config), fuse_gpt2(state)
    return common | llama_config(config), state


def from_huggingface(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Transformer:
    """The model that a Hugging Face config and its weights describe, in eval mode; weights become fp32.

    Raises ValueError for a config that no preset holds exactly, `durable.Damaged` for missing or foreign weights.
    """
    ours = read_gpt2_config(config) if config.get("model_type") == "gpt2" else read_llama_config(config)
    with torch.random.fork_rng(devices=[]):
        model = Transformer(ours, int(config["vocab_size"]))
    have = split_gpt2(state) if ours.preset == "gpt2" else dict(state)
    if ours.tie:  # some exporters write the tied head a second time
        have.pop("lm_head.weight", None)
    names = {theirs(name, ours.preset): name for name in model.state_dict()}
    renamed = {names.get(name, name): tensor.to(torch.float32) for name, tensor in have.items()}
    check_state(model, renamed, "Hugging Face weights")
    model.load_state_dict(renamed)
    return model.eval()


def theirs(name: str, preset: str) -> str:
    """The Hugging Face name of our parameter `name`."""
    table = GPT2 if preset == "gpt2" else LLAMA
    module, kind = name.rsplit(".", 1)
    if not module.startswith("blocks."):
        return f"{table[module]}.{kind}"
    blocks, number, rest = module.split(".", 2)
    return f"{table[blocks]}.{number}.{table[rest]}.{kind}"


def fuse_gpt2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join each block's q, k and v, and transpose the blocks' matrices: gpt2 stores them (inputs, outputs)."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".attn.q." in name:
            fused[name.replace(".q.", ".c_attn.")] = torch.cat([state[name.replace(".q.", f".{x}.")] for x in "qkv"])
        elif ".attn.k." not in name and ".attn.v." not in name:
            fused[name] = tensor
    return {name: t.t().contiguous() if transposed(name, t) else t for name, t in fused.items()}


def split_gpt2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `fuse_gpt2`."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.t().contiguous() if transposed(name, tensor) else tensor
        if ".attn.c_attn." in name:
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                split[name.replace(".c_attn.", f".{x}.")] = part.contiguous()
        else:
            split[name] = tensor
    return split


def transposed(name: str, tensor: Tensor) -> bool:
    """Whether gpt2 stores this weight the other way round: the matrices inside its blocks."""
    return name.startswith("transformer.h.") and tensor.ndim == 2


def gpt2_config(config: ModelConfig) -> dict[str, Any]:
    """What a GPT2Config says of the model's shape."""
    return {
        "n_layer": config.layers,
        "n_embd": config.dim,
        "n_head": config.heads,
        "n_positions": config.context,
        "n_ctx": config.context,  # llama.cpp's converter reads this one
        "n_inner": config.ffn_dim,
        "activation_function": "gelu" if config.gelu == "erf" else "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def llama_config(config: ModelConfig) -> dict[str, Any]:
    """What a LlamaConfig or Qwen3Config says of the model's shape; rope_theta in the spellings of 5.x and of 4.x."""
    return {
        "num_hidden_layers": config.layers,
        "hidden_size": config.dim,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "intermediate_size": config.ffn_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "attention_dropout": 0.0,
    } | ({"use_sliding_window": False} if config.preset == "qwen3" else {"mlp_bias": False})


def read_gpt2_config(config: Mapping[str, Any]) -> ModelConfig:
    """Our config for a GPT2Config."""
    held = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    refuse_others(config, held)
    return ModelConfig(
        preset="gpt2",
        layers=config["n_layer"],
        dim=config["n_embd"],
        heads=config["n_head"],
        context=config["n_positions"],
        hidden=config.get("n_inner"),
        tie=config.get("tie_word_embeddings", True),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        gelu="erf" if config.get("activation_function") == "gelu" else "tanh",
    )


def read_llama_config(config: Mapping[str, Any]) -> ModelConfig:
    """Our config for a LlamaConfig or Qwen3Config."""
    preset = config.get("model_type")
    if preset != "llama" and preset != "qwen3":
        raise ValueError(f"model_type {preset!r} has no counterpart; there are qwen3, llama and gpt2")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    width = config["hidden_size"] // config["num_attention_heads"]
    held = {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "head_dim": (width, None),
    }
    refuse_others({"head_dim": 128 if preset == "qwen3" else None} | dict(config), held)
    refuse_others(rope, {"rope_type": ("default",), "type": ("default",)})
    return ModelConfig(
        preset=preset,
        layers=config["num_hidden_layers"],
        dim=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads"),
        context=config["max_position_embeddings"],
        hidden=config["intermediate_size"],
        tie=config.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        norm_eps=config.get("rms_norm_eps", 1e-6),
    )


def refuse_others(config: Mapping[str, Any], held: dict[str, tuple[Any, ...]]) -> None:
    """Raise ValueError for the first key whose value, where given, is none of the values that a preset holds."""
    for key, values in held.items():
        if key in config and config[key] not in values:
            raise ValueError(f"{key} {config[key]!r} has no counterpart; it must be {' or '.join(map(str, values))}")
