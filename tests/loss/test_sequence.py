"""Log-probabilities of tokens without all logits, and the losses of pairs of sequences made from them.

B sequences, T tokens in a sequence, V vocabulary, D width, N targets.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from loss import Head, build_objective
from loss.rows import Selection
from loss.sequence import bradley_terry, dpo, sequence_log_probs, token_log_probs


def problem(n=11, v=13, d=5, *, bias=True, masked=True, dtype=torch.float64, seed=0):
    """hidden (N, D), weight (V, D), bias (V,) or None, targets (N,) and an upstream gradient (N,) of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    targets = torch.randint(0, v, (n,), generator=generator)
    if masked:
        targets[1::3] = -100
    return normal(n, d), normal(v, d), normal(v) if bias else None, targets, normal(n).detach()


def plain(hidden, weight, bias, targets, softcap=None):
    """The definition, with all logits."""
    logits = F.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    found = log_p.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(targets != -100, found, 0.0)


def gradients(values, upstream, *tensors):
    return torch.autograd.grad(values, [t for t in tensors if t is not None], upstream)


each_head = pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])


class Whole:
    """A head's only part."""

    start = 0

    def sum(self, values):
        return values

    max = sum


each_cap = pytest.mark.parametrize("softcap", [None, 2.0], ids=["no cap", "cap"])


@each_head
@each_cap
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100, None])
def test_equals_the_gathered_log_softmax_with_every_gradient(bias, softcap, masked, chunk):
    hidden, weight, b, targets, upstream = problem(bias=bias, masked=masked)
    ours = token_log_probs(hidden, Head(weight, b, softcap), targets, chunk=chunk)
    theirs = plain(hidden, weight, b, targets, softcap)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    pairs = zip(
        gradients(ours, upstream, hidden, weight, b), gradients(theirs, upstream, hidden, weight, b), strict=True
    )
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


@each_head
@each_cap
def test_gradcheck_of_tokens_weighted_unevenly(bias, softcap):
    hidden, weight, b, targets, upstream = problem(n=6, v=5, d=3, bias=bias)
    targets = targets.view(2, 3)

    def weighted(h, w, *rest):
        values = token_log_probs(h.view(2, 3, 3), Head(w, *rest, softcap=softcap), targets, chunk=2)
        return values * upstream.view(2, 3)

    assert torch.autograd.gradcheck(weighted, [t for t in (hidden, weight, b) if t is not None])


def test_only_what_asks_for_a_gradient_gets_one():
    hidden, weight, b, targets, upstream = problem()
    everything = gradients(token_log_probs(hidden, Head(weight, b), targets), upstream, hidden, weight, b)
    for i in range(3):
        inputs = [t.detach().requires_grad_(i == j) for j, t in enumerate((hidden, weight, b))]
        (got,) = gradients(token_log_probs(inputs[0], Head(*inputs[1:]), targets), upstream, inputs[i])
        torch.testing.assert_close(got, everything[i], rtol=1e-13, atol=1e-14)
    assert not token_log_probs(hidden.detach(), Head(weight.detach()), targets).requires_grad
    with torch.no_grad():
        assert not token_log_probs(hidden, weight, targets).requires_grad


def test_a_tied_weight_gets_both_of_its_gradients():
    _, weight, _, targets, upstream = problem()
    tokens = torch.arange(len(targets)) % len(weight)
    ours = token_log_probs(F.embedding(tokens, weight).tanh(), weight, targets, chunk=3)
    theirs = plain(F.embedding(tokens, weight).tanh(), weight, None, targets)
    pair = [gradients(values, upstream, weight)[0] for values in (ours, theirs)]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_hardly_any_rows(n, masked):
    hidden, weight, b, targets, upstream = problem(n=n, masked=False)
    if masked:
        targets.fill_(-100)
    ours = token_log_probs(hidden, Head(weight, b), targets)
    assert ours.shape == (n,)
    theirs = plain(hidden, weight, b, targets)
    torch.testing.assert_close(ours, theirs)
    pairs = zip(
        gradients(ours, upstream, hidden, weight, b), gradients(theirs, upstream, hidden, weight, b), strict=True
    )
    for got, expected in pairs:
        torch.testing.assert_close(got, expected)


