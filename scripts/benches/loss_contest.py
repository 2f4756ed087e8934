"""The ways to a loss that `python -m scripts.bench loss` compares, and how one of them is checked, timed and weighed.

N rows, H width, V vocabulary. A *contestant* is a way, a *variant* one choice of its options; the two joined by a
slash name an entrant. `python -m scripts.benches.loss_contest JSON` does one measurement in a process of its own.
"""

import contextlib
import importlib.util
import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loss import build_objective
from trainer.memory import keep_freed_memory

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden (N, H), weight (V, H), targets (N,) -> mean loss"""
PLAIN, TORCH = "plain", "linear_cross_entropy"
# Distance from the plain fp32 path, relative to its norm, from which on a result is called wrong.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True)
class Case:
    """What is computed. Inputs and parameters are fp32; with `bf16` the products are in bf16."""

    rows: int
    width: int
    vocab: int
    dtype: str
    eps: float
    device: str

    def small(self) -> "Case":
        """The same at a size that takes no time, with more than one chunk of 512 rows."""
        return replace(self, rows=600, width=32, vocab=211)

    def mixed(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == "bf16")


def plain(case: Case) -> dict[str, Loss]:
    """What most training scripts do."""

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with case.mixed():
            return F.cross_entropy(F.linear(hidden, weight), targets, label_smoothing=case.eps)

    return {"": loss}


def ours(case: Case, fused: str) -> dict[str, Loss]:
    base: Any = {"smooth": {"eps": case.eps}} if case.eps else "ce"
    objective = build_objective({"base": base, "fused": fused}, vocab_size=case.vocab)

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with case.mixed():
            return objective(hidden, weight, targets).loss

    return {"": loss}


def torch_fused(case: Case) -> dict[str, Loss]:
    """`F.linear_cross_entropy` (torch 2.13): whole, and in chunks, for which autocast does nothing and which know no
    label smoothing. Its own heuristic makes chunks of few rows where the vocabulary is large."""
    if not hasattr(F, "linear_cross_entropy"):
        return {}
    half = case.dtype == "bf16"

    def whole(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with case.mixed():
            return F.linear_cross_entropy(hidden, weight, targets, label_smoothing=case.eps)

    def chunked(**options: Any) -> Loss:
        made = nn.LinearCrossEntropyOptions(**options)

        def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
            if half:
                hidden, weight = hidden.bfloat16(), weight.bfloat16()
            return F.linear_cross_entropy(hidden, weight, targets, options=made)

        return loss

    if case.eps:
        return {"whole": whole}
    variants = {"whole": whole, "auto": chunked(), "512 rows": chunked(batch_chunk_size=512)}
    if half:
        precise = {"acc_policy": "balanced", "acc_dtype": torch.float32}
        variants["512 rows balanced"] = chunked(batch_chunk_size=512, **precise)
    return variants


def liger(case: Case) -> dict[str, Loss]:
    """liger-kernel's fused head, where it is installed and there is a GPU; bf16 by hand, as its own tests do it."""
    if case.device != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    half = case.dtype == "bf16"

    def variant(**options: Any) -> Loss:
        def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
            if half:
                hidden, weight = hidden.bfloat16(), weight.bfloat16()
            return LigerFusedLinearCrossEntropyLoss(label_smoothing=case.eps, **options)(weight, hidden, targets)

        return loss

    return {"sums in bf16": variant(), "sums in fp32": variant(accum_dtype=torch.float32)} if half else {"": variant()}


CONTESTANTS: dict[str, Callable[[Case], dict[str, Loss]]] = {
    PLAIN: plain,
    "ours fused": lambda case: ours(case, "on"),
    "ours reference": lambda case: ours(case, "off"),
    TORCH: torch_fused,
    "liger": liger,
}


def entrants(case: Case) -> dict[str, Loss]:
    """Every variant of every contestant that can do the case here, as `contestant/variant`."""
    return {f"{name}/{v}": loss for name, make in CONTESTANTS.items() for v, loss in make(case).items()}


def contestant(entrant: str) -> str:
    return entrant.partition("/")[0]


def best(values: Mapping[str, float]) -> dict[str, str]:
    """The entrant of the least value for each contestant."""
    return {contestant(name): name for name, _ in sorted(values.items(), key=lambda item: -item[1])}


# -- what is measured --------------------------------------------------------------------------------------------------


