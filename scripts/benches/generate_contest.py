"""Who writes text for `python -m scripts.bench generate`: ours, transformers and nanoGPT with the same weights.

`PYTHON -m scripts.benches.generate_contest REQUEST` does one measurement and prints a JSON object. A prompt of random
ids is continued greedily by the same number of ids by everyone; the whole call is timed, with the reading of the
prompt and whatever an entrant makes for it.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .nanogpt import module_of

if TYPE_CHECKING:
    from model import Transformer

Ids = list[list[int]]
Write = Callable[[Ids, int], Ids]
DEVIATION = 0.05
"""Of all matrices: so that greedy text does not repeat itself soon."""
LARGE = 1 << 29
"""Bytes that no cache holds."""


@dataclass(frozen=True)
class Request:
    """One measurement in a process of its own."""

    who: str
    preset: str
    layers: int
    dim: int
    heads: int
    context: int
    vocab: int
    prompt: int
    tokens: int
    rows: list[int]
    calls: int
    """That are timed, after the first one."""
    options: dict[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        return json.dumps(asdict(self))


def make_model(request: Request) -> "Transformer":
    """The same for the same request."""
    import torch

    from model import ModelConfig, Transformer

    shape: dict[str, Any] = {name: getattr(request, name) for name in ("preset", "layers", "dim", "heads", "context")}
    config = ModelConfig(**shape, norm_eps=1e-5)
    torch.manual_seed(0)
    model = Transformer(config, request.vocab).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=DEVIATION)
    return model


def bytes_per_token(model: "Transformer", request: Request, width: int) -> int:
    """What a step of one row has to read: every matrix once, `width` bytes a weight, and the cache, fp32.

    The cache counts with its mean length. Norms, biases and a row of the embedding are left out.
    """
    roles = model.roles()
    weights = sum(p.numel() for name, p in model.named_parameters() if roles[name] == "matrix")
    weights += model.head_weight.numel()
    config = model.config
    cache = 2 * config.layers * config.num_kv_heads * config.head_dim * (request.prompt + request.tokens / 2)
    return weights * width + int(4 * cache)


def ours(request: Request, model: "Transformer") -> Write:
    from model import generate

    def write(prompts: Ids, tokens: int) -> Ids:
        return generate(model, prompts, max_new_tokens=tokens, temperature=0, **request.options)

    return write


def transformers(request: Request, model: "Transformer") -> Write:
    """`generate` of transformers' own class, `options`: the dtype of its weights, and its `cache_implementation`."""
    import torch

    from model import to_huggingface

    library = import_module("transformers")  # not a dependency
    library.logging.set_verbosity_error()
    config, state = to_huggingface(model)
    made = library.AutoModelForCausalLM.from_config(library.AutoConfig.for_model(**config)).eval()
    missing = made.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    made.tie_weights()
    options = dict(request.options)
    made = made.to(getattr(torch, options.pop("dtype", "float32")))

    def write(prompts: Ids, tokens: int) -> Ids:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = made.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
                do_sample=False, pad_token_id=0, use_cache=True, **options,
            )  # fmt: skip
        return out[:, ids.shape[1] :].tolist()

    return write


def nanogpt(request: Request, model: "Transformer") -> Write:
    """nanoGPT's `generate`, which reads the whole text again for each token; greedy as the best of one."""
    import torch

    from model import to_huggingface

    module = module_of(request.options["path"])
    config = module.GPTConfig(
        n_layer=request.layers, n_head=request.heads, n_embd=request.dim, block_size=request.context,
        vocab_size=request.vocab, bias=True, dropout=0.0,
    )  # fmt: skip
    made = module.GPT(config).eval()
    _, state = to_huggingface(model)
    turned = {name: t.t() if t.ndim == 2 and ".h." in name else t for name, t in state.items()}
    lacking = made.load_state_dict(turned, strict=False)
    assert not lacking.unexpected_keys and all(name.endswith((".bias", "lm_head.weight")) for name in lacking[0])

    def write(prompts: Ids, tokens: int) -> Ids:
        ids = torch.tensor(prompts)
        return made.generate(ids, tokens, top_k=1)[:, ids.shape[1] :].tolist()

    return write


WRITERS = {"ours": ours, "transformers": transformers, "nanoGPT": nanogpt}


def measure(request: Request) -> dict[str, Any]:
    """Per number of rows: `tokens_per_s` of the median call, and `ids` of the first row."""
    import torch

    model = make_model(request)
    write = WRITERS[request.who](request, model)
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "parameters": model.parameter_count()}
    for rows in request.rows:
        prompts = torch.randint(request.vocab, (rows, request.prompt), generator=generator).tolist()
        ids, seconds = write(prompts, request.tokens), []
        for _ in range(request.calls):
            start = time.perf_counter()
            again = write(prompts, request.tokens)
            seconds.append(time.perf_counter() - start)
            assert again == ids, "the same call gave another text"
        assert all(len(row) == request.tokens for row in ids)
        found[str(rows)] = {"tokens_per_s": rows * request.tokens / statistics.median(seconds), "ids": ids}
    return found


def bandwidth(request: Request) -> dict[str, Any]:
    """Bytes per second at which a sum reads fp32 numbers, by all threads: many, and as many again and again as a step
    reads in each precision, some of which stay in caches."""
    import torch

    model = make_model(request)
    found: dict[str, Any] = {"large": _reading(LARGE if request.calls > 1 else LARGE >> 6)}
    for name, width in (("fp32", 4), ("bf16", 2), ("int8", 1)):
        count = bytes_per_token(model, request, width)
        found[name] = {"bytes": count, "per_s": _reading(count)}
    return found | {"threads": torch.get_num_threads()}


def _reading(count: int) -> float:
    import torch

    numbers, best = torch.ones(count // 4), 0.0
    for _ in range(5):
        repeats = max(1, (LARGE >> 1) // count)
        start = time.perf_counter()
        for _ in range(repeats):
            numbers.sum()
        best = max(best, repeats * count / (time.perf_counter() - start))
    return best


def main(argv: Sequence[str]) -> None:
    request = Request(**json.loads(argv[0]))
    print(json.dumps((bandwidth if request.who == "memory" else measure)(request)))


if __name__ == "__main__":
    main(sys.argv[1:])
