"""What the fused head promises beyond the numbers: gradients that scale, repeat and freeze, precision, and no logits.

N rows, D width, V vocabulary.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from loss import Head, LossConfig, build_objective, chunk_rows
from loss.passes import gradient_, seen
from loss.proof import CHECKS, Problem
from loss.rows import IGNORE, Selection
from tests.loss.test_terms import CONFIGS, build, name

BOTH = pytest.mark.parametrize("fused", ["on", "off"])


def objective(config="ce", v=11, **options):
    config = {"base": config} if isinstance(config, str) else config
    return build_objective({**config, "fused": "on", "chunk": 4, **options}, vocab_size=v)


def test_an_upstream_factor_scales_and_a_second_backward_adds():
    problem = Problem.random(objective(), 0)
    once = problem.gradients(objective())[1:]
    loss = problem.call(objective()).loss * 3
    for _ in range(2):
        loss.backward(retain_graph=True)
    for leaf, gradient in zip(problem.leaves, once, strict=True):
        torch.testing.assert_close(leaf.grad, 6 * gradient)


@pytest.mark.parametrize("config", ["ce", {"base": {"smooth": {}}}, {"base": "confidence"}], ids=str)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(config):
    o = objective(config)
    whole = Problem.random(o, 1)
    wanted = whole.gradients(o)[1:]
    for frozen in range(3):
        problem = Problem.random(o, 1)
        problem.leaves[frozen].requires_grad_(False)
        problem.call(o).loss.backward()
        for i, leaf in enumerate(problem.leaves):
            assert leaf.grad is None if i == frozen else torch.equal(leaf.grad, wanted[i])
    with torch.no_grad():
        out = whole.call(o)
    assert not out.loss.requires_grad and float(out.loss) == pytest.approx(float(whole.gradients(o)[0]), rel=1e-14)


def test_a_gradient_of_the_gradient_is_refused_and_the_reference_head_has_it():
    h, w, t = torch.randn(6, 3, requires_grad=True), torch.randn(11, 3), torch.arange(6)

    def penalized(o):
        loss = o(h, w, t).loss
        (gradient,) = torch.autograd.grad(loss, h, create_graph=True)
        return torch.autograd.grad(loss + gradient.square().sum(), h)[0]

    with pytest.raises(RuntimeError, match="loss.fused: off"):
        penalized(objective())
    assert penalized(objective(fused="off")).isfinite().all()


def test_gradients_where_the_softmax_has_no_factor():
    """ce + z/2 with lse = -1: the factor of p, 1 + 2 (1/2) lse, is 0, and the target's gradient is not."""
    v = 11
    hidden, weight = torch.ones(2, 1, dtype=torch.float64), torch.zeros(v, 1, dtype=torch.float64)
    bias = torch.full((v,), -1 - math.log(v), dtype=torch.float64)
    gradients = []
    for fused in ("on", "off"):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        o = objective({"base": "ce", "add": [{"z": {"coef": 0.5}}]}, fused=fused)
        gradients.append(torch.autograd.grad(o(leaves[0], Head(*leaves[1:]), torch.tensor([3, 4])).loss, leaves))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    wanted = torch.zeros(v).double()
    wanted[[3, 4]] = -0.5
    torch.testing.assert_close(gradients[0][2], wanted)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.seen = max(self.seen, value.numel())
        return result


@pytest.mark.parametrize(
    "config",
    ["ce", {"base": {"smooth": {}}, "add": ["z"]}, {"base": "confidence"}, {"base": "ce", "logits": ["softcap"]}],
    ids=str,
)
def test_no_tensor_of_rows_times_vocabulary_is_ever_made(config):
    n, d, v = 64, 3, 500
    h, w = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    t = torch.randint(0, v, (n,))
    for options, bound in (({"chunk": 4}, 4 * v), ({"fused": "off"}, n * v)):
        with Largest() as largest:
            objective(config, v, **options)(h, w, t).loss.backward()
        assert largest.seen == bound


def test_masked_rows_cost_no_product():
    """On a CPU rows without a target are left out before the product."""
    h, w, t = torch.randn(64, 3), torch.randn(500, 3), torch.full((64,), -100)
    t[:5] = 7
    with Largest() as largest:
        objective(v=500, chunk=64)(h, w, t)
    assert largest.seen == 5 * 500


