"""The catalogue: every loss that YAML can name, one pure function each.

A term reads, by the names of its positional parameters,

    lp      log p(target)                                         one number a target
    lse     logsumexp of the logits                               one number a target
    lu      mean of log p under the prior u: sum_j u_j log p_j    one number a target
    ut      u(target), a constant                                 one number a target
    target  the target's id
    log_p   all log-probabilities of the row, (N, V)
    logits  all logits of the row, (N, V), as the terms see them
    u       a prior over the vocabulary, `log_u` its logarithm, (V,)

or an input of that name from the caller's `extra`, and returns nats, one number a target. Every option `prior` is
`uniform`, `unigram` (counts of the training corpus, plus one) or a file. Every term has an option `coef` that scales
it. Written with operators and tensor methods alone, so that a config can be checked without importing torch.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

from annotated_types import Ge, Gt, Le, Lt

from .config import LossConfig
from .plugins import check_plugin, is_plugin
from .registry import BySource, Coefficient, File, Ids, Part, Place, Problem, check_named, check_value, describe

if TYPE_CHECKING:
    from torch import Tensor

TERMS: dict[str, Part] = {}
WEIGHTS: dict[str, Part] = {}
TRANSFORMS: dict[str, Part] = {}

Function = Callable[..., "Tensor"]


@overload
def term(function: Function) -> Function: ...
@overload
def term(*, coef: float) -> Callable[[Function], Function]: ...
def term(function: Function | None = None, *, coef: float = 1.0) -> Any:
    """Register a term under its function's name; `coef` is the default of its coefficient."""

    def register(function: Function) -> Function:
        TERMS[function.__name__] = describe(function, coef)
        return function

    return register if function is None else register(function)


def weight(function: Function) -> Function:
    """Register a rule for the importance of targets. `lp` reaches it without a gradient."""
    WEIGHTS[function.__name__] = describe(function)
    return function


def transform(function: Function) -> Function:
    """Register a change of the logits."""
    TRANSFORMS[function.__name__] = describe(function)
    return function


# Terms of one target: functions of (lp, lse, lu, ut).


@term
def ce(lp: "Tensor") -> "Tensor":
    """Cross-entropy, -log p(target)."""
    return -lp


@term
def smooth(
    lp: "Tensor",
    lu: "Tensor",
    ut: "Tensor",
    *,
    eps: Annotated[float, Ge(0), Lt(1)] = 0.1,
    exclude_target: bool = False,
) -> "Tensor":
    """Label smoothing (Szegedy et al. 2016, arXiv:1512.00567) as torch has it, target 1 - eps + eps u(target); `exclude_target` shares eps among the other ids."""  # noqa: E501
    if exclude_target:
        return -(1 - eps) * lp - eps * (lu - ut * lp) / (1 - ut)
    return -(1 - eps) * lp - eps * lu


@term(coef=1e-4)
def z(lse: "Tensor") -> "Tensor":
    """Penalty on the softmax's normalizer (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, section 5), lse^2."""
    return lse * lse


@term
def focal(lp: "Tensor", *, gamma: Annotated[float, Ge(0)] = 2.0) -> "Tensor":
    """Focal loss (Lin et al. 2017, arXiv:1708.02002), -(1 - p)^gamma log p: less of what is already predicted."""
    # The floor keeps the derivative of x^gamma finite at p = 1 for gamma < 1; there -log p is 0 all the same.
    return (-lp.expm1()).clamp_min(1e-12) ** gamma * -lp


@term
def poly(lp: "Tensor", *, eps: Annotated[float, Ge(-1)] = 1.0) -> "Tensor":
    """PolyLoss (Leng et al. 2022, arXiv:2204.12511), -log p + eps (1 - p): the first term of its series reweighted."""
    return -lp - eps * lp.expm1()


@term
def gce(lp: "Tensor", *, q: Annotated[float, Gt(0), Le(1)] = 0.7) -> "Tensor":
    """Generalized cross-entropy (Zhang and Sabuncu 2018, arXiv:1805.07836), (1 - p^q) / q: bounded, for noisy targets."""  # noqa: E501
    return -(q * lp).expm1() / q


