"""What the ranks are doing at this moment, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nbsync.kernel.state import Phase, Snapshot
from nbsync.kernel.supervision.evidence import resident_bytes, unusual_state
from nbsync.protocol.handlers import handled_signals
from nbsync.protocol.reports import Where
from nbsync.protocol.spec import STACK_SIGNAL
from nbsync.protocol.words import describe_ranks, format_size, ranks_do

if TYPE_CHECKING:
    from nbsync.kernel.fleet import Fleet


def describe_world(fleet: Fleet) -> str:
    """State, current line and the time in it, and memory of every rank; equal ranks in one line."""
    busy = fleet.state.in_phase(Phase.BUSY)
    found = fleet.traffic.peek(busy) if busy else {}
    snapshot = fleet.traffic.snapshot()
    places: dict[str, dict[int, float | None]] = {}
    for rank in busy:
        where = found.get(rank)
        text = _describe_place(fleet, rank, where)
        places.setdefault(text, {})[rank] = _time_there(snapshot, rank, where) if where else None
    sizes = [resident_bytes(state.pid) for state in snapshot.ranks]
    memory = ", ".join("-" if size is None else format_size(size) for size in sizes)
    lines = [f"  {describe_ranks(list(times))}: {text}{_for(times.values())}" for text, times in places.items()]
    return "\n".join([snapshot.describe(), *lines, f"  memory {memory}"])


def describe_stacks(fleet: Fleet, ranks: Sequence[int]) -> str:
    """The Python stack of each of `ranks`, equal ones once.

    A rank that does not answer is made to write its stack to its stderr instead, which shows in the cell it runs.
    """
    found = fleet.traffic.peek(ranks)
    stacks: dict[tuple[str, ...], list[int]] = {}
    sentences: dict[str, list[int]] = {}
    for rank in ranks:
        where = found.get(rank)
        if where is not None and where.run is not None:
            stacks.setdefault(where.stack, []).append(rank)
        else:
            sentences.setdefault(_describe_without_stack(fleet, rank, where), []).append(rank)
    blocks = [f"{describe_ranks(alike)}:\n{''.join(stack).rstrip()}" for stack, alike in stacks.items()]
    said = [ranks_do(alike, what) for what, alike in sentences.items()]
    return "\n\n".join([*blocks, *(["\n".join(said)] if said else [])])


def _describe_without_stack(fleet: Fleet, rank: int, where: Where | None) -> str:
    if where is not None:
        return str(fleet.traffic.moving(rank) or "is idle")
    if fleet.state.phase(rank) is Phase.DEAD:
        return fleet.state.end(rank)
    pid = fleet.traffic.pid(rank)
    if pid is None:
        return "was ended"
    in_c = "C code holds the GIL"
    if STACK_SIGNAL in handled_signals(pid):  # else it would end by the signal
        fleet.traffic.signal(rank, STACK_SIGNAL)
        in_c += "; the stack shows in the output of the cell"
    return f"does not answer: {unusual_state(pid) or in_c}"


def _time_there(snapshot: Snapshot, rank: int, where: Where) -> float:
    """Seconds for which `rank` was seen at its line; a cell's ranks are looked at every 0.4 s."""
    place = next((state.place for state in snapshot.ranks if state.rank == rank), None)
    return snapshot.now - place.since if place is not None and place.line == where.line else 0.0


def _for(times: Iterable[float | None]) -> str:
    """`, for 12 s`; `, for 3 to 12 s` when it is not the same for all ranks."""
    known = [round(seconds) for seconds in times if seconds is not None]
    if not known or max(known) < 1:
        return ""
    return f", for {min(known)} to {max(known)} s" if max(known) - min(known) > 1 else f", for {max(known)} s"


def _describe_place(fleet: Fleet, rank: int, where: Where | None) -> str:
    moving = fleet.traffic.moving(rank)
    if moving is not None:
        return str(moving)
    if where is None:
        pid = fleet.traffic.pid(rank)
        return (unusual_state(pid) if pid is not None else "ended") or "does not answer: it is in C code"
    return f"at {where.line}" + (f", in {where.waiting_in}" if where.waiting_in else "")