def test_chunks_suit_the_caches():
    sizes = [chunk_rows(v, torch.device("cpu")) for v in (64, 257, 4096, 10_000, 50_304, 10**7)]
    assert sizes == [4096, 4096, 2048, 1024, 256, 256]
    assert chunk_rows(50_304, torch.device("cuda")) == 4096


@pytest.mark.parametrize("upstream", [1.0, 3.0])
def test_a_tied_weight_walked_twice_has_twice_the_gradient(upstream):
    """A gradient that is passed on as it is must not be what the embedding's is added to."""
    torch.manual_seed(0)
    ids, targets = torch.randint(0, 11, (2, 50))
    found = {}
    for fused in ("on", "off"):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 44).sin().reshape(11, 4))
        out = objective({"base": "ce"}, fused=fused)(F.embedding(ids, weight), weight, targets)
        for walk in (1, 2):
            (out.loss * upstream).backward(retain_graph=True)
            found[fused, walk] = weight.grad.clone()
    for walk in (1, 2):
        torch.testing.assert_close(found["on", walk], walk * found["off", 1], atol=1e-6, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_a_common_offset_of_the_logits_does_not_show(fused, eps):
    """The loss is x_t - lse in exact numbers only: at 1e4, in fp32, that would leave three digits."""
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 11), torch.randint(0, 11, (50,))
    rounded = (logits + 1e4) - 1e4  # what is left of them next to the offset
    o = objective({"base": {"smooth": {"eps": eps}}}, fused=fused)
    identity = torch.eye(11)
    moved = o(rounded, Head(identity, torch.full((11,), 1e4)), targets).loss
    torch.testing.assert_close(moved, o(rounded, identity, targets).loss, rtol=2e-5 if eps == 0 else 3e-4, atol=0)


@BOTH
@pytest.mark.parametrize("scale", [1.0, 40.0, 640.0])
def test_bf16_logits_of_any_size(fused, scale):
    """One set of bf16 logits serves loss and gradient: both are those of fp64 on these logits."""
    torch.manual_seed(1)
    exact = (torch.randn(40, 11) * scale).bfloat16()
    targets = torch.randint(0, 11, (40,))
    x, identity = exact.clone().requires_grad_(), torch.eye(11).bfloat16()
    out = objective(fused=fused)(x, identity, targets, denom=1)
    out.loss.backward()
    double = exact.double().requires_grad_()
    F.cross_entropy(double, targets, reduction="sum").backward()
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(x.grad.double(), double.grad, rtol=1e-2, atol=4e-3)
    truth = F.cross_entropy(exact.double(), targets, reduction="sum")
    assert out.loss.item() == pytest.approx(truth.item(), rel=1e-6)


