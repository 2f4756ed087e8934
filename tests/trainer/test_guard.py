"""The guard: which steps it skips, against a plain reference, on a device that nobody waits for."""

import json
import math
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.guard import LEAST_SPREAD, LIMIT, WINDOW, Guard, Skip

CPU = torch.device("cpu")


def alone(t):
    return t


def check(guard, loss, *, norm=1.0, step=0, reduce=alone):
    return bool(guard.check(step, torch.tensor(norm), torch.tensor(loss, dtype=torch.float64), 1, reduce))


def test_what_is_not_finite_is_refused_and_counted():
    guard = Guard(CPU, sigma=6.0)
    bad = (math.nan, math.inf, -math.inf)
    assert check(guard, 1.0)
    assert not any(check(guard, x) or check(guard, 1.0, norm=x) for x in bad)
    assert guard.state() == {"skipped": 6, "in_a_row": 6, "losses": [1.0]}
    assert check(guard, 2.0) and guard.state() == {"skipped": 6, "in_a_row": 0, "losses": [1.0, 2.0]}
    assert not check(guard, 1.0, reduce=lambda t: t + math.nan), "another rank has a NaN"


def test_the_loss_is_a_mean_over_the_targets_of_all_ranks():
    guard = Guard(CPU, sigma=6.0)
    guard.check(0, torch.tensor(1.0), torch.tensor(6.0), 4, lambda t: t + 2.0)
    guard.check(1, torch.tensor(1.0), torch.tensor(0.0), 0, alone)  # a step without targets does no harm
    assert guard.state() == {"skipped": 0, "in_a_row": 0, "losses": [2.0, 0.0]}


def judged(losses, sigma):
    """The definition, with lists: which of the losses are applied."""
    kept, verdicts = [], []
    for loss in losses:
        good = math.isfinite(loss)
        if good and len(kept) >= WINDOW:
            last = kept[-WINDOW:]
            spread = max(statistics.stdev(last), LEAST_SPREAD * abs(statistics.fmean(last)))
            good = loss <= statistics.fmean(last) + sigma * spread
        verdicts.append(good)
        kept += [loss] if good else []
    return verdicts


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 2.0, 6.0]), st.sampled_from([0.0, 0.01, 0.5]))
def test_a_spike_is_what_the_definition_says(seed, sigma, noise):
    rng = random.Random(seed)
    jumps = [0] * 20 + [9.0, math.nan]
    losses = [4.0 - i / 200 + rng.gauss(0, 1) * noise + rng.choice(jumps) for i in range(300)]
    guard = Guard(CPU, sigma=sigma)
    assert [check(guard, loss, step=i) for i, loss in enumerate(losses)] == judged(losses, sigma)


def test_nothing_is_a_spike_before_the_window_is_full_nor_without_sigma():
    guard = Guard(CPU, sigma=6.0)
    assert all(check(guard, loss) for loss in [1.0] * (WINDOW - 1) + [1e6])
    guard = Guard(CPU, sigma=None)
    assert all(check(guard, loss) for loss in [1.0] * 2 * WINDOW + [1e6])


def test_losses_that_hardly_vary_make_no_spike_of_a_small_rise():
    guard = Guard(CPU, sigma=6.0)
    assert all(check(guard, loss) for loss in [1.0] * WINDOW + [1.05])
    assert not check(guard, 1.07)


def test_other_data_is_not_compared_with_what_was_before():
    guard = Guard(CPU, sigma=6.0)
    for _ in range(WINDOW):
        check(guard, 1.0)
    guard.forget()
    assert check(guard, 5.0) and guard.state()["losses"] == [5.0]


def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped():
    losses = [3 + math.sin(i) / 3 for i in range(140)] + [9.0, 3.0, math.nan, 3.1]
    whole, first = Guard(CPU, sigma=3.0), Guard(CPU, sigma=3.0)
    verdicts = [check(whole, loss) for loss in losses]
    for cut in (0, 5, 127, 128, 141):
        first = Guard(CPU, sigma=3.0)
        before = [check(first, loss) for loss in losses[:cut]]
        second = Guard(CPU, sigma=3.0, **json.loads(json.dumps(first.state())))
        assert before + [check(second, loss) for loss in losses[cut:]] == verdicts
        assert second.state() == whole.state()
    assert whole.state()["skipped"] == 2


def test_what_was_skipped_is_told_once():
    guard = Guard(CPU, sigma=6.0)
    for step in range(WINDOW):
        check(guard, 1.0, step=step)
    for step, loss in ((200, 7.0), (201, math.nan), (202, 1.0)):
        check(guard, loss, step=step)
    spike, poisoned = guard.read()
    assert spike == Skip(200, "spike", 7.0)
    assert (poisoned.step, poisoned.reason) == (201, "not finite") and math.isnan(poisoned.loss)
    assert guard.read() == []


@pytest.mark.parametrize("limit", [LIMIT, 3])
def test_as_many_in_a_row_are_too_many(limit):
    guard = Guard(CPU, sigma=6.0, limit=limit, skipped=5, in_a_row=limit - 2)
    check(guard, math.nan)
    assert not guard.exhausted()
    check(guard, math.nan)
    assert guard.exhausted() and guard.state()["skipped"] == 7
    check(guard, 1.0)
    assert not guard.exhausted()
