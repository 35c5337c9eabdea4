"""The ranks of a group compare what they are about to do, before they do it."""

from __future__ import annotations

import sys
import zlib
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

_BYTES = 512  # of what one rank tells the others when they differ


class Comparison:
    """Made by the collectives as torch has them: before they are wrapped."""

    def __init__(self) -> None:
        self._allgather = dist.ProcessGroup.allgather
        self._allreduce = dist.ProcessGroup.allreduce
        self._minimum = c10d.AllreduceOptions()
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
        extremes = torch.tensor([mine, -mine], device="cpu")
        self._allreduce(group, [extremes], self._minimum).wait()
        least, negated_most = extremes.tolist()
        if least != -negated_most:
            raise CollectiveMismatch(self._tell_all(group, ranks, what))

    def _tell_all(self, group: Any, ranks: Sequence[int], what: str) -> str:
        """Exchange what each rank is about to do, and where."""
        mine = f"{what} at {line_of(sys._getframe())}".encode()[:_BYTES].ljust(_BYTES)
        seen = [torch.empty(_BYTES, dtype=torch.uint8, device="cpu") for _ in ranks]
        self._allgather(group, [seen], [torch.frombuffer(bytearray(mine), dtype=torch.uint8)]).wait()
        texts = [tensor.numpy().tobytes().decode(errors="replace").rstrip() for tensor in seen]
        return tell_difference({rank: Entry("", text) for rank, text in zip(ranks, texts, strict=True)})


def tell_difference(noted: Mapping[int, Entry]) -> str:
    """What each rank does, in words; those that do the same share a line."""
    together: dict[str, list[int]] = {}
    for rank, entry in noted.items():
        together.setdefault(entry.told, []).append(rank)
    lines = [f"  {describe_ranks(ranks)}: {told}" for told, ranks in together.items()]
    return "\n".join(["the ranks are not in the same collective:", *lines])
