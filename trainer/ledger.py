"""Counts the memory of tensors while code runs, also of tensors that have none: a whole step, without doing it."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten


class Ledger(TorchDispatchMode):
    """While it is on, keeps account of every storage that operators make, until it is freed.

    What an operator takes and gives back while it runs is not seen. Bytes are booked on `account`, whose name may be
    changed at any time; `parts` is what each account held at the moment of the largest sum, in the order of their
    first entry.
    """

    def __init__(self, account: str) -> None:
        super().__init__()
        self.account = account
        self.live: Counter[str] = Counter()
        self.parts: dict[str, int] = {}
        self._booked: dict[int, tuple[int, str]] = {}

    @property
    def peak(self) -> int:
        """The largest sum so far, bytes."""
        return sum(self.parts.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._book(leaf.untyped_storage())
        return out

    def _book(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._booked:
            return
        self._booked[key] = storage.nbytes(), self.account
        self.live[self.account] += storage.nbytes()
        weakref.finalize(storage, self._free, key).atexit = False
        if self.live.total() > self.peak:
            self.parts = dict(self.live)

    def _free(self, key: int) -> None:
        size, account = self._booked.pop(key)
        self.live[account] -= size


class _Ordinary(TorchDispatchMode):
    """Answers what code asks about the values of tensors that have none.

    `any` finds nothing, since what is looked for that way is a mistake; every other condition holds, `nonzero` says
    everywhere, and a number is 1. So no target is masked, and all of them are among the best logits, as they are
    while a head still is zero: what a first step costs, and no later one costs more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._none: set[int] = set()  # ids of results of `any`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default:
            return id(args[0]) not in self._none if args[0].dtype == torch.bool else 1
        if func is _aten.nonzero.default:
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        out = func(*args, **(kwargs or {}))
        if func is _aten.any.default:
            self._none.add(id(out))
            weakref.finalize(out, self._none.discard, id(out)).atexit = False
        return out


@contextmanager
def without_contents(account: str) -> Iterator[Ledger]:
    """Inside, tensors that are made have shapes but no contents, and cost nothing; yields the ledger of them."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    ledger = Ledger(account)
    with FakeTensorMode(), _Ordinary(), ledger:
        yield ledger
