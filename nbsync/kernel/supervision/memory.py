"""The memory of all ranks in a few lines, for the error of one that had too little of it."""

from __future__ import annotations

from collections.abc import Mapping

from nbsync.protocol.messages import Done
from nbsync.protocol.reports import Memory


def memory_table(done: Mapping[int, Done]) -> list[str]:
    """A line for each rank that has answered, if one of them ran out of memory; else nothing."""
    failures = {rank: answer.failure for rank, answer in done.items() if answer.failure is not None}
    limits = {rank: failure.memory_limit for rank, failure in failures.items() if failure.memory_limit is not None}
    if not limits:
        return []
    held = {rank: answer.memory for rank, answer in sorted(done.items()) if answer.memory is not None}
    return ["memory of the ranks:", *(f"  rank {rank}: {_line(held[rank], limits.get(rank))}" for rank in held)]


def _line(held: Memory, limit: int | None) -> str:
    most = f" of {_size(limit)} at most" if limit is not None else ""
    gpu = f"; GPU {_size(held.allocated)} in tensors, {_size(held.reserved)} reserved" if held.reserved else ""
    return f"RSS {_size(held.resident)}{most}{gpu}"


def _size(count: int) -> str:
    """In the units of torch's own message, which stands beside it."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count >> 20} MiB"