def test_batches_keep_their_shape():
    hidden, weight, _, targets, _ = problem(n=12)
    flat = token_log_probs(hidden, weight, targets)
    torch.testing.assert_close(
        token_log_probs(hidden.view(3, 4, -1), weight, targets.view(3, 4)), flat.view(3, 4), rtol=0, atol=0
    )


@each_cap
def test_nan_in_rows_without_a_target_goes_nowhere(softcap):
    hidden, weight, b, targets, upstream = problem()
    dirty = hidden.detach().clone()
    dirty[targets == -100] = math.nan
    dirty.requires_grad_()
    ours, clean = (token_log_probs(h, Head(weight, b, softcap), targets, chunk=3) for h in (dirty, hidden))
    assert not ours[targets == -100].any()
    torch.testing.assert_close(ours, clean, rtol=0, atol=0)
    pairs = zip(gradients(ours, upstream, dirty, weight, b), gradients(clean, upstream, hidden, weight, b), strict=True)
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_where_all_rows_are_computed_masked_ones_are_0_too(monkeypatch):
    """As on a device that would have to wait for the count of the valid ones."""
    hidden, weight, b, targets, upstream = problem()
    expected = token_log_probs(hidden, Head(weight, b), targets)
    slopes = gradients(expected, upstream, hidden, weight, b)
    all_rows = classmethod(lambda cls, targets: cls(targets.shape, (targets != -100).flatten(), None, masked=True))
    monkeypatch.setattr(Selection, "of", all_rows)
    ours = token_log_probs(hidden, Head(weight, b), targets)
    torch.testing.assert_close(ours, expected)
    for got, slope in zip(gradients(ours, upstream, hidden, weight, b), slopes, strict=True):
        torch.testing.assert_close(got, slope)


def test_a_banned_id_costs_infinitely_much_and_no_gradient_is_nan():
    hidden, weight, _, targets, upstream = problem(masked=False)
    banned = torch.zeros(len(weight), dtype=torch.float64)
    banned[int(targets[0])] = -math.inf
    values = token_log_probs(hidden, Head(weight, banned), targets)
    assert values[0] == -math.inf and values[targets != targets[0]].isfinite().all()
    assert all(g.isfinite().all() for g in gradients(values, upstream, hidden, weight))


def test_extreme_logits_stay_exact():
    logits = torch.tensor([[200.0, 0.0, 0.0], [1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]], requires_grad=True)
    values = token_log_probs(logits, torch.eye(3), torch.tensor([1, 2, 2]))
    assert values.tolist() == [-200.0, -20_000.0, 0.0]
    values.sum().backward()
    assert logits.grad.tolist() == [[-1, 1, 0], [-1, 0, 1], [0, 0, 0]]


def test_agrees_with_the_nll_that_the_objective_reports():
    hidden, weight, b, targets, _ = problem(dtype=torch.float32)
    for softcap in (None, 2.0):
        head = Head(weight, b, softcap)
        nll = build_objective("ce", vocab_size=len(weight))(hidden, head, targets, per_token=True).per_token["nll"]
        torch.testing.assert_close(token_log_probs(hidden, head, targets), -nll)


