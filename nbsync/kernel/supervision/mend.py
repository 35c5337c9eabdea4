"""Makes a world whole again: heals the process group in place, and brings ended ranks back into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nbsync.errors import Interrupted, RankBusy
from nbsync.kernel.fleet import Fleet
from nbsync.kernel.output.sink import Sink
from nbsync.kernel.state import Phase
from nbsync.protocol.messages import Heal
from nbsync.protocol.serial import unpack
from nbsync.protocol.words import describe_ranks

HEAL_LIMIT = 20.0  # seconds
Notify = Callable[[str], None]


def heal(fleet: Fleet, sink: Sink, notify: Notify) -> None:
    """Make the process group whole again, if it needs that and all ranks can take part now."""
    if fleet.traffic.needs_heal and len(fleet.state.in_phase(Phase.IDLE)) == fleet.size:
        fleet.life += 1
        _join_life(fleet, fleet.life, range(fleet.size), sink, notify)


def refill(fleet: Fleet, ranks: Sequence[int], sink: Sink, notify: Notify) -> tuple[int, ...]:
    """Bring `ranks` back, as copies of the notebook as it is now, into the same world; the others keep their state.

    Ranks that have ended come back with them: the world is whole only with all.

    Returns:
        The ranks that were brought back.

    Raises:
        RankBusy: another rank is busy and cannot take part now; nothing was done.
        StartError: they did not come up.
    """
    fresh = tuple(sorted({*ranks, *fleet.state.in_phase(Phase.DEAD)}))
    others = [rank for rank in range(fleet.size) if rank not in fresh]
    busy = [rank for rank in others if fleet.state.phase(rank) is not Phase.IDLE]
    if busy:
        raise RankBusy(
            f"{describe_ranks(busy)} must be idle to let {describe_ranks(fresh)} in: `%nbsync interrupt` interrupts "
            "what runs"
        )
    fleet.refill(fresh, lambda life: _join_life(fleet, life, others, sink, notify))
    return fresh


def _join_life(fleet: Fleet, life: int, ranks: Iterable[int], sink: Sink, notify: Notify) -> None:
    """Give the process groups of `ranks` fresh backends; ranks that just start come in by themselves."""
    run = fleet.execute(
        lambda number: Heal(number, life),
        tuple(ranks),
        sink,
        note="joins the process group again",
        timeout=HEAL_LIMIT,
        notify=notify,
    )
    fleet.traffic.needs_heal = not run.ended_well
    if run.interrupts:
        raise Interrupted(["while the process group was healed; it is tried again before the next cell"])
    failures = {rank: done.failure for rank, done in run.done.items() if done.failure is not None}
    for rank, failure in sorted(failures.items())[:1]:
        notify(f"the process group could not be healed: {describe_ranks([rank])}: {failure.message}")
    lost = sorted({group for done in run.done.values() if done.value for group in unpack(done.value)})
    for group in lost:
        notify(f"the process group of {describe_ranks(group)} must be made again, with what was built on it")
