"""A barrier that can say who is missing, and can be left again.

A rank notes that it has come (see notes.py) before it enters the collective barrier. Without a timeout that is all it
does: nobody answers to a note, so nobody waits for it. A rank with a timeout stays outside
of the collective until all have come, and takes its note back when it gives up: so the group stays as it was, and the
next barrier works.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed import distributed_c10d as c10d

from nbsync.errors import BarrierTimeout
from nbsync.protocol.words import describe_ranks
from nbsync.worker.control.notes import GONE, KEY, Notes, StoreNotes
from nbsync.worker.pauses import pauses

_CPU = torch.device("cpu")

_notes: Notes | None = None


@dataclass(frozen=True)
class _Tally:
    """The ranks with a timeout that have come to one barrier.

    Attributes:
        step: which barrier: how many collectives its ranks have gone through before.
        is_sealed: everybody has come: from now on nobody gives up.
    """

    step: int
    arrived: frozenset[int] = frozenset()
    is_sealed: bool = False

    def encode(self) -> str:
        return f"{self.step}:{'sealed' if self.is_sealed else ''}:{','.join(map(str, sorted(self.arrived)))}"

    @classmethod
    def decode(cls, data: bytes) -> _Tally | None:
        if not data:
            return None
        step, sealed, ranks = data.decode().split(":")
        return cls(int(step), frozenset(int(rank) for rank in ranks.split(",") if rank), bool(sealed))


class _Arrival:
    """A rank with a timeout.

    Such ranks share one tally. Every change of it is one compare-and-set, so that giving up and the last arrival
    cannot both win. A tally of another step is one that a failure has left behind; it counts for nothing.

    Attributes:
        everybody: the ranks that have to come.
    """

    def __init__(self, store: Store, notes: Notes, rank: int, size: int, step: int) -> None:
        self._store, self._notes = store, notes
        self._rank, self._step = rank, step
        self.everybody = range(size)

    def enter(self) -> _Tally:
        """Note that this rank is here, if that is not noted; returns the tally."""
        found = self._swap(None, None)
        while True:
            mine = found if found is not None and found.step == self._step else _Tally(self._step)
            if mine.is_sealed or self._rank in mine.arrived:
                return mine
            wanted = _Tally(self._step, mine.arrived | {self._rank})
            found = self._swap(found, wanted)

    def missing(self) -> list[int]:
        """Who has not come yet; none once everybody has. From then on this rank cannot leave."""
        while True:
            tally = self.enter()
            if tally.is_sealed:
                return []
            missing = sorted(set(self.everybody) - tally.arrived - self._noted(tally))
            if missing:
                return missing
            sealed = _Tally(self._step, tally.arrived, is_sealed=True)
            if self._swap(tally, sealed) == sealed:
                return []

    def withdraw(self) -> bool:
        """Take this rank's note back. False when everybody has come after all."""
        found = self._swap(None, None)
        while found is not None and found.step == self._step and not found.is_sealed and self._rank in found.arrived:
            wanted = _Tally(self._step, found.arrived - {self._rank})
            found = self._swap(found, wanted)
        return found is None or found.step != self._step or not found.is_sealed

    def clear(self) -> None:
        """This barrier is over. A rank that is in the next one already notes itself again."""
        self._store.set(KEY, GONE)

    def _noted(self, tally: _Tally) -> set[int]:
        """The ranks without a timeout that have come."""
        return self._notes.here([rank for rank in self.everybody if rank not in tally.arrived], self._step)

    def _swap(self, expected: _Tally | None, wanted: _Tally | None) -> _Tally | None:
        """Put `wanted` in the place of `expected`, None for nothing; returns what the store then holds."""
        before, after = (GONE if tally is None else tally.encode() for tally in (expected, wanted))
        return _Tally.decode(self._store.compare_set(KEY, before, after))


def set_notes(notes: Notes | None) -> None:
    """Leave notes there; None for the process group's store."""
    global _notes
    _notes = notes


def wait_at_barrier(name: str, timeout: float | None, device_ids: list[int] | None) -> None:
    """Return when all ranks of the default process group are here.

    Args:
        name: how the error calls this barrier.
        timeout: seconds to wait for the others; None waits as long as the process group does.
        device_ids: passed on to `dist.barrier`.

    Raises:
        BarrierTimeout: some ranks did not come in time. The process group is unharmed.
    """
    store, rank, step = c10d._get_default_store(), dist.get_rank(), _step()
    notes = StoreNotes(store) if _notes is None else _notes
    if timeout is None:
        _enter_for_good(notes, rank, step, device_ids)
        return
    arrival = _Arrival(store, notes, rank, dist.get_world_size(), step)
    try:
        _wait_for_arrivals(arrival, name, timeout)
        dist.barrier(device_ids=device_ids)
    except BaseException:
        with suppress(dist.DistError):
            arrival.withdraw()
        raise
    arrival.clear()


def _enter_for_good(notes: Notes, rank: int, step: int, device_ids: list[int] | None) -> None:
    """Without a timeout: the note of this step means nothing in later ones, and so is only taken back in a failure."""
    try:
        notes.put(rank, step)
        dist.barrier(device_ids=device_ids)
    except BaseException:
        with suppress(dist.DistError):  # without a store there is nobody left who could see the note
            notes.take_back(rank)
        raise


def _step() -> int:
    """How many collectives the default group has gone through: the same on all ranks that come to one barrier."""
    group: Any = c10d._get_default_group()
    devices = group._device_types
    backend = group._get_backend(_CPU if _CPU in devices else devices[0])
    return int(backend._get_sequence_number_for_group())  # the group itself counts its first life's only


def _wait_for_arrivals(arrival: _Arrival, name: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    never: Sequence[int] = arrival.everybody
    for pause in pauses():
        missing = arrival.missing()
        never = [rank for rank in never if rank in missing]
        left = deadline - time.monotonic()
        if not missing:
            return
        if left <= 0:
            if arrival.withdraw():
                raise BarrierTimeout(_what_was_missing(never, missing, name, timeout))
            return
        time.sleep(min(pause, left))


def _what_was_missing(never: Sequence[int], missing: Sequence[int], name: str, timeout: float) -> str:
    """Whoever has come and left again, since its own time was over, is not to blame as long as others never came."""
    if never:
        return f"{describe_ranks(never)} did not arrive at {name!r} within {timeout:g} s"
    return f"{describe_ranks(missing)} left {name!r} again before all had arrived"
