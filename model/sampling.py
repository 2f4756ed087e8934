"""Text from a model, one token at a time, and pure transforms of logits.

B rows, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .decode import Decoder, ThroughModule
from .products import Weights
from .transformer import Transformer


def generate(
    model: Transformer,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_id: int | None = None,
    seed: int = 0,
    weights: Weights = "fp32",
    sharded: bool = False,
) -> list[list[int]]:
    """Continue each prompt by at most `max_new_tokens` ids; returns the new ids only, without the stop id.

    `temperature` 0 takes the most probable token. Else `temperature`, `top_k`, `top_p` and `min_p` act in that order.
    Row i is sampled with `seed + i`, so it is what its prompt alone gives with that seed, whatever the other rows
    (up to rounding). Text may outgrow the model's context: a row that has filled it goes on from its last
    `context // 2` tokens; of a longer prompt the last `context` tokens count.

    `weights`: bf16 and int8 (on a CPU) are faster and not exact. `sharded`: other processes hold parts of the weights
    and call this too; every token then goes through the module, in the precision of autocast, and `weights` does
    nothing. Raises ValueError for bad arguments.
    """
    choose = sampler(len(prompts), temperature, top_k, top_p, min_p, seed)
    texts: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for ids in next_ids(model, prompts, max_new_tokens, choose, weights, sharded):
        running -= {row for row in running if ids[row] == stop_id}
        for row in running:
            texts[row].append(ids[row])
        if not running:
            break
    return texts


def stream(
    model: Transformer,
    prompt: list[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_id: int | None = None,
    seed: int = 0,
    weights: Weights = "fp32",
) -> Generator[int, None, None]:
    """The ids that `generate` gives for this prompt, each as soon as it is known."""
    choose = sampler(1, temperature, top_k, top_p, min_p, seed)
    for (token,) in next_ids(model, [prompt], max_new_tokens, choose, weights):
        if token == stop_id:
            return
        yield token


@contextlib.contextmanager
def eval_mode(model: Transformer) -> Iterator[None]:
    """Without dropout; afterwards the model is in the mode it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def beam_search(
    model: Transformer, prompt: list[int], *, beams: int, max_new_tokens: int, stop_id: int | None = None
) -> list[int]:
    """The continuation with the highest mean log probability that `beams` hypotheses find, without the stop id.

    Ends after `max_new_tokens` ids, or when `beams` hypotheses have ended with the stop id. One beam is greedy.
    Without a cache: each step reads the last `context` tokens of every hypothesis. Raises ValueError as `generate`.
    """
    check_prompts(model, [prompt])
    if beams < 1:
        raise ValueError(f"beams must be at least 1, not {beams}")
    running: list[tuple[float, list[int]]] = [(0.0, [])]  # (log probability, ids)
    ended: list[tuple[float, list[int]]] = []  # (mean log probability, ids)
    for length in range(1, max_new_tokens + 1):
        windows = [(prompt + text)[-model.config.context :] for _, text in running]
        with eval_mode(model):
            hidden = model(torch.tensor(windows, device=model.embed.weight.device), logits=False)[:, -1]
        log_p = F.linear(hidden, model.head_weight).float().log_softmax(-1).cpu()
        totals = (log_p + torch.tensor([[score] for score, _ in running])).flatten()
        best = totals.topk(min(2 * beams, len(totals)))
        before, running = running, []
        for rank, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            parent, token = divmod(index, model.vocab_size)
            if token != stop_id and len(running) < beams:
                running.append((score, [*before[parent][1], token]))
            elif token == stop_id and rank < beams:
                ended.append((score / length, before[parent][1]))
        if len(ended) >= beams or not running:
            break
    if len(ended) < beams:
        ended += [(score / max(1, len(text)), text) for score, text in running]
    return max(ended)[1]


@torch.no_grad()
def next_ids(
    model: Transformer,
    prompts: list[list[int]],
    max_new_tokens: int,
    choose: Callable[[Tensor], list[int]],
    weights: Weights,
    sharded: bool = False,
) -> Iterator[list[int]]:
    """Yield `max_new_tokens` times the next id of every row, as `choose` picks it from logits (B, V).

    The prompts are read at once, then one token a step. The model is in eval mode meanwhile.
    """
    check_prompts(model, prompts)
    context = model.config.context
    windows = [prompt[-context:] for prompt in prompts]
    slots = min(context, max(map(len, windows)) + max_new_tokens)
    with eval_mode(model):
        reader = ThroughModule(model, slots) if sharded else Decoder(model, len(windows), slots, weights)
        ids: list[int] = []
        for _ in range(max_new_tokens):
            if ids and max(map(len, windows)) <= context:
                logits = reader.step(ids)
            else:  # at first, and when positions have moved
                windows = [w if len(w) <= context else w[-max(1, context // 2) :] for w in windows]
                logits = reader.read(windows)
            ids = choose(logits)
            yield ids
            for window, token in zip(windows, ids, strict=True):
                window.append(token)


def sampler(
    rows: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, seed: int
) -> Callable[[Tensor], list[int]]:
    """A function from logits (B, V) to ids: the best at temperature 0, else a draw, with one generator a row."""
    if not temperature >= 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be between 0 and 1, not {min_p}")
    generators = [torch.Generator().manual_seed(seed + row) for row in range(rows)]

    def choose(logits: Tensor) -> list[int]:
        if temperature == 0:
            return logits.argmax(-1).tolist()
        tiny = torch.finfo(logits.dtype).tiny  # the coldest there is; the best tokens stay at 0, the others may be -inf
        logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, tiny)
        logits = logits if top_k is None else keep_top_k(logits, top_k)
        logits = logits if top_p is None else keep_top_p(logits, top_p)
        logits = logits if min_p is None else keep_min_p(logits, min_p)
        probabilities = logits.softmax(-1).cpu()  # drawn on the host: the same text on every device, up to rounding
        draws = zip(probabilities, generators, strict=True)
        return [int(torch.multinomial(row, 1, generator=generator)) for row, generator in draws]

    return choose


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest logits of (..., V), ties with the last included; the others become -inf."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest most probable tokens with total probability p or more (nucleus sampling, arXiv:1904.09751)."""
    ascending, order = logits.sort(descending=False)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -1] = False
    return logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as probable as the most probable one (arXiv:2407.01082)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), float("-inf"))


def check_prompts(model: Transformer, prompts: list[list[int]]) -> None:
    """Raise ValueError unless there are prompts, none is empty, and all ids are in the vocabulary."""
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token; <|endoftext|> starts a new document")
    worst = max(prompts, key=max)
    if min(map(min, prompts)) < 0 or max(worst) >= model.vocab_size:
        raise ValueError(f"prompt ids must be from 0 to {model.vocab_size - 1}, the model's vocabulary")