@term
def sce(
    lp: "Tensor",
    *,
    alpha: Annotated[float, Ge(0)] = 0.1,
    beta: Annotated[float, Ge(0)] = 1.0,
    A: Annotated[float, Lt(0)] = -4.0,
) -> "Tensor":
    """Symmetric cross-entropy (Wang et al. 2019, arXiv:1908.06112), alpha (-log p) - beta A (1 - p): A stands for log 0."""  # noqa: E501
    return -alpha * lp + beta * A * lp.expm1()


@term
def noise(lp: "Tensor", ut: "Tensor", *, rate: Annotated[float, Ge(0), Lt(1)] = 0.1) -> "Tensor":
    """Forward correction (Patrini et al. 2017, arXiv:1609.03683) for targets replaced by a draw from the prior at `rate`."""  # noqa: E501
    if rate == 0:
        return -lp
    return -(lp + math.log1p(-rate)).logaddexp((rate * ut).log())


# Terms of the whole distribution.


def _finite(log_p: "Tensor") -> "Tensor":
    """log p where p may be 0: finite, so that 0 times it is 0, with its gradient."""
    return log_p.clamp_min(-1e30)


@term(coef=0.1)
def confidence(log_p: "Tensor") -> "Tensor":
    """Confidence penalty (Pereyra et al. 2017, arXiv:1701.06548), -H(p) = sum_j p_j log p_j: rewards a wide prediction."""  # noqa: E501
    return (log_p.exp() * _finite(log_p)).sum(-1)


@term
def transition(log_p: "Tensor", target: "Tensor", *, file: Annotated[str, File(dims=2, simplex=True)]) -> "Tensor":
    """Forward correction (arXiv:1609.03683) by a whole matrix: -log sum_i p_i M[i, target], M[i, j] = P(seen j | true i)."""  # noqa: E501
    matrix: Any = file  # the option's file, loaded
    return -(log_p + matrix.T[target].log()).logsumexp(-1)


@term
def unlikelihood(
    log_p: "Tensor",
    target: "Tensor",
    negatives: "Tensor | None" = None,
    *,
    ids: Annotated[tuple[Annotated[int, Ge(0)], ...], Ids()] = (),
) -> "Tensor":
    """Unlikelihood (Welleck et al. 2020, arXiv:1908.04319), -sum log(1 - p(c)) over `ids` and the caller's `negatives` (N, K), -100 for none."""  # noqa: E501
    chosen: Any = ids  # as a tensor
    chosen = chosen.expand(len(target), -1)
    candidates = chosen if negatives is None else _columns(chosen, negatives)
    lp = log_p.gather(-1, candidates.clamp_min(0))
    counts = (candidates >= 0) & (candidates != target.unsqueeze(-1))
    # log(1 - p) from p rounds to log 0 where p is near 1. Only the likeliest id can be: there, the sum of the rest.
    top = log_p.argmax(-1, keepdim=True)
    rest = log_p.scatter(-1, top, -math.inf).logsumexp(-1, keepdim=True)
    unlike = rest.where(candidates == top, (-lp.clamp_max(-0.6).exp()).log1p())
    return -unlike.where(counts, 0.0).sum(-1)


def _columns(left: "Tensor", right: "Tensor") -> "Tensor":
    """The columns of both side by side, without importing torch."""
    made = left.new_empty(len(right), left.shape[1] + right.shape[1])
    made[:, : left.shape[1]], made[:, left.shape[1] :] = left, right
    return made


@term
def soft(log_p: "Tensor", soft_labels: "Tensor") -> "Tensor":
    """Cross-entropy against the caller's `soft_labels` (N, V): -sum_j q_j log p_j."""
    return -(soft_labels * _finite(log_p)).sum(-1)


