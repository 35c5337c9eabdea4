"""Barriers and collectives as gatherings: who has come, who is missing. Pure; times are given in.

A rank's events come in their order, those of different ranks do not: one may tell of its second barrier before another
tells of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nbsync.protocol.reports import BarrierEvent

LONG = 1.0  # seconds after which a collective is worth telling of
SETTLED = 1.0  # seconds after which nobody is expected any more in a barrier that others have passed


@dataclass(frozen=True)
class Gathering:
    """A barrier or collective that ranks wait in.

    Attributes:
        name: as the user called it, or the operation with its number, e.g. "all_reduce #12".
        call_site: e.g. "Cell In[3], line 2".
        arrived: when each rank came, by rank.
        missing: the ranks that did not come yet; if all have come, those that left again.
    """

    name: str
    call_site: str
    arrived: Mapping[int, float]
    missing: tuple[int, ...]

    @property
    def first(self) -> float:
        """When the first rank came."""
        return min(self.arrived.values())


@dataclass(frozen=True)
class Passed:
    """A barrier that all ranks have passed: how long the first waited for the last, and who that was."""

    name: str
    call_site: str
    spread: float
    slowest: int


@dataclass
class _Open:
    name: str
    call_site: str
    arrived: dict[int, float] = field(default_factory=dict)
    left: dict[int, float] = field(default_factory=dict)
    gave_up: set[int] = field(default_factory=set)

    def missing(self, ranks: Iterable[int]) -> tuple[int, ...]:
        away = tuple(rank for rank in ranks if rank not in self.arrived)
        return tuple(rank for rank in away if rank not in self.gave_up) or away


class Barriers:
    """The named barriers that are open, and the last one that was passed."""

    def __init__(self) -> None:
        self.passed: Passed | None = None
        self._open: list[_Open] = []

    def take(self, rank: int, event: BarrierEvent, size: int) -> None:
        """An event of `rank`, in a world of `size`."""
        if event.entered:
            self._enter(rank, event, size)
        else:
            self._leave(rank, event, size)

    def forget(self, ranks: Iterable[int]) -> None:
        """These ranks wait no more, whatever they have told."""
        for barrier in self._open:
            for rank in ranks:
                barrier.arrived.pop(rank, None)
                barrier.left.pop(rank, None)
                barrier.gave_up.discard(rank)
        self._open = [barrier for barrier in self._open if barrier.arrived]

    def settle(self, now: float) -> None:
        """Forget the barriers in which nobody is expected any more."""
        self._open = [barrier for barrier in self._open if not _is_settled(barrier, now)]

    def waiting(self, ranks: Iterable[int]) -> list[Gathering]:
        """The barriers that somebody waits in; `ranks` are those that could come."""
        return [
            Gathering(b.name, b.call_site, dict(b.arrived), b.missing(ranks))
            for b in self._open
            if b.arrived.keys() - b.left.keys()
        ]

    def _enter(self, rank: int, event: BarrierEvent, size: int) -> None:
        for barrier in self._open:
            if barrier.name == event.name and rank not in barrier.arrived:
                break
        else:
            barrier = _Open(event.name, event.call_site)
            self._open.append(barrier)
        barrier.arrived[rank] = event.time
        if len(barrier.arrived) == size:
            slowest = max(barrier.arrived, key=lambda one: barrier.arrived[one])
            spread = barrier.arrived[slowest] - min(barrier.arrived.values())
            self.passed = Passed(barrier.name, barrier.call_site, spread, slowest)

    def _leave(self, rank: int, event: BarrierEvent, size: int) -> None:
        for barrier in self._open:
            if barrier.name == event.name and rank in barrier.arrived and rank not in barrier.left:
                break
        else:
            return
        if event.passed:
            barrier.left[rank] = event.time
        else:
            del barrier.arrived[rank]
            barrier.gave_up.add(rank)
        if len(barrier.left) == size or not barrier.arrived:
            self._open.remove(barrier)


def collectives(waits: Mapping[int, tuple[str, str, Sequence[int], float]], now: float) -> list[Gathering]:
    """The collectives that have been blocking for long.

    Args:
        waits: by rank, the operation it waits in, its line, the ranks of the group, and since when.
    """
    together: dict[tuple[str, tuple[int, ...]], dict[int, float]] = {}
    for rank, (name, _, group, since) in waits.items():
        together.setdefault((name, tuple(group)), {})[rank] = since
    return [
        Gathering(name, waits[min(since)][1], since, tuple(rank for rank in group if rank not in since))
        for (name, group), since in together.items()
        if now - min(since.values()) >= LONG
    ]


def _is_settled(barrier: _Open, now: float) -> bool:
    """All who came have passed it, and nobody else is expected: the others did not take part."""
    return barrier.left.keys() >= barrier.arrived.keys() and now - max(barrier.left.values()) > SETTLED
