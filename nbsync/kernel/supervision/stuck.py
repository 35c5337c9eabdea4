"""Whether ranks can go on, judged from where they are: pure, from two looks at the world to a diagnosis.

A rank that computes for long is no fault; so nothing is said of a world in which one rank still moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nbsync.protocol.reports import ASYNCHRONOUS, STORE_START, STORE_WAITS, Where
from nbsync.protocol.words import ranks_do

# These end by themselves: a barrier with a timeout (else it shows as "barrier"), and what waits for a store, where
# nobody knows who may yet come and set the key.
_HAVE_A_LIMIT = ("wait_for_everyone", STORE_START, *(f"store.{name}" for name in STORE_WAITS))
_POINT_TO_POINT = ("send", "recv", "irecv", "isend", "batch_isend_irecv", ASYNCHRONOUS)  # a collective has its name
_IDLE = 0.02  # seconds of processor time between two looks that a waiting process uses at most


@dataclass(frozen=True)
class Place:
    """What a waiting rank waits in."""

    name: str
    number: int | None
    group: tuple[int, ...]
    peer: int | None
    line: str
    must: str | None

    def __str__(self) -> str:
        number = f" #{self.number}" if self.number is not None else ""
        peer = f" for rank {self.peer}" if self.peer is not None else ""
        return f"{self.name}{number}{peer}" + (f" at {self.line}" if self.line else "")

    @property
    def operation(self) -> tuple[str, int | None, tuple[int, ...], int | None]:
        """What must be the same on all ranks of a collective. A message in a backward pass has its name, and a peer."""
        return self.name, self.number, self.group, self.peer


def diagnose(before: Mapping[int, Where], now: Mapping[int, Where], absent: Mapping[int, str], size: int) -> str | None:
    """Why no rank can go on, in plain words; None while progress is possible or not known to be impossible.

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
    places = {
        rank: Place(where.waiting_in or "", where.number, where.group or world, where.peer, where.line, where.must)
        for rank, where in sorted(now.items())
    }
    if any(_is_complete(place, places) for place in places.values()):
        return None  # all its ranks are there: its data is on the way
    return "; ".join([*_waiting(places), *_missing(absent)])


def _waits(before: Where, now: Where) -> bool:
    """Whether a rank sits in the same operation as before, and its process, which moves the data, did nothing."""
    same = (before.waiting_in, before.number, before.line) == (now.waiting_in, now.number, now.line)
    return now.waiting_in not in (None, *_HAVE_A_LIMIT) and same and now.cpu - before.cpu < _IDLE


def _is_complete(place: Place, places: Mapping[int, Place]) -> bool:
    """Whether all ranks of a collective's group are in it, and mean the same as far as that is known."""
    if place.peer is not None or place.name in _POINT_TO_POINT:
        return False
    there = [places[rank] for rank in place.group if rank in places and places[rank].operation == place.operation]
    return len(there) == len(place.group) and len({each.must for each in there} - {None}) < 2


def _waiting(places: Mapping[int, Place]) -> list[str]:
    together: dict[Place, list[int]] = {}
    for rank, place in places.items():
        together.setdefault(place, []).append(rank)
    return [ranks_do(ranks, f"waits in {place}") for place, ranks in together.items()]


def _missing(absent: Mapping[int, str]) -> list[str]:
    reasons: dict[str, list[int]] = {}
    for rank, reason in sorted(absent.items()):
        reasons.setdefault(reason, []).append(rank)
    return [ranks_do(ranks, reason) for reason, ranks in reasons.items()]
