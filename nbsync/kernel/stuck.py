"""Whether ranks can go on, judged from where they are: pure, from two looks at the world to a diagnosis.

A rank that computes for long is no fault; so nothing is said of a world in which one rank still moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nbsync.errors import describe_ranks
from nbsync.protocol.messages import Where

_HAS_A_LIMIT = "wait_for_everyone"  # with a timeout (else it shows as a barrier): it ends by itself
_POINT_TO_POINT = ("send", "recv", "irecv", "isend", "batch_isend_irecv")


@dataclass(frozen=True)
class Place:
    """What a waiting rank waits in."""

    name: str
    number: int | None
    line: str

    def __str__(self) -> str:
        number = f" #{self.number}" if self.number is not None else ""
        return f"{self.name}{number}" + (f" at {self.line}" if self.line else "")


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
    places = {rank: Place(w.waiting_in or "", w.number, w.line) for rank, w in sorted(now.items())}
    kinds = {(place.name, place.number) for place in places.values()}
    missed = {rank for w in now.values() for rank in w.group or range(size)} & set(absent)
    if len(kinds) == 1 and not missed and next(iter(kinds))[0] not in _POINT_TO_POINT:
        return None  # all are in the same collective: its data is on the way
    return "; ".join([*_waiting(places), *_missing(absent)])


def _waits(before: Where, now: Where) -> bool:
    """Whether a rank sits in the same operation as before, and used no processor time in between."""
    same = (before.waiting_in, before.number, before.line) == (now.waiting_in, now.number, now.line)
    return now.waiting_in not in (None, _HAS_A_LIMIT) and same and now.cpu == before.cpu


def _waiting(places: Mapping[int, Place]) -> list[str]:
    together: dict[Place, list[int]] = {}
    for rank, place in places.items():
        together.setdefault(place, []).append(rank)
    return [f"{describe_ranks(ranks)} wait{'s' * (len(ranks) == 1)} in {place}" for place, ranks in together.items()]


def _missing(absent: Mapping[int, str]) -> list[str]:
    reasons: dict[str, list[int]] = {}
    for rank, reason in sorted(absent.items()):
        reasons.setdefault(reason, []).append(rank)
    return [f"{describe_ranks(ranks)} {reason}" for reason, ranks in reasons.items()]
