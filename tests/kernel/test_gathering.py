"""Barriers and collectives as gatherings: who has come, who is missing, in whatever order the ranks' events arrive."""

from __future__ import annotations

import random

import pytest

from nbsync.kernel.view.gathering import LONG, SETTLED, Barriers, collectives
from nbsync.protocol.reports import BarrierEvent


def entered(at: float, name: str = "b") -> BarrierEvent:
    return BarrierEvent(name, "Cell In[1], line 2", True, at)


def left(at: float, name: str = "b", passed: bool = True) -> BarrierEvent:
    return BarrierEvent(name, "Cell In[1], line 2", False, at, passed)


def take(barriers: Barriers, size: int, *events: tuple[int, BarrierEvent]) -> None:
    for rank, event in events:
        barriers.take(rank, event, size)


def test_who_waits_and_who_is_missing() -> None:
    """A barrier names those who came, when the first came, and who did not."""
    barriers = Barriers()
    take(barriers, 3, (2, entered(5.0)), (0, entered(4.0)))
    (waiting,) = barriers.waiting(range(3))
    assert (waiting.name, dict(waiting.arrived), waiting.missing) == ("b", {2: 5.0, 0: 4.0}, (1,))
    assert waiting.first == 4.0
    assert barriers.passed is None


def test_who_gave_up_is_not_missing() -> None:
    """A rank whose time was over had come; it is missing only where nobody else is."""
    barriers = Barriers()
    take(barriers, 3, (0, entered(4.0)), (1, entered(5.0)), (0, left(6.0, passed=False)))
    assert [(dict(each.arrived), each.missing) for each in barriers.waiting(range(3))] == [({1: 5.0}, (2,))]
    take(barriers, 3, (2, entered(7.0)))
    assert [each.missing for each in barriers.waiting(range(3))] == [(0,)]
    take(barriers, 3, (0, entered(8.0)))
    assert [each.missing for each in barriers.waiting(range(3))] == [()]


def test_spread_and_slowest() -> None:
    """When the last has come it is known who that was, and how long the first has waited."""
    barriers = Barriers()
    take(barriers, 3, (2, entered(5.0)), (1, entered(7.5)), (0, entered(4.0)))
    assert barriers.passed is not None
    assert (barriers.passed.spread, barriers.passed.slowest) == (3.5, 1)
    take(barriers, 3, *((rank, left(7.6)) for rank in range(3)))
    assert barriers.waiting(range(3)) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_order_between_ranks(seed: int) -> None:
    """Each rank's events come in order, those of different ranks in any: the barriers come out the same."""
    draw, size, rounds = random.Random(seed), 4, 5
    queues = []
    for rank in range(size):
        times = [(10.0 * turn + (5 if rank == turn % size else rank), 10.0 * turn + 6) for turn in range(rounds)]
        queues.append([(rank, event) for come, go in times for event in (entered(come), left(go))])
    barriers, spreads = Barriers(), []
    while any(queues):
        rank, event = draw.choice([queue for queue in queues if queue]).pop(0)
        before = barriers.passed
        barriers.take(rank, event, size)
        if barriers.passed is not before and barriers.passed is not None:
            spreads.append((barriers.passed.spread, barriers.passed.slowest))
    assert spreads == [(5.0 if turn % size else 4.0, turn % size) for turn in range(rounds)]
    assert barriers.waiting(range(size)) == []


def test_a_fast_rank_in_the_next_barrier() -> None:
    """A rank may tell of its second barrier before another has told of the first: these are two."""
    barriers = Barriers()
    take(barriers, 2, (0, entered(1.0)), (0, left(2.0)), (0, entered(3.0)))
    first, second = barriers.waiting(range(2))[-1:], barriers._open
    assert len(second) == 2
    assert first[0].arrived == {0: 3.0}
    take(barriers, 2, (1, entered(2.0)))
    assert barriers.passed is not None
    assert barriers.passed.spread == 1.0


def test_an_abandoned_barrier() -> None:
    """A rank that gives up waits no more; it is missing to those who stay, and may come again."""
    barriers = Barriers()
    take(barriers, 2, (0, entered(1.0)), (0, left(2.0, passed=False)))
    assert barriers.waiting(range(2)) == []
    take(barriers, 2, (1, entered(3.0)))
    assert barriers.waiting(range(2))[0].missing == (0,)
    take(barriers, 2, (0, entered(4.0)))
    assert barriers.passed is not None
    assert (barriers.passed.spread, barriers.passed.slowest) == (1.0, 0)


def test_a_rank_that_failed_or_died_waits_no_more() -> None:
    """What a rank told before its end does not keep a barrier open."""
    barriers = Barriers()
    take(barriers, 2, (0, entered(1.0)), (1, entered(1.0, "other")))
    barriers.forget([0])
    assert [(g.name, g.missing) for g in barriers.waiting(range(2))] == [("other", (0,))]


def test_a_barrier_of_some_ranks() -> None:
    """A barrier that not all ranks take part in is gone soon after those who came have left."""
    barriers = Barriers()
    take(barriers, 3, (0, entered(1.0)), (1, entered(1.5)), (0, left(2.0)))
    assert barriers.waiting(range(3))[0].missing == (2,)
    take(barriers, 3, (1, left(2.0)))
    assert barriers.waiting(range(3)) == []
    barriers.settle(2.0 + SETTLED + 0.1)
    take(barriers, 3, (2, entered(9.0)))
    assert barriers.waiting(range(3))[0].arrived == {2: 9.0}


def test_unknown_events_are_harmless() -> None:
    """A rank that leaves what it never entered, as the oldest of too many events are dropped, changes nothing."""
    barriers = Barriers()
    take(barriers, 2, (0, left(1.0)), (1, left(1.0, passed=False)))
    assert barriers.waiting(range(2)) == []


def test_only_long_collectives_are_told() -> None:
    """A collective shows after a second, with the ranks of its group that are missing."""
    waits = {0: ("all_reduce #12", "train.py, line 3", (0, 1, 3), 10.0), 3: ("all_reduce #12", "", (0, 1, 3), 10.5)}
    assert collectives(waits, 10.0 + LONG - 0.01) == []
    (found,) = collectives(waits, 10.0 + LONG)
    assert (found.name, found.call_site, found.missing) == ("all_reduce #12", "train.py, line 3", (1,))
    assert found.arrived == {0: 10.0, 3: 10.5}


def test_different_collectives_are_told_apart() -> None:
    """The same operation with another number or group is another gathering."""
    waits = {0: ("all_reduce #1", "", (0, 1), 0.0), 1: ("all_reduce #2", "", (0, 1), 0.0), 2: ("recv", "", (2, 3), 0.0)}
    assert [(g.name, g.missing) for g in collectives(waits, 5.0)] == [
        ("all_reduce #1", (1,)),
        ("all_reduce #2", (0,)),
        ("recv", (3,)),
    ]
