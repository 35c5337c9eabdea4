"""A barrier that can say who is missing, and can be left again.

Arrivals are noted in the process group's store before anyone enters the collective barrier. A rank that gives
up takes its note back, so the group stays as it was and the next barrier works.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace

import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed import distributed_c10d as c10d

from nbsync.errors import BarrierTimeout, describe_ranks

_KEY = "nbsync/barrier"
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.02


@dataclass(frozen=True)
class _Tally:
    """Who has arrived at the current round. When the last rank comes, the next round begins, empty."""

    round: int = 0
    arrived: frozenset[int] = frozenset()

    def encode(self) -> str:
        return f"{self.round}:{','.join(map(str, sorted(self.arrived)))}"

    @classmethod
    def decode(cls, data: bytes) -> _Tally:
        number, _, ranks = data.decode().partition(":")
        return cls(int(number), frozenset(int(rank) for rank in ranks.split(",") if rank))


class _Arrival:
    """One rank's presence at the barrier.

    The round lives in the store, not in the processes: a rank that missed a barrier in a failed cell cannot
    be out of step with the others. Every change is one compare-and-set, so giving up and the last arrival
    cannot both win.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._round: int | None = None

    def enter(self) -> None:
        """Note that this rank is here."""
        tally = self._swap(None, _Tally())
        while True:
            self._round = tally.round  # before the note is made: an interrupt may come in between
            arrived = tally.arrived | {self._rank}
            full = len(arrived) == self._size
            wanted = _Tally(tally.round + 1) if full else replace(tally, arrived=arrived)
            found = self._swap(tally, wanted)
            if found == wanted:
                return
            tally = found

    def is_complete(self) -> bool:
        return _Tally.decode(self._store.get(_KEY)).round != self._round

    def withdraw(self) -> list[int]:
        """Take this rank's note back; returns the ranks that are missing, none if everyone came after all."""
        if self._round is None:
            return []
        tally = _Tally.decode(self._store.get(_KEY))
        while tally.round == self._round:
            wanted = replace(tally, arrived=tally.arrived - {self._rank})
            found = self._swap(tally, wanted)
            if found == wanted:
                return sorted(set(range(self._size)) - tally.arrived - {self._rank})
            tally = found
        return []

    def _swap(self, expected: _Tally | None, wanted: _Tally) -> _Tally:
        """Put `wanted` in the place of `expected`, or of nothing; returns what the store then holds."""
        before = "" if expected is None else expected.encode()
        return _Tally.decode(self._store.compare_set(_KEY, before, wanted.encode()))


def wait_at_barrier(name: str, timeout: float | None, device_ids: list[int] | None) -> None:
    """Return when all ranks of the default process group are here.

    Args:
        name: how the error calls this barrier.
        timeout: seconds to wait for the others; None waits as long as the process group does.
        device_ids: passed on to `dist.barrier`.

    Raises:
        BarrierTimeout: some ranks did not come in time. The process group is unharmed.
    """
    arrival = _Arrival(c10d._get_default_store(), dist.get_rank(), dist.get_world_size())
    try:
        arrival.enter()
        if timeout is not None:
            _wait_for_arrivals(arrival, name, timeout)
        dist.barrier(device_ids=device_ids)
    except BaseException:
        with suppress(dist.DistError):  # without a store there is nobody left who could see the note
            arrival.withdraw()
        raise


def _wait_for_arrivals(arrival: _Arrival, name: str, timeout: float) -> None:
    # Asked in turns: `store.wait` cannot be interrupted, and it prints a warning when its time is up.
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while not arrival.is_complete():
        left = deadline - time.monotonic()
        if left <= 0:
            missing = arrival.withdraw()
            if not missing:
                return
            raise BarrierTimeout(f"{describe_ranks(missing)} did not arrive at {name!r} within {timeout:g} s")
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)