@each_head
@each_cap
@pytest.mark.parametrize("backward_in_autocast", [False, True])
def test_bf16_is_no_less_exact_than_the_plain_path(bias, softcap, backward_in_autocast):
    hidden, weight, b, targets, upstream = problem(n=300, v=257, d=64, bias=bias, dtype=torch.float32)
    tensors = [t for t in (hidden, weight, b) if t is not None]
    with torch.no_grad():
        weight *= 0.2
    exact = [None if t is None else t.detach().double().requires_grad_() for t in (hidden, weight, b)]
    true_values = plain(*exact, targets, softcap)
    truth = [true_values.detach(), *gradients(true_values, upstream.double(), *exact)]

    def errors(function):
        with torch.autocast("cpu", torch.bfloat16):
            values = function()
        assert values.dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16, enabled=backward_in_autocast):
            found = [values.detach(), *torch.autograd.grad(values, tensors, upstream)]
        return [float((got.double() - true).norm() / true.norm()) for got, true in zip(found, truth, strict=True)]

    ours = errors(lambda: token_log_probs(hidden, Head(weight, b, softcap), targets, chunk=64))
    theirs = errors(lambda: plain(hidden, weight, b, targets, softcap))
    assert all(a <= 1.1 * b + 1e-5 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)
    assert ours[0] > 1e-5  # the products were not fp32


def test_the_backward_pass_multiplies_in_the_dtype_of_the_forward_pass(monkeypatch):
    from loss import sequence

    seen = []
    inner = sequence.Products

    def spy(*arguments):
        made = inner(*arguments)
        seen.append(made.dtype)
        return made

    monkeypatch.setattr(sequence, "Products", spy)
    hidden, weight, _, targets, upstream = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = token_log_probs(hidden, weight, targets)
    inside.backward(upstream)
    outside = token_log_probs(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        outside.backward(upstream)
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2


@each_cap
def test_nothing_of_tokens_times_vocabulary_is_kept(softcap):
    n, v, d, chunk = 64, 50, 4, 8
    hidden, weight, b, targets, upstream = problem(n=n, v=v, d=d, masked=False)
    kept = []

    def saved_by(function):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            function().backward(upstream)
        return max(kept)

    assert saved_by(lambda: plain(hidden, weight, b, targets, softcap)) == n * v
    ours = saved_by(lambda: token_log_probs(hidden, Head(weight, b, softcap), targets, chunk=chunk))
    assert ours <= max(n * d, v * d, chunk * v)  # the chunk alone is there while its softcap is differentiated


def test_it_is_differentiable_once_and_says_so():
    hidden, weight, b, targets, upstream = problem()
    upstream.requires_grad_()
    inputs = (hidden, weight, b, upstream)
    for given in (upstream, upstream.detach()):
        values = token_log_probs(hidden, Head(weight, b), targets)
        (gradient,) = torch.autograd.grad(values, hidden, given, create_graph=True)
        # Beside something else that has a gradient the missing one would go unnoticed.
        total = gradient.square().sum() + sum(t.sum() for t in inputs)
        for wanted in inputs if given is upstream else inputs[:3]:
            with pytest.raises(RuntimeError, match="differentiable once"):
                torch.autograd.grad(total, wanted, retain_graph=True)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "hidden states of shape (4, 2) for targets of shape (3,)"),
        ({"head": torch.zeros(5, 3)}, "a head of shape (5, 3)"),
        ({"targets": torch.zeros(4)}, "targets are torch.float32, not int64"),
        ({"targets": torch.tensor([0, 5, -100, 0])}, "target 5 is neither -100 nor in [0, 5)"),
        ({"targets": torch.tensor([0, -1, -100, 0])}, "target -1 is neither"),
        ({"chunk": 0}, "a chunk of 0 rows"),
        ({"head": Head(torch.zeros(5, 2), shard=Whole())}, "cannot be split over ranks"),
    ],
)
def test_wrong_input_is_refused(change, told):
    given = {
        "hidden": torch.zeros(4, 2),
        "head": torch.zeros(5, 2),
        "targets": torch.zeros(4, dtype=torch.int64),
        **change,
    }
    with pytest.raises(ValueError) as error:
        token_log_probs(**given)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_sums_and_means_of_sequences():
    per_token = torch.tensor([[-1.0, -2.0, math.nan], [-3.0, 0.0, -5.0], [math.nan, math.nan, math.nan]])
    targets = torch.tensor([[4, 0, -100], [1, -100, 2], [-100, -100, -100]])
    assert sequence_log_probs(per_token, targets).tolist() == [-3.0, -8.0, 0.0]
    assert sequence_log_probs(per_token, targets, average=True).tolist() == [-1.5, -4.0, 0.0]
    assert sequence_log_probs(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.int64)).tolist() == [0.0, 0.0]


