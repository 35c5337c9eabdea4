"""The ranks of a group compare what they are about to do, before they do it."""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from nbsync.errors import CollectiveMismatch
from nbsync.protocol.words import describe_ranks
from nbsync.worker.groups.ledger import Entry
from nbsync.worker.places import line_of

c10d: Any = distributed_c10d  # much of what is used here is private to torch, and has no types
autograd: Any = torch._C._autograd

_CPU = torch.device("cpu")
_BYTES = 512  # of what one rank tells the others when they differ


class Comparison:
    """Made by the group's backend itself, in memory that is no tensor's: the user's modes see nothing of that.

    Such as `CommDebugMode`; nor does a default device, or a `FakeTensorMode`, make anything else of it.
    """

    def __init__(self) -> None:
        self._minimum, self._sum = c10d.AllreduceOptions(), c10d.AllreduceOptions()
        self._minimum.reduceOp = dist.ReduceOp.MIN

    def make(self, group: Any, ranks: Sequence[int], what: str) -> None:
        """One small all_reduce when they agree.

        Args:
            ranks: the group's, by their numbers in the world.
            what: this rank is about to do.

        Raises:
            CollectiveMismatch: they differ. All ranks of the group raise it, so they stay in step.
        """
        mine = zlib.crc32(what.encode())
        extremes = array("q", (mine, -mine))
        _reduce(group, extremes, torch.int64, self._minimum)
        least, negated_most = extremes
        if least != -negated_most:
            raise CollectiveMismatch(self._tell_all(group, ranks, what))

    def _tell_all(self, group: Any, ranks: Sequence[int], what: str) -> str:
        """Exchange what each rank is about to do, and where."""
        mine = f"{what} at {line_of(sys._getframe())}".encode()[:_BYTES].ljust(_BYTES)
        places = range(0, len(ranks) * _BYTES, _BYTES)
        seen = bytearray(len(ranks) * _BYTES)
        place = group.rank() * _BYTES
        seen[place : place + _BYTES] = mine
        _reduce(group, seen, torch.uint8, self._sum)
        texts = [seen[place : place + _BYTES].decode(errors="replace").rstrip() for place in places]
        return tell_difference({rank: Entry("", text) for rank, text in zip(ranks, texts, strict=True)})


def _reduce(group: Any, memory: Any, kind: torch.dtype, options: Any) -> None:
    """Like all_reduce with numbers in this memory; torch tells no mode of a tensor of it, nor its profiler."""
    tensor, backend = torch.frombuffer(memory, dtype=kind), group._get_backend(_CPU)
    is_profiled = autograd._profiler_enabled()
    try:
        if is_profiled:
            autograd._enable_record_function(False)
        work = backend.allreduce([tensor], options)
    finally:
        if is_profiled:
            autograd._enable_record_function(True)
    work.wait()


def tell_difference(noted: Mapping[int, Entry]) -> str:
    """What each rank does, in words; those that do the same share a line."""
    together: dict[str, list[int]] = {}
    for rank, entry in noted.items():
        together.setdefault(entry.told, []).append(rank)
    lines = [f"  {describe_ranks(ranks)}: {told}" for told, ranks in together.items()]
    return "\n".join(["the ranks are not in the same collective:", *lines])
