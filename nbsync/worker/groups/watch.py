"""Watches this process's collectives: what it is in, and whether all ranks mean the same one.

Gloo ends the process when shapes or types differ between ranks, and hangs or gives wrong numbers when operations do.
So before a blocking collective the ranks compare what they are about to do; a difference is an error on every rank,
and the group stays usable. The methods of `ProcessGroup` are wrapped, so every Python path is covered: also functions
imported before the start, and groups made by user code. What C++ starts by itself (DDP's backward) is not compared.

Operations that do not block (`async_op=True`, `isend`, `irecv`) are not compared: waiting for the others there could
stop a program that is right. Where the program waits for one, it is known for which.
"""

from __future__ import annotations

import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from nbsync.errors import CollectiveMismatch
from nbsync.worker.control.report import barrier_name
from nbsync.worker.places import users_line, walk_stack

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types

_UNNAMED = "wait_for_everyone"  # how `World` calls a barrier that the user has not named
_BYTES = 512  # of what one rank tells the others when they differ
_CPU = torch.device("cpu")

#: Which argument must agree in shape and type on all ranks; None compares nothing but the operation.
_COMPARED: dict[str, int | None] = {
    "allreduce": 0,
    "allreduce_coalesced": 0,
    "broadcast": 0,
    "reduce": 0,
    "allgather": 1,
    "allgather_coalesced": 1,
    "all_gather_single": 1,
    "all_gather_single_coalesced": 1,
    "gather": 1,
    "scatter": 0,
    "reduce_scatter": 0,
    "reduce_scatter_single": 0,
    "reduce_scatter_single_coalesced": 0,
    "alltoall": None,
    "all_to_all_single": None,
    "barrier": None,
}
_REDUCTIONS = dist.ReduceOp.RedOpType.__members__
_PYTHON_NAMES = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "all_gather_single": "all_gather_into_tensor",
    "reduce_scatter_single": "reduce_scatter_tensor",
    "alltoall": "all_to_all",
}


@dataclass(frozen=True)
class Collective:
    """A collective that this process waits for: its name, its group, and its number in that group."""

    name: str
    group: str
    ranks: tuple[int, ...]
    number: int


class CollectiveWatch:
    """Wraps the collectives of this process.

    Attributes:
        current: the collective that the main thread waits for; read by the helper thread.
    """

    def __init__(self, compare: bool) -> None:
        self.current: Collective | None = None
        self._compare_first = compare
        self._numbers: Counter[str] = Counter()
        self._ranks: dict[str, tuple[int, ...]] = {}
        self._begun: WeakKeyDictionary[Any, Collective] = WeakKeyDictionary()  # what does not block, by its `Work`
        self._allgather = dist.ProcessGroup.allgather
        self._allreduce = dist.ProcessGroup.allreduce
        self._minimum = c10d.AllreduceOptions()
        self._minimum.reduceOp = dist.ReduceOp.MIN
        self._main = threading.get_ident()

    def install(self) -> None:
        """Wrap the methods of `ProcessGroup`, and of `Work` the one that waits."""
        for method in _COMPARED:
            original = getattr(dist.ProcessGroup, method, None)
            if original is not None:  # not every torch has all of them
                setattr(dist.ProcessGroup, method, self._wrapped(method, original))
        dist.Work.wait = self._wrapped_wait(dist.Work.wait)  # type: ignore[method-assign]

    def forget(self) -> None:
        """The groups begin a new life: count from zero again."""
        self.current = None
        self._numbers.clear()
        self._ranks.clear()

    def _wrapped(self, method: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            if self.current is not None or threading.get_ident() != self._main or group.size() == 1:
                return original(group, *args, **kwargs)
            self._numbers[group.group_name] += 1
            number = self._numbers[group.group_name]
            collective = Collective(_PYTHON_NAMES.get(method, method), group.group_name, self._ranks_of(group), number)
            options = kwargs.get("opts", args[-1] if args else None)
            if not getattr(options, "asyncOp", True):
                return self._blocking(method, original, collective, group, args, kwargs, options)
            work = original(group, *args, **kwargs)
            if work is not None:
                self._begun[work] = collective
            return work

        call.__name__, call.__doc__ = method, original.__doc__
        return call

    def _wrapped_wait(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            if self.current is not None or threading.get_ident() != self._main:
                return original(work, *args, **kwargs)
            self.current = self._begun.get(work)
            try:
                return original(work, *args, **kwargs)
            finally:
                self.current = None

        wait.__doc__ = original.__doc__
        return wait

    def _blocking(
        self,
        method: str,
        original: Callable[..., Any],
        collective: Collective,
        group: Any,
        args: Any,
        kwargs: Any,
        options: Any,
    ) -> Any:
        self.current = collective
        try:
            if self._compare_first and _CPU in group._device_types:
                self._compare(group, collective.ranks, collective.name + _describe(method, args, options))
            work = original(group, *args, **kwargs)
            if work is not None:
                work.wait()  # the caller waits once more, which returns at once: `current` covers the whole wait
            return work
        finally:
            self.current = None

    def _ranks_of(self, group: Any) -> tuple[int, ...]:
        ranks = self._ranks.get(group.group_name)
        if ranks is None:
            ranks = self._ranks[group.group_name] = tuple(c10d.get_process_group_ranks(group))
        return ranks

    def _compare(self, group: Any, ranks: Sequence[int], what: str) -> None:
        """Let the group compare what its ranks are about to do: one small all_reduce when they agree.

        Raises:
            CollectiveMismatch: they differ. All ranks of the group raise it, so they stay in step.
        """
        mine = zlib.crc32(what.encode())
        extremes = torch.tensor([mine, -mine])
        self._allreduce(group, [extremes], self._minimum).wait()
        least, negated_most = extremes.tolist()
        if least != -negated_most:
            raise CollectiveMismatch(self._tell_all(group, ranks, what))

    def _tell_all(self, group: Any, ranks: Sequence[int], what: str) -> str:
        """Exchange what each rank is about to do, and where."""
        mine = f"{what} at {users_line(walk_stack(sys._getframe(4)))}".encode()[:_BYTES].ljust(_BYTES)
        seen = [torch.empty(_BYTES, dtype=torch.uint8) for _ in ranks]
        self._allgather(group, [seen], [torch.frombuffer(bytearray(mine), dtype=torch.uint8)]).wait()
        texts = [tensor.numpy().tobytes().decode(errors="replace").rstrip() for tensor in seen]
        lines = [f"  rank {rank}: {text}" for rank, text in zip(ranks, texts, strict=True)]
        return "the ranks are not in the same collective:\n" + "\n".join(lines)


def _describe(method: str, args: Sequence[Any], options: Any) -> str:
    """Shapes, types, reduction and root: what must be equal on all ranks."""
    index = _COMPARED[method]
    tensors = [] if index is None else _tensors(args[index])
    parts = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors]
    if hasattr(options, "reduceOp"):
        parts.append(next(name.lower() for name, kind in _REDUCTIONS.items() if options.reduceOp == kind))
    if method == "barrier" and barrier_name() not in (None, _UNNAMED):
        parts.append(repr(barrier_name()))
    if hasattr(options, "rootRank") and method != "barrier":
        parts.append(f"root {options.rootRank}")
    return "".join(f" {part}" for part in parts)


def _tensors(argument: Any) -> list[torch.Tensor]:
    if isinstance(argument, torch.Tensor):
        return [argument]
    return [tensor for part in argument for tensor in _tensors(part)]
