"""Lengths and learning-rate schedules against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import ScheduleConfig
from trainer.schedule import due, parse_tokens, rate_factor, steps_of


@pytest.mark.parametrize(
    "text, tokens",
    [("5M tokens", 5_000_000), ("5M", 5_000_000), ("1.5k tokens", 1500), ("2B", 2 * 10**9), ("17", 17), (40, 40),
     ("0.1M tokens", 100_000), ("1 token", 1)],
)  # fmt: skip
def test_tokens_are_parsed(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "M", "5 M tokens per day", "-5M", "5m", "1e6", "5Mtokens"])
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(ValueError, match="is not a number of tokens"):
        parse_tokens(text)


@pytest.mark.parametrize(
    "length, steps",
    [
        (0, 0),
        (7, 7),
        (500, 500),
        (0.1, 3),
        (0.5, 15),
        (0.01, 1),
        (1.0, 1),
        (2.0, 2),
        ("5M tokens", 611),
        ("1 token", 1),
    ],
)
def test_a_length_in_steps_of_30(length, steps):
    assert steps_of(length, total=30, batch_tokens=8192) == steps


@pytest.mark.parametrize("length", [-1, -0.1, 1.5])
def test_what_is_no_length_is_refused(length):
    with pytest.raises(ValueError):
        steps_of(length, 30, 8192)


def factors(total=10, **config):
    return [rate_factor(step, total, ScheduleConfig(**config), 1) for step in range(total)]


def test_wsd_rises_stays_and_falls_to_just_above_the_end():
    assert factors(name="wsd", warmup=2, decay=4) == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert factors(name="wsd", warmup=2, decay=4, final=0.2)[-1] == pytest.approx(0.2 + 0.8 / 4)


def test_linear_and_constant():
    assert factors(name="linear", warmup=0) == pytest.approx([1 - i / 10 for i in range(10)])
    assert factors(name="constant", warmup=4) == pytest.approx([0.25, 0.5, 0.75] + [1] * 7)


def test_cosine_is_halfway_in_the_middle():
    got = factors(name="cosine", warmup=0, final=0.1)
    assert got[0] == 1 and got[5] == pytest.approx(0.55)
    assert got[2] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.2)))


def test_warmup_and_decay_as_shares_of_the_run():
    assert factors(total=20, name="wsd", warmup=0.1, decay=0.5) == factors(total=20, name="wsd", warmup=2, decay=10)


@given(
    st.sampled_from(["wsd", "cosine", "linear", "constant"]), st.integers(1, 60), st.integers(0, 80),
    st.integers(0, 80), st.floats(0, 1),
)  # fmt: skip
def test_every_step_of_any_schedule_moves_the_weights_by_at_most_the_peak(name, total, warmup, decay, final):
    config = ScheduleConfig(name=name, warmup=warmup, decay=decay, final=final)
    got = [rate_factor(step, total, config, 1) for step in range(total)]
    assert all(0 < f <= 1 for f in got)
    after = got[min(warmup, total - 1) :]
    assert after == sorted(after, reverse=True)


def test_due_at_multiples_and_at_the_end():
    assert [s for s in range(1, 12) if due(s, 5, 11)] == [5, 10, 11]