def test_padding_changes_no_sequence():
    hidden, weight, _, targets, _ = problem(n=6, masked=False)
    short = sequence_log_probs(token_log_probs(hidden, weight, targets)[None], targets[None])
    padded = torch.cat([targets, torch.full((4,), -100)])[None]
    longer = torch.cat([hidden, hidden.new_full((4, hidden.shape[1]), math.nan)])[None]
    long = sequence_log_probs(token_log_probs(longer, weight, padded), padded)
    torch.testing.assert_close(short, long)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (3,)), ((), ())])
def test_sums_of_unlike_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="log-probabilities of shape"):
        sequence_log_probs(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.int64))


@pytest.mark.parametrize("difference, nats", [(0, 0.6931472), (1, 0.3132617), (-1, 1.3132617)])
def test_bradley_terry_goldens(difference, nats):
    chosen, rejected = torch.tensor([3.0 + difference, -2.0]), torch.tensor([3.0, -2.0 - difference])
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx([nats, nats], abs=1e-7)
    assert bradley_terry(chosen + 5, rejected, margin=5.0).tolist() == pytest.approx([nats, nats], abs=1e-6)
    margins = torch.tensor([1.0, -2.0])
    assert bradley_terry(chosen + margins, rejected, margins).tolist() == pytest.approx([nats, nats], abs=1e-6)


def test_the_two_outcomes_of_a_pair_have_probability_one():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, dtype=torch.float64, generator=generator) * 4 for _ in range(2))
    won, lost = bradley_terry(a, b), bradley_terry(b, a)
    torch.testing.assert_close((-won).exp() + (-lost).exp(), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(lost - won, a - b)  # swapping the pair is the sign of its difference
    torch.testing.assert_close(won, bradley_terry(-b, -a))


def test_bradley_terry_far_from_zero_is_finite_with_its_gradient():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry(chosen, torch.zeros(2))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1e4] and chosen.grad.tolist() == [0.0, -1.0]


def of_the_paper(policy_w, policy_l, reference_w, reference_l, beta, eps):
    """Losses and rewards in numpy: Rafailov et al. 2023, equations 4 and 7, and the mixture of Mitchell's note."""
    ratio = (np.exp(policy_w) / np.exp(reference_w)) ** beta / (np.exp(policy_l) / np.exp(reference_l)) ** beta
    preferred = ratio / (1 + ratio)
    rewards = (beta * np.log(np.exp(w) / np.exp(r)) for w, r in ((policy_w, reference_w), (policy_l, reference_l)))
    return -(1 - eps) * np.log(preferred) - eps * np.log(1 / (1 + ratio)), *rewards


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("eps", [0.0, 0.1, 0.49])
def test_dpo_equals_the_paper(beta, eps):
    generator = torch.Generator().manual_seed(1)
    four = [-torch.rand(20, dtype=torch.float64, generator=generator) * 4 for _ in range(4)]
    four[0].requires_grad_()
    four[1].requires_grad_()
    out = dpo(*four, beta=beta, label_smoothing=eps)
    arrays = [t.detach().numpy() for t in four]
    for got, expected in zip(out, of_the_paper(*arrays, beta, eps), strict=True):
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-11, atol=1e-12)
    # The gradient by hand: beta (sigmoid(d) - (1 - eps)) for the chosen one, its negative for the rejected one.
    d = out.chosen_rewards.numpy() - out.rejected_rewards.numpy()
    by_hand = beta * (1 / (1 + np.exp(-d)) - (1 - eps))
    out.losses.sum().backward()
    np.testing.assert_allclose(four[0].grad.numpy(), by_hand, rtol=1e-11)
    np.testing.assert_allclose(four[1].grad.numpy(), -by_hand, rtol=1e-11)


