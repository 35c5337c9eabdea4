"""The memory of all ranks in a few lines, for the error of one that had too little of it."""

from __future__ import annotations

from collections.abc import Mapping

from nbsync.protocol.messages import Done
from nbsync.protocol.reports import Memory


def memory_table(done: Mapping[int, Done]) -> list[str]:
    """A line for each rank that has answered, if one of them ran out of memory; else nothing."""
    limits = [answer.failure.memory_limit for answer in done.values() if answer.failure is not None]
    known = [limit for limit in limits if limit is not None]
    if not known:
        return []
    lines = [f"  rank {rank}: {_line(answer.memory)}" for rank, answer in sorted(done.items()) if answer.memory]
    return [f"memory of the ranks, each limited to {_size(min(known))}:", *lines]


def _line(held: Memory) -> str:
    gpu = f"; GPU {_size(held.allocated)} in tensors, {_size(held.reserved)} reserved" if held.reserved else ""
    return f"RSS {_size(held.resident)}{gpu}"


def _size(count: int) -> str:
    """In the units of torch's own message, which stands beside it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count >> 20} MiB"
