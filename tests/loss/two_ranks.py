"""What two processes check of the losses, run by torchrun from test_ranks.py: one start for everything."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from loss import Head, Objective
from loss.proof import Problem, variant
from loss.rows import IGNORE
from tests.loss.test_terms import CONFIGS, V, build, name
from trainer.distributed import Place, Ranks
from trainer.signals import end_process


def close(ours: Any, theirs: Any, what: str, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}")


def vocabulary_split(objective: Objective, ranks: Ranks, what: str) -> None:
    """A head split by vocabulary gives each rank the whole loss, and its rows of the gradient."""
    problem = Problem.random(objective, 3)
    assert problem.bias is not None
    bias = problem.bias.detach().clone()
    bias[8] = -math.inf  # banned, on the second rank
    problem.targets[problem.targets == 8] = 2
    problem.targets[0, 0] = V - 1
    whole = [problem.hidden, problem.weight, bias.requires_grad_()]
    head = Head(problem.weight, bias)
    wanted = objective(problem.hidden, head, problem.targets, problem.weights, extra=problem.extra, per_token=True)
    d_hidden, d_weight, d_bias = torch.autograd.grad(wanted.loss, whole)

    shard = ranks.shard(V)
    assert shard is not None
    part = slice(shard.start, shard.stop)
    mine = [problem.hidden, *(t.detach()[part].requires_grad_() for t in whole[1:])]
    head = Head(mine[1], mine[2], shard=shard)
    for fused in ("on", "off"):  # there is no reference head for a part
        o = variant(objective, fused=fused, chunk=4)
        got = o(mine[0], head, problem.targets, problem.weights, extra=problem.extra, per_token=True)
        close(torch.autograd.grad(got.loss, mine), (d_hidden, d_weight[part], d_bias[part]), what)
        close(got.sums, wanted.sums, what)
        close(got.per_token, wanted.per_token, what)


def ties_count_once(ranks: Ranks, objective: Objective) -> None:
    """With equal logits the likeliest id is the first, on whichever rank it is."""
    shard = ranks.shard(V)
    assert shard is not None
    weight = torch.zeros(shard.stop - shard.start, 3)
    out = objective(torch.ones(V, 3), Head(weight, shard=shard), torch.arange(V), per_token=True)
    assert out.per_token is not None
    assert out.per_token["correct"].tolist() == [i == 0 for i in range(V)] and out.sums["tokens"] == V


def a_rank_of_padding(ranks: Ranks, objective: Objective) -> None:
    """All ids of the second rank are banned, as those that pad a vocabulary."""
    shard = ranks.shard(V)
    assert shard is not None
    torch.manual_seed(7)
    hidden, weight = torch.randn(5, 3, dtype=torch.float64), torch.randn(V, 3, dtype=torch.float64)
    bias = torch.zeros(V, dtype=torch.float64)
    bias[V // 2 :] = -math.inf
    part = slice(shard.start, shard.stop)
    targets = torch.arange(5)
    found = []
    for head in (Head(weight, bias), Head(weight[part], bias[part], shard=shard)):
        x = hidden.clone().requires_grad_()
        loss = objective(x, head, targets).loss
        found.append([loss, *torch.autograd.grad(loss, x)])
    close(found[1], found[0], "a rank of padding")


def a_hole_is_noticed(ranks: Ranks, objective: Objective) -> None:
    shard = ranks.shard(V)
    assert shard is not None
    try:
        objective(torch.ones(2, 3), Head(torch.zeros(shard.stop - shard.start - 1, 3), shard=shard), torch.arange(2))
    except ValueError as error:
        assert f"{V - 2} ids for a vocabulary of {V}" in str(error)
    else:
        raise AssertionError("parts that leave ids out were accepted")


def rows_split(objective: Objective, ranks: Ranks, what: str) -> None:
    """Each rank has some of the rows, with unequal numbers of targets: gradients add up to those of one process."""
    problem = Problem.random(objective, 4)
    tokens = int((problem.targets != IGNORE).sum())
    wanted = problem.gradients(objective)
    part = problem.at(slice(0, 2) if ranks.rank == 0 else slice(2, 3))
    found = part.gradients(objective, denom=tokens)
    close([ranks.sum(x) for x in (found[0], *found[2:])], [wanted[0], *wanted[2:]], what)


class Toy(nn.Module):
    """A head tied to the embedding, with something before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, 8, dtype=torch.float64)
        self.body = nn.Linear(8, 8, dtype=torch.float64)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(self.embedding(tokens)).tanh()