def test_dpo_of_the_reference_itself_costs_ln_2():
    pair = torch.tensor([-3.0, -70.0]), torch.tensor([-5.0, -1.0])
    for eps in (0.0, 0.3):
        out = dpo(*pair, *pair, label_smoothing=eps)
        assert out.losses.tolist() == pytest.approx([math.log(2)] * 2)
        assert not out.chosen_rewards.any() and not out.rejected_rewards.any()


def test_the_reference_and_the_rewards_have_no_gradient():
    four = [torch.zeros(3, requires_grad=True) for _ in range(4)]
    out = dpo(*four)
    out.losses.sum().backward()
    assert [t.grad is not None for t in four] == [True, True, False, False]
    assert not out.chosen_rewards.requires_grad and not out.rejected_rewards.requires_grad


def test_smoothed_dpo_is_least_where_the_preference_is_one_minus_eps():
    d = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    zero = torch.zeros_like(d)
    losses = dpo(d, zero, zero, zero, beta=1.0, label_smoothing=0.2).losses
    assert float(d[losses.argmin()]) == pytest.approx(math.log(0.8 / 0.2), abs=0.01)


def test_scores_in_bf16_are_subtracted_in_fp32():
    scores = torch.tensor([-1000.0]).bfloat16()
    assert bradley_terry(scores, scores, margin=1.0).dtype == torch.float32
    assert dpo(scores, scores, scores.float() + 1, scores).losses.item() == pytest.approx(math.log1p(math.exp(0.1)))


@pytest.mark.parametrize(
    "call, told",
    [
        (lambda t: bradley_terry(t(2), t(3)), "rejected of shape (3,) for chosen of shape (2,)"),
        (lambda t: bradley_terry(t(2), t(2), t(3)), "margin of shape (3,)"),
        (lambda t: dpo(t(2), t(2), t(2), t(1)), "reference_rejected of shape (1,) for policy_chosen of shape (2,)"),
        (lambda t: dpo(*[t(2)] * 4, beta=0.0), "beta 0.0 is not above 0"),
        (lambda t: dpo(*[t(2)] * 4, beta=-1.0), "beta -1.0 is not above 0"),
        (lambda t: dpo(*[t(2)] * 4, beta=math.nan), "beta nan is not above 0"),
        (lambda t: dpo(*[t(2)] * 4, label_smoothing=0.5), "label_smoothing 0.5 is not in [0, 0.5)"),
        (lambda t: dpo(*[t(2)] * 4, label_smoothing=-0.1), "label_smoothing -0.1"),
    ],
)
def test_wrong_pairs_are_refused(call, told):
    with pytest.raises(ValueError) as error:
        call(torch.zeros)
    assert told in str(error.value) and "\n" not in str(error.value)


class Toy(torch.nn.Module):
    """An embedding and a head: the next token given the last."""

    def __init__(self, v=12, d=6):
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(v, d), torch.nn.Linear(d, v)

    def forward(self, tokens):
        """(B, T) to log-probabilities of the sequences (B,), of which each first token is the prompt."""
        targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == 0, -100)  # 0 is padding
        head = Head(self.head.weight, self.head.bias)
        return sequence_log_probs(token_log_probs(self.embedding(tokens[:, :-1]), head, targets, chunk=3), targets)


def test_dpo_teaches_a_model_to_prefer_what_was_chosen():
    torch.manual_seed(0)
    model, reference = Toy(), Toy()
    reference.load_state_dict(model.state_dict())
    chosen = torch.tensor([[1, 2, 3, 4, 0], [5, 6, 7, 8, 9]])
    rejected = torch.tensor([[1, 9, 8, 0, 0], [5, 10, 11, 0, 0]])
    with torch.no_grad():
        fixed = reference(chosen), reference(rejected)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(20):
        out = dpo(model(chosen), model(rejected), *fixed, beta=0.5)
        loss = out.losses.mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)  # the policy starts as the reference
    assert losses[-1] < 0.2
    assert (out.chosen_rewards > out.rejected_rewards).all()
    assert (model(chosen) > model(rejected)).all()
