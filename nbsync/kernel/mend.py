"""Makes a world whole again: heals the process group in place, and brings ended ranks back into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nbsync.errors import describe_ranks
from nbsync.kernel.fleet import Fleet
from nbsync.kernel.run import Run
from nbsync.kernel.sink import Sink
from nbsync.kernel.state import Phase
from nbsync.protocol.messages import Heal
from nbsync.protocol.serial import unpack

HEAL_LIMIT = 20.0  # seconds
Notify = Callable[[str], None]


def heal_after(run: Run, fleet: Fleet, sink: Sink, notify: Notify) -> None:
    """Make the process group whole again after a run, if it needs that."""
    ended_well = not (run.has_failed or run.interrupts or run.timed_out or run.stuck)
    if not any(done.group_broken for done in run.done.values()) and (ended_well or _agree(run)):
        return
    if all(fleet.state.phase(rank) is Phase.IDLE for rank in range(fleet.size)):
        fleet.life += 1  # else a rank is gone or busy: `refill` heals later, or the next run that ends
        _join_life(fleet, fleet.life, range(fleet.size), sink, notify)


def refill(fleet: Fleet, ranks: Sequence[int], sink: Sink, notify: Notify) -> None:
    """Bring `ranks` back, as copies of the notebook as it is now, into the same world; the others keep their state.

    Raises:
        StartError: they did not come up.
    """
    others = [rank for rank in range(fleet.size) if rank not in ranks]
    fleet.refill(ranks, lambda life: _join_life(fleet, life, others, sink, notify))


def _join_life(fleet: Fleet, life: int, ranks: Iterable[int], sink: Sink, notify: Notify) -> None:
    """Give the process groups of `ranks` fresh backends; ranks that just start come in by themselves."""
    run = fleet.execute(
        lambda number: Heal(number, life),
        tuple(ranks),
        sink,
        note="joins its process group again",
        timeout=HEAL_LIMIT,
        notify=notify,
    )
    failures = {rank: done.failure for rank, done in run.done.items() if done.failure is not None}
    for rank, failure in sorted(failures.items())[:1]:
        notify(f"the process group could not be healed: {describe_ranks([rank])}: {failure.message}")
    lost = sorted({group for done in run.done.values() if done.value for group in unpack(done.value)})
    for group in lost:
        notify(f"the process group of {describe_ranks(group)} must be made again, with what was built on it")


def _agree(run: Run) -> bool:
    """Whether every group has seen equally many collectives on all ranks that answered."""
    seen: dict[str, int] = {}
    return all(seen.setdefault(name, count) == count for done in run.done.values() for name, count in done.sequence)