@pytest.mark.parametrize("chunks", [4, 64])
def test_the_weights_gradient_is_summed_in_fp32_over_chunks(chunks):
    """Its error does not grow with the number of chunks, as it does in bf16."""
    torch.manual_seed(2)
    n, d, v = 1024, 16, 50
    h, w, t = torch.randn(n, d), torch.randn(v, d, requires_grad=True), torch.randint(0, v, (n,))
    truth = torch.autograd.grad(F.cross_entropy(h.double() @ w.double().T, t), w)[0].double()
    with torch.autocast("cpu", torch.bfloat16):
        plain = torch.autograd.grad(F.cross_entropy(F.linear(h, w), t), w)[0]
        ours = torch.autograd.grad(objective(v=v, chunk=n // chunks)(h, w, t).loss, w)[0]
    assert ours.dtype == torch.float32
    assert (ours - truth).norm() <= 1.1 * (plain - truth).norm()


def test_a_wide_vocabulary_in_bf16():
    """The weight's gradient is added in blocks of ids; more than one of them."""
    torch.manual_seed(5)
    h, w, t = torch.randn(20, 4), torch.randn(9000, 4, requires_grad=True), torch.randint(0, 9000, (20,))
    with torch.autocast("cpu", torch.bfloat16):
        plain = torch.autograd.grad(F.cross_entropy(F.linear(h, w), t), w)[0]
        ours = torch.autograd.grad(objective(v=9000)(h, w, t).loss, w)[0]
    torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-5)


@pytest.mark.parametrize("config", ["ce", {"base": {"smooth": {}}}, {"base": "confidence"}], ids=str)
@pytest.mark.parametrize("weight", [1.0, 1e-4])
def test_fp16_keeps_small_gradients(config, weight):
    """In fp16 the loss is scaled after its gradients exist: they must not have vanished before."""
    torch.manual_seed(6)
    o = objective(config)
    h, w, t = torch.randn(20, 4), torch.randn(11, 4), torch.randint(0, 11, (20,))
    gradients = []
    for dtype in (torch.float64, torch.float16):
        leaves = [x.to(dtype).requires_grad_() for x in (h, w)]
        loss = o(*leaves, t, torch.full((20,), weight)).loss * 1024 / weight
        gradients.append([g.double() for g in torch.autograd.grad(loss, leaves)])
    for exact, half in zip(*gradients, strict=True):
        assert (half - exact).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_batch_without_targets_has_gradients_of_zero(dtype):
    leaves = [x.to(dtype).requires_grad_() for x in (torch.randn(3, 4), torch.randn(11, 4))]
    loss = objective("ce")(*leaves, torch.full((3,), -100)).loss
    assert loss == 0 and not any(g.any() for g in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_the_passes_that_a_gpu_compiles_are_the_same(config, tmp_path, monkeypatch):
    """Here as plain functions; compiled on a GPU in tests/test_on_gpu.py."""
    monkeypatch.setattr("loss.fused.compiled_passes", lambda: (seen, gradient_))
    plain, compiled = (build(config, tmp_path, fused="on", chunk=7) for _ in range(2))
    compiled.compiled = True
    problem = Problem.random(plain, 0)
    torch.testing.assert_close(problem.gradients(compiled), problem.gradients(plain), rtol=1e-12, atol=1e-13)
    kept, made = problem.call(plain).sums, problem.call(compiled).sums
    torch.testing.assert_close(made, kept, rtol=1e-12, atol=1e-13)


def test_the_compiled_passes_in_bf16_with_a_bias(monkeypatch):
    """Gradients of logits are in bf16 then, and of the bias in fp32."""
    monkeypatch.setattr("loss.fused.compiled_passes", lambda: (seen, gradient_))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*shape, generator=generator) for shape in ((30, 8), (40, 8), (40,))]
    targets, found = torch.arange(30)[None], []
    for compiled in (False, True):
        objective = build_objective(LossConfig(fused="on", chunk=7), vocab_size=40)
        objective.compiled = compiled
        hidden, weight, bias = leaves = [x.clone().requires_grad_() for x in drawn]
        with torch.autocast("cpu", torch.bfloat16):
            objective(hidden[None], Head(weight, bias), targets).loss.backward()
        found.append([leaf.grad for leaf in leaves])
    for ours, plain in zip(*found, strict=True):
        assert (ours - plain).norm() < 0.01 * plain.norm()


