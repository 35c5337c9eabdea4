"""Whether ranks can go on, judged from where they are: pure, from two looks at the world to a diagnosis.

A rank that computes for long is no fault; so nothing is said of a world in which one rank still moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nbsync.protocol.reports import ASYNCHRONOUS, STORE_START, STORE_WAITS, Where
from nbsync.protocol.words import ranks_do, ranks_each_do

# These end by themselves: a barrier with a timeout (else it shows as "barrier"), and what waits for a store, where
# nobody knows who may yet come and set the key.
_HAVE_A_LIMIT = ("wait_for_everyone", STORE_START, *(f"store.{name}" for name in STORE_WAITS))
_POINT_TO_POINT = ("send", "recv", "irecv", "isend", "batch_isend_irecv", ASYNCHRONOUS)  # a collective has its name
FINISHED = "has finished"  # why a rank is absent, as opposed to one that failed
_UNEVEN = " (`torch.distributed.algorithms.Join` lets ranks have fewer batches than others)"
_IDLE = 0.02  # seconds of processor time between two looks that a waiting process uses or asks for at most


@dataclass(frozen=True)
class Verdict:
    """What is thought of a world in which every rank waits.

    Attributes:
        told: why no rank can go on, in plain words.
        doubt: the ranks of which another thread may yet do what somebody waits for.
    """

    told: str
    doubt: tuple[int, ...] = ()


@dataclass(frozen=True)
class Place:
    """What a waiting rank waits in."""

    name: str
    number: int | None
    group: tuple[int, ...]
    peer: int | None
    line: str
    must: str | None
    group_name: str
    is_ddp: bool

    @classmethod
    def of(cls, where: Where, world: tuple[int, ...]) -> Place:
        """That of a rank which says where it is."""
        return cls(
            name=where.waiting_in or "",
            number=where.number,
            group=where.group or world,
            peer=where.peer,
            line=where.line,
            must=where.must,
            group_name=where.group_name,
            is_ddp=where.is_ddp,
        )

    def tell(self, *, with_group: bool) -> str:
        """In words; with the name of the process group where its ranks have several."""
        number = f" #{self.number}" if self.number is not None else ""
        number += " of a backward pass" if self.is_ddp else ""
        peer = f" for rank {self.peer}" if self.peer is not None else ""
        group = f" of process group {self.group_name}" if with_group and self.group_name else ""
        return f"{self.name}{number}{group}{peer}" + (f" at {self.line}" if self.line else "")

    @property
    def operation(self) -> tuple[str, int | None, str, int | None]:
        """What must be the same on all ranks of a collective. A message in a backward pass has its name, and a peer."""
        return self.name, self.number, self.group_name, self.peer


def diagnose(
    before: Mapping[int, Where], now: Mapping[int, Where], absent: Mapping[int, str], size: int
) -> Verdict | None:
    """Why no rank can go on; None while one moves, or is not known to wait.

    Args:
        before, now: two looks at the ranks that still run, some time apart.
        absent: the ranks of the world that do not run any more, or do not take part, and why.
        size: the number of ranks in the world.
    """
    if not now or set(before) != set(now) or not all(_waits(before[rank], now[rank]) for rank in now):
        return None
    if len(now) + len(absent) < size:  # somebody did not answer: nothing is known of it
        return None
    world = tuple(range(size))
    places = {rank: Place.of(where, world) for rank, where in sorted(now.items())}
    if any(_is_complete(place, places) for place in places.values()):
        return None  # all its ranks are there: its data is on the way
    doubt = tuple(rank for rank in sorted(now) if not now[rank].is_alone)
    told = "; ".join([*_waiting(places), *ranks_each_do(absent)])
    is_uneven = FINISHED in absent.values() and any(place.is_ddp for place in places.values())
    return Verdict(told + (_UNEVEN if is_uneven else ""), doubt)


def _waits(before: Where, now: Where) -> bool:
    """Whether a rank sits in the same operation as before, and its process, which moves the data, did nothing.

    On a machine that is busy, a process that would go on may be given nothing to do so with.
    """
    same = (before.waiting_in, before.number, before.line) == (now.waiting_in, now.number, now.line)
    demand = now.cpu - before.cpu + abs(now.queued - before.queued)  # less was queued if a thread has ended
    is_idle = demand < _IDLE and not now.is_queued
    return now.waiting_in not in (None, *_HAVE_A_LIMIT) and same and is_idle


def _is_complete(place: Place, places: Mapping[int, Place]) -> bool:
    """Whether all ranks of a collective's group are in it, and mean the same as far as that is known."""
    if place.peer is not None or place.name in _POINT_TO_POINT:
        return False
    there = [places[rank] for rank in place.group if rank in places and places[rank].operation == place.operation]
    return len(there) == len(place.group) and len({each.must for each in there} - {None}) < 2


def _waiting(places: Mapping[int, Place]) -> list[str]:
    together: dict[Place, list[int]] = {}
    groups: dict[tuple[int, ...], set[str]] = {}  # by their ranks
    for rank, place in places.items():
        together.setdefault(place, []).append(rank)
        groups.setdefault(place.group, set()).add(place.group_name)
    return [
        ranks_do(ranks, f"waits in {place.tell(with_group=len(groups[place.group]) > 1)}")
        for place, ranks in together.items()
    ]