def inputs(case: Case, ignored: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and weight that want gradients, logits of deviation 2, and targets, some of them none."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(case.rows, case.width, generator=generator)
    weight = torch.randn(case.vocab, case.width, generator=generator).mul_(2 * case.width**-0.5)
    targets = torch.randint(case.vocab, (case.rows,), generator=generator)
    targets[torch.rand(case.rows, generator=generator) < ignored] = -100
    leaves = [t.to(case.device).requires_grad_() for t in (hidden, weight)]
    return leaves[0], leaves[1], targets.to(case.device)


def check(case: Case) -> dict[str, dict[str, Any]]:
    """Distance of each entrant's loss and gradients from the plain path in fp32, at a small size; `wrong` says what
    is the matter with one that is not within `TOLERANCE`, else it is None."""
    small = case.small()
    truth = _results(plain(replace(small, dtype="fp32"))[""], small)
    found: dict[str, dict[str, Any]] = {}
    for name, loss in entrants(small).items():
        try:
            got = _results(loss, small)
        except Exception as error:  # whatever a foreign kernel raises, the others can still be measured
            found[name] = {"wrong": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            continue
        pairs = zip(("loss", "hidden gradient", "weight gradient"), got, truth, strict=True)
        off = {part: float((a - b).norm() / b.norm()) for part, a, b in pairs}
        bad = [f"{part} off by {x:.1e}" for part, x in off.items() if not x <= TOLERANCE[case.dtype]]
        found[name] = {"off": off, "wrong": ", ".join(bad) or None}
    return found


def _results(loss: Loss, case: Case) -> list[Tensor]:
    hidden, weight, targets = inputs(case, ignored=0.1)
    value = loss(hidden, weight, targets)
    value.backward()
    return [t.detach().double() for t in (value, hidden.grad, weight.grad) if t is not None]


def time_all(case: Case, names: Iterable[str], repeats: int) -> dict[str, Any]:
    """`seconds`: {entrant: [of each repeat]}, of the fastest variant of each contestant; `pilot`: the better of two
    times of every entrant, by which it is chosen. Repeats are interleaved, each starting from another contestant."""
    losses = {name: loss for name, loss in entrants(case).items() if name in set(names)}
    given = inputs(case)
    warm = {name: seconds(loss, *given) for name, loss in losses.items()}
    pilot = {name: min(warm[name], seconds(loss, *given)) for name, loss in losses.items()}
    chosen = set(best(pilot).values())
    order = [name for name in losses if name in chosen]
    taken: dict[str, list[float]] = {name: [] for name in order}
    for i in range(repeats):
        turn = i % len(order)
        for name in order[turn:] + order[:turn]:
            taken[name].append(seconds(losses[name], *given))
    return {"seconds": taken, "pilot": pilot}


def seconds(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> float:
    """Of one forward and backward pass with new gradients."""
    hidden.grad = weight.grad = None
    _wait(hidden.device)
    start = time.perf_counter()
    loss(hidden, weight, targets).backward()
    _wait(hidden.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(case: Case, name: str) -> int:
    """Peak memory of one forward and backward pass above its inputs and both gradients."""
    seconds(entrants(case.small())[name], *inputs(case.small()))  # threads, code, handles
    loss, given = entrants(case)[name], inputs(case)
    gradients = [torch.ones_like(t) for t in given[:2]]  # written to, or they would take no room
    with_gradients = _memory(case.device)[0]
    del gradients
    reset = _reset_peak(case.device)
    earlier = _memory(case.device)[1]
    seconds(loss, *given)
    peak = _memory(case.device)[1]
    if not reset and peak <= earlier:
        raise RuntimeError("the peak is hidden by an earlier one of the process, which cannot be reset here")
    return max(peak - with_gradients, 0)


def _memory(device: str) -> tuple[int, int]:
    """Bytes now and at the peak: the device's, or those of the process."""
    if device == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, AttributeError):
        status = Path("/proc/self/status").read_text()
        now, peak = (int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) << 10 for key in ("VmRSS", "VmHWM"))  # type: ignore[index]
        return now, peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak, peak


def _reset_peak(device: str) -> bool:
    """Forget earlier peaks, which a process even inherits from the one that started it; False where nothing can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return True
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def request(case: Case, threads: int, **rest: Any) -> str:
    """What `main` takes: `time` (names), `repeats` and `keep` for times, or `memory` (a name)."""
    return json.dumps({"case": asdict(case), "threads": threads, **rest})


def main(argv: Sequence[str]) -> None:
    asked = json.loads(argv[0])
    case = Case(**asked["case"])
    torch.set_num_threads(asked["threads"])
    if asked.get("keep"):
        keep_freed_memory()
    if "memory" in asked:
        answer: dict[str, Any] = {"bytes": peak_bytes(case, asked["memory"])}
    else:
        answer = time_all(case, asked["time"], asked["repeats"])
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])