def test_the_compiled_passes_do_not_cancel_or_overflow():
    """lp and the gradient of logits that are all large, in bf16 and fp32, to the rounding of the result."""
    for dtype, size in ((torch.float32, 1e4), (torch.bfloat16, 1e3)):
        logits = (torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) + size).to(dtype)
        targets = torch.arange(12).view(6, 2)
        top, log_top, x, guess = seen(logits, targets)
        exact = logits.double().log_softmax(1)
        torch.testing.assert_close(((x - top) + log_top).double(), exact.gather(1, targets), rtol=1e-5, atol=1e-5)
        assert torch.equal(guess, logits.argmax(1))
        ratio = torch.linspace(-1, 1, 12).view(6, 2)
        wanted = exact.exp().scatter_add(1, targets, ratio.double())
        found = gradient_(logits, top, log_top, targets, ratio)
        assert found is logits
        torch.testing.assert_close(found.double(), wanted, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", ["on", "off"])
def test_the_loss_of_many_small_terms_is_summed_exactly(fused):
    """100 000 rows of 1e-3 nats in fp32 after one of 1e4: a running fp32 sum would lose the small ones."""
    n = 100_000
    logits = torch.zeros(n + 1, 2)
    logits[1:, 0] = 6.907  # -log sigmoid(6.907) is about 1e-3
    logits[0, 1] = 1e4
    o = objective(v=2, fused=fused, chunk=4096)
    out = o(logits, torch.eye(2), torch.zeros(n + 1, dtype=torch.int64), denom=1)
    truth = F.cross_entropy(logits.double(), torch.zeros(n + 1, dtype=torch.int64), reduction="sum")
    assert float(out.loss) == pytest.approx(float(truth), rel=1e-6)


@BOTH
def test_a_denominator_of_nothing_is_one(fused):
    h, w = torch.randn(3, 2), torch.randn(11, 2)
    o = objective(fused=fused)
    losses = [o(h, w, torch.tensor([1, 2, 3]), denom=d).loss for d in (0, 1, torch.tensor(0), torch.tensor(1))]
    assert len({loss.item() for loss in losses}) == 1 and losses[0].isfinite()


@BOTH
def test_autocast_leaves_fp64_alone(fused):
    problem = Problem.random(objective(fused=fused), 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = problem.gradients(objective(fused=fused))
    torch.testing.assert_close(inside, problem.gradients(objective(fused=fused)), rtol=0, atol=0)


@BOTH
def test_one_batch_learned_by_heart(fused):
    """With smoothing .1 over V = 10000 the loss ends at its floor, 1.2460, and nll at -ln(.90001)."""
    v, n = 10_000, 4
    torch.manual_seed(3)
    targets = torch.arange(n)
    hidden = torch.eye(n, dtype=torch.float64)
    weight = torch.zeros(v, n, dtype=torch.float64, requires_grad=True)
    o = objective({"base": {"smooth": {"eps": 0.1}}}, v, fused=fused)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def step():
        optimizer.zero_grad()
        loss = o(hidden, weight, targets).loss
        loss.backward()
        return loss

    optimizer.step(step)
    out = o(hidden, weight, targets)
    assert float(out.loss) == pytest.approx(1.245993, abs=1e-5)
    assert float(out.sums["nll"] / n) == pytest.approx(-math.log(0.90001), abs=1e-4)


def compiled(backend):
    torch.compiler.reset()
    for config in ({"base": {"smooth": {}}, "add": ["z"]}, {"base": "confidence"}):
        o = objective(config)
        problem = Problem.random(o, 4, torch.float32)

        def loss(hidden, weight, o=o, problem=problem):
            return 2 * o((hidden * 2).tanh(), weight, problem.targets).loss

        leaves = [problem.hidden, problem.weight]
        ours, theirs = torch.compile(loss, backend=backend)(*leaves), loss(*leaves)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(x, leaves) for x in (ours, theirs)))


def test_it_stays_out_of_a_compiled_step():
    compiled("aot_eager")


@pytest.mark.soak
def test_it_stays_out_of_a_step_compiled_by_inductor():
    compiled("inductor")


@pytest.fixture
def on_a_device(monkeypatch):
    """Rows as they are elsewhere than on a CPU: all of them are computed, the masked ones too."""
    monkeypatch.setattr(
        Selection, "of", classmethod(lambda cls, t: cls(t.shape, (t != IGNORE).flatten(), None, masked=True))
    )


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_masked_rows_count_nowhere_where_they_are_computed_too(on_a_device, config, tmp_path):
    for check in ("both heads agree in fp64", "masked rows are not there", "nothing to learn is zero",
                  "nll is plain", "micro-batches add up", "banned ids are not there"):  # fmt: skip
        CHECKS[check](build(config, tmp_path), 2)


def test_detail_counts_no_masked_row_where_it_is_computed_too(on_a_device):
    torch.manual_seed(8)
    logits, targets = torch.randn(30, 7, dtype=torch.float64), torch.randint(0, 7, (30,))
    targets[::3] = IGNORE
    o = build_objective({"base": "ce", "fused": "on"}, vocab_size=7, counts=torch.arange(7))
    extra = {"position": torch.arange(30)}
    every = o(logits, torch.eye(7).double(), targets, detail=True, per_token=True, extra=extra)
    keep = targets != IGNORE
    valid = o(
        logits[keep], torch.eye(7).double(), targets[keep], detail=True, extra={"position": torch.arange(30)[keep]}
    )
    for key, value in valid.sums.items():
        torch.testing.assert_close(every.sums[key], value, msg=key)
    assert not any(value[~keep].any() for value in every.per_token.values())