@term
def kl(
    logits: "Tensor",
    teacher_logits: "Tensor",
    *,
    temperature: Annotated[float, Gt(0)] = 1.0,
    top_k: Annotated[int, Ge(0)] = 0,
) -> "Tensor":
    """Distillation (Hinton et al. 2015, arXiv:1503.02531), T^2 KL(teacher, student) at temperature T; with `top_k`, over the teacher's k likeliest ids and one for the rest."""  # noqa: E501
    log_q, log_p = _pair(teacher_logits, logits, temperature, top_k)
    return temperature**2 * _divergence(log_q, log_p)


@term
def reverse_kl(
    logits: "Tensor",
    teacher_logits: "Tensor",
    *,
    temperature: Annotated[float, Gt(0)] = 1.0,
    top_k: Annotated[int, Ge(0)] = 0,
) -> "Tensor":
    """Mode-seeking distillation (MiniLLM, Gu et al. 2024, arXiv:2306.08543), T^2 KL(student, teacher)."""
    log_q, log_p = _pair(teacher_logits, logits, temperature, top_k)
    return temperature**2 * _divergence(log_p, log_q)


@term
def jsd(
    logits: "Tensor",
    teacher_logits: "Tensor",
    *,
    beta: Annotated[float, Gt(0), Lt(1)] = 0.5,
    temperature: Annotated[float, Gt(0)] = 1.0,
    top_k: Annotated[int, Ge(0)] = 0,
) -> "Tensor":
    """Generalized Jensen-Shannon distillation (GKD, Agarwal et al. 2024, arXiv:2306.13649), T^2 (beta KL(q, m) + (1 - beta) KL(p, m)), m = beta q + (1 - beta) p."""  # noqa: E501
    log_q, log_p = _pair(teacher_logits, logits, temperature, top_k)
    log_m = (_finite(log_q) + math.log(beta)).logaddexp(_finite(log_p) + math.log1p(-beta))
    return temperature**2 * (beta * _divergence(log_q, log_m) + (1 - beta) * _divergence(log_p, log_m))


def _pair(teacher: "Tensor", student: "Tensor", temperature: float, top_k: int) -> tuple["Tensor", "Tensor"]:
    """log-probabilities of both at a temperature; with `top_k`, of the teacher's likeliest ids and of all others."""
    log_q = (teacher.detach().to(student.dtype) / temperature).log_softmax(-1)
    log_p = (student / temperature).log_softmax(-1)
    if not 0 < top_k < log_q.shape[-1]:
        return log_q, log_p
    ids = log_q.topk(top_k, -1).indices
    return _with_rest(log_q, ids), _with_rest(log_p, ids)


def _with_rest(log_p: "Tensor", ids: "Tensor") -> "Tensor":
    """log p of `ids` (N, k), and of all others together: (N, k + 1)."""
    rest = _finite(log_p).scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return _columns(log_p.gather(-1, ids), rest)


def _divergence(log_a: "Tensor", log_b: "Tensor") -> "Tensor":
    """KL(a, b) of each row; an id that `a` rules out costs nothing."""
    return (log_a.exp() * (_finite(log_a) - _finite(log_b))).sum(-1)


# Weights. They change the loss alone: nll, accuracy and the denominator stay those of every valid target.


@weight
def classes(target: "Tensor", *, file: Annotated[str, File(dims=1)]) -> "Tensor":
    """A weight for each id of the vocabulary, from a file."""
    table: Any = file  # the option's file, loaded
    return table[target]


@weight
def frequency(target: "Tensor", log_u: "Tensor", *, power: Annotated[float, Ge(0), Le(1)] = 0.5) -> "Tensor":
    """u(target)^-power over its mean in the corpus (Mikolov et al. 2013, arXiv:1310.4546, thin out likewise): more for rare ids."""  # noqa: E501
    return (-power * log_u[target] - ((1 - power) * log_u).logsumexp(-1)).exp()


