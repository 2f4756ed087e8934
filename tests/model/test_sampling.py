"""Generation: the cache changes nothing, rows do not depend on one another, logits processors match transformers'."""

import itertools
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process

from model import Transformer, beam_search, generate, stream
from model.sampling import keep_min_p, keep_top_k, keep_top_p, sampler

from .conftest import PRESETS, VOCAB, Make

PROMPTS = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 8, 7], list(range(30)), [3] * 24]


def without_cache(model: Transformer, prompt: list[int], new: int) -> list[int]:
    """Greedy text by a whole forward pass for each token."""
    window, text = prompt[-model.config.context :], []
    for _ in range(new):
        token = int(model(torch.tensor([window]))[0, -1].argmax())
        text.append(token)
        window = [*window, token]
        if len(window) > model.config.context:
            window = window[-max(1, model.config.context // 2) :]
    return text


@pytest.mark.parametrize("preset", PRESETS)
def test_greedy_text_is_the_uncached_one_batched_or_not(make: Make, preset: str) -> None:
    model = make(preset=preset, kv_heads=None if preset == "gpt2" else 2)
    want = [without_cache(model, prompt, 60) for prompt in PROMPTS]  # past the context of 24, several times
    assert len({tuple(text) for text in want}) == len(want)
    assert generate(model, PROMPTS, max_new_tokens=60, temperature=0) == want
    assert [generate(model, [p], max_new_tokens=60, temperature=0)[0] for p in PROMPTS] == want
    assert [list(stream(model, p, max_new_tokens=60, temperature=0)) for p in PROMPTS] == want


def test_a_context_of_one_token(make: Make) -> None:
    model = make(context=1)
    assert generate(model, [[1, 2]], max_new_tokens=5, temperature=0) == [without_cache(model, [1, 2], 5)]


def test_text_ends_before_the_stop_id(make: Make) -> None:
    model = make()
    full = generate(model, PROMPTS, max_new_tokens=20, temperature=0)
    stop = full[1][4]
    cut = generate(model, PROMPTS, max_new_tokens=20, temperature=0, stop_id=stop)
    assert cut == [text[: text.index(stop)] if stop in text else text for text in full]
    assert list(stream(model, PROMPTS[1], max_new_tokens=20, temperature=0, stop_id=stop)) == cut[1]


def test_a_seed_gives_the_same_text_and_each_row_its_own(make: Make) -> None:
    model = make()
    first = generate(model, [[1, 2]] * 3, max_new_tokens=12, seed=7)
    assert first == generate(model, [[1, 2]] * 3, max_new_tokens=12, seed=7)
    assert len({tuple(row) for row in first}) == 3
    assert [generate(model, [[1, 2]], max_new_tokens=12, seed=7 + i)[0] for i in range(3)] == first
    before = torch.get_rng_state()
    generate(model, [[1]], max_new_tokens=2)
    assert torch.equal(before, torch.get_rng_state())


def test_the_model_is_left_in_the_mode_it_was_in(make: Make) -> None:
    model = make(dropout=0.5).train()
    assert generate(model, [[1]], max_new_tokens=5, temperature=0) == generate(
        make(), [[1]], max_new_tokens=5, temperature=0
    )
    assert model.training and all(block.training for block in model.blocks)
    tokens = stream(model, [1], max_new_tokens=5)
    next(tokens)
    tokens.close()
    assert model.training and torch.is_grad_enabled()


def test_no_new_tokens(make: Make) -> None:
    assert generate(make(), [[1], [2]], max_new_tokens=0) == [[], []]


def test_generation_in_bf16(make: Make) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert len(generate(make(kv_heads=2), PROMPTS, max_new_tokens=30)[0]) == 30


def log_probability(model: Transformer, prompt: list[int], text: list[int]) -> float:
    """Of `text` after `prompt`, in nats."""
    rows = model(torch.tensor([prompt + text]))[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(rows.gather(1, torch.tensor(text)[:, None]).sum().detach())


def test_beam_search_with_enough_beams_finds_the_best_text(make: Make) -> None:
    model = make(vocab_size=6)
    best = max(itertools.product(range(6), repeat=3), key=lambda text: log_probability(model, [1, 2], list(text)))
    assert beam_search(model, [1, 2], beams=36, max_new_tokens=3) == list(best)


def test_beam_search_weighs_ended_texts_by_mean_log_probability(make: Make) -> None:
    model = make(vocab_size=6)
    texts = [[5], *([a, 5] for a in range(5)), *([a, b] for a in range(5) for b in range(5))]
    best = max(texts, key=lambda text: log_probability(model, [1, 2], text) / len(text))
    want = best[:-1] if best[-1] == 5 else best
    assert beam_search(model, [1, 2], beams=36, max_new_tokens=2, stop_id=5) == want


def test_one_beam_is_greedy(make: Make) -> None:
    model = make(dropout=0.5).train()
    greedy = generate(model, [[4, 2]], max_new_tokens=20, temperature=0)[0]
    assert beam_search(model, [4, 2], beams=1, max_new_tokens=20) == greedy
    assert (
        beam_search(model, [4, 2], beams=1, max_new_tokens=20, stop_id=greedy[6]) == greedy[: greedy.index(greedy[6])]
    )
    assert model.training
    with pytest.raises(ValueError, match="beams must be at least 1"):
        beam_search(model, [1], beams=0, max_new_tokens=1)


Transform = Callable[[Tensor, float], Tensor]


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (keep_top_k, logits_process.TopKLogitsWarper, [1, 3, 60, 1000]),
        (keep_top_p, logits_process.TopPLogitsWarper, [0.01, 0.3, 0.9, 1.0]),
        (keep_min_p, logits_process.MinPLogitsWarper, [0.0, 0.05, 0.5, 1.0]),
    ],
)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.0, 0.5, 3.0]))
def test_transforms_are_those_of_transformers(
    ours: Transform, theirs: type, values: list[float], seed: int, scale: float
) -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale
    logits[:, 1] = logits[:, 0]  # a tie
    for value in values:
        want = theirs(value)(torch.zeros(3, 1, dtype=torch.long), logits.clone())
        assert torch.equal(ours(logits, value), want)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, -9.0]])
    choose = sampler(1, 2.0, None, None, None, seed=0)
    counts = Counter(choose(logits)[0] for _ in range(4000))
    weights = [math.exp(x / 2) for x in (1, 0, -1, -9)]
    expected = [4000 * w / sum(weights) for w in weights]
    assert sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected)) < 16.3  # chi-square, 3 degrees, p = 0.001


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 5e-324])
def test_hardly_any_temperature_is_greedy(make: Make, temperature: float) -> None:
    model = make()
    want = generate(model, PROMPTS, max_new_tokens=8, temperature=0)
    options = [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}]
    for chosen in options:
        assert generate(model, PROMPTS, max_new_tokens=8, temperature=temperature, **chosen) == want  # type: ignore[arg-type]


def test_transforms_limit_what_is_drawn() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert {sampler(1, 5.0, 2, None, None, seed)(logits)[0] for seed in range(50)} == {0, 1}
    assert {sampler(1, 1.0, None, 0.6, None, seed)(logits)[0] for seed in range(50)} == {0}  # 0.64 by itself
    assert {sampler(1, 1.0, None, None, 0.2, seed)(logits)[0] for seed in range(50)} == {0, 1}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
    ],
)
def test_bad_options_are_refused(make: Make, bad: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(make(), [[1]], max_new_tokens=1, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []], [[VOCAB]], [[1], [-1]]])
def test_bad_prompts_are_refused(make: Make, prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="prompt"):
        generate(make(), prompts, max_new_tokens=1)