Wrap = Callable[[nn.Module], tuple[nn.Module, Callable[[bool], None]]]


def data_parallel(module: nn.Module) -> tuple[nn.Module, Callable[[bool], None]]:
    wrapped = DistributedDataParallel(module)
    return wrapped, lambda sync: setattr(wrapped, "require_backward_grad_sync", sync)


def fully_sharded(module: nn.Module) -> tuple[nn.Module, Callable[[bool], None]]:
    """Embedding and head in the root group, which stays whole between forward and backward."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(module.get_submodule("body"), mesh=mesh)
    wrapped = fully_shard(module, mesh=mesh)
    assert isinstance(wrapped, nn.Module)
    return wrapped, wrapped.set_requires_gradient_sync


def accumulation(objective: Objective, wrap: Wrap, ranks: Ranks, what: str) -> None:
    """Two uneven micro-batches on each of two ranks, with one exchange of gradients, are one batch."""
    torch.manual_seed(5)
    tokens, targets = torch.randint(0, V, (8, 6)), torch.randint(0, V, (8, 6))
    targets[0, 1:], targets[3], targets[5, :4] = IGNORE, IGNORE, IGNORE
    count = int((targets != IGNORE).sum())
    plain, copy = Toy(), Toy()
    copy.load_state_dict(plain.state_dict())
    objective(plain(tokens), plain.embedding.weight, targets).loss.backward()
    module, sync = wrap(copy)
    for i in range(2):
        mine = slice(4 * ranks.rank + 2 * i, 4 * ranks.rank + 2 * i + 2)
        sync(i == 1)
        out = objective(module(tokens[mine]), copy.embedding.weight, targets[mine], denom=count)
        (out.loss * ranks.world_size).backward()
    for (key, ours), theirs in zip(copy.named_parameters(), plain.parameters(), strict=True):
        grad = ours.grad
        assert grad is not None and theirs.grad is not None
        full = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        close(full, theirs.grad, f"{what}: {key}")


def main(folder: Path) -> None:
    place = Place.from_environment()
    ranks = Ranks(place, torch.device("cpu"))
    own = folder / str(place.rank)
    own.mkdir()
    for config in CONFIGS:
        objective = build(config, own, fused="on", chunk=4)
        rows_split(objective, ranks, name(config))
        if (
            objective.recipe.at(0.0, torch.device("cpu"), torch.float64).whole
            or objective.config.ahead
            and objective.recipe.transforms
        ):
            continue
        vocabulary_split(objective, ranks, name(config))
    plain = build({"base": "ce"}, own)
    a_hole_is_noticed(ranks, plain)
    ties_count_once(ranks, plain)
    a_rank_of_padding(ranks, plain)
    a_rank_of_padding(ranks, build({"base": {"smooth": {}}, "add": ["z"]}, own))
    for config in ({"base": {"smooth": {}}, "add": ["z"]}, {"base": "confidence"}):
        for wrap in (data_parallel, fully_sharded):
            for fused in ("on", "off"):
                objective = build(config, own, fused=fused, chunk=4)
                accumulation(objective, wrap, ranks, f"{name(config)} {wrap.__name__} fused={fused}")
    print(f"rank {ranks.rank} is content")
    ranks.barrier()
    ranks.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_process(0)