@weight
def sources(source: "Tensor", *, by: Annotated[dict[str, float], BySource()]) -> "Tensor":
    """A weight for each data source; 1 for one that is not named. With ramps, a curriculum over sources."""
    result: Any = 1.0
    for index, value in by.items():  # names are replaced by what `source` holds
        result = result + (value - 1) * (source == index)
    return result


@weight
def position(
    position: "Tensor", *, first: Annotated[float, Ge(0)] = 0.0, tokens: Annotated[int, Ge(1)] = 32
) -> "Tensor":
    """From `first` at a document's beginning up to 1 after `tokens`: little context, little to learn."""
    return first + (1 - first) * (position / tokens).clamp_max(1.0)


@weight
def difficulty(lp: "Tensor", *, limit: Annotated[float, Gt(0)] = 8.0, width: Annotated[float, Gt(0)] = 1.0) -> "Tensor":
    """Self-paced learning (Kumar et al. 2010): 1 for targets with present nll well below `limit` nats, 0 well above."""
    return ((limit + lp) / width).sigmoid()


@weight
def probability(lp: "Tensor", *, power: Annotated[float, Ge(0)] = 1.0) -> "Tensor":
    """p(target)^power (dynamic fine-tuning, Wu et al. 2025, arXiv:2508.05629): no large steps for unlikely targets."""
    return (power * lp).exp()


# Changes of the logits.


@transform
def softcap(logits: "Tensor", *, cap: Annotated[float, Gt(0)] = 30.0) -> "Tensor":
    """cap tanh(x / cap) (Gemma 2, arXiv:2408.00118) while training: keeps logits from growing."""
    return (cap * (logits / cap).tanh()).where(logits > -math.inf, logits)  # a banned id stays banned


@transform
def temperature(logits: "Tensor", *, t: Annotated[float, Gt(0)] = 1.0) -> "Tensor":
    """x / t."""
    return logits / t


@transform
def adjust(logits: "Tensor", log_u: "Tensor", *, tau: Annotated[float, Ge(0)] = 1.0) -> "Tensor":
    """Logit adjustment (Menon et al. 2021, arXiv:2007.07314), x + tau log u: the model itself learns p / u^tau."""
    return logits + tau * log_u


def check(config: LossConfig) -> list[Problem]:
    """Every mistake in a loss config as (path below `loss`, message); empty when there is none.

    A plugin's file is read and parsed, not run.
    """
    problems: list[Problem] = []
    places: list[tuple[tuple[str | int, ...], Any, dict[str, Part], str]] = [
        (("base",), config.base, TERMS, "loss term"),
        *((("add", i), named, TERMS, "loss term") for i, named in enumerate(config.add)),
        *((("weights", i), named, WEIGHTS, "weight") for i, named in enumerate(config.weights)),
        *((("logits", i), named, TRANSFORMS, "change of logits") for i, named in enumerate(config.logits)),
    ]
    for place, named, known, what in places:
        plugin = len(named) == 1 and is_plugin(next(iter(named)))
        if plugin:
            found = check_plugin(*next(iter(named.items())), scaled=known is TERMS)
        else:
            found = check_named(named, known, what)
            found = [(path, _misplaced(path, known) or message) for path, message in found]
        problems += [((*place, *path), message) for path, message in found]
    if config.chunk != "auto":
        problems += [(("chunk", *path), text) for path, text in check_value(Annotated[int, Ge(1)], config.chunk)]
    problems += [(("fused", *path), text) for path, text in check_value(Literal["auto", "on", "off"], config.fused)]
    for i, value in enumerate(config.ahead):
        problems += [(("ahead", i, *path), text) for path, text in check_value(Coefficient, value)]
    return problems


def _misplaced(path: Place, known: dict[str, Part]) -> str:
    """Where a name belongs that is none of `known`; empty when nowhere."""
    homes = {"loss.base and loss.add": TERMS, "loss.weights": WEIGHTS, "loss.logits": TRANSFORMS}
    name = path[0] if len(path) == 1 else None
    home = next((key for key, parts in homes.items() if name in parts and parts is not known), None)
    return f"{name!r} is for {home}" if home and name not in known else ""
