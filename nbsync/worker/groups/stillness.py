"""Whether this process is still: while it computes or data flows, a collective may yet end as it would, uncut."""

from __future__ import annotations

import threading
from typing import NamedTuple

from nbsync.worker.groups.group import GroupKeeper
from nbsync.worker.groups.sockets import Flow
from nbsync.worker.groups.tasks import Demand, processor_demand

_BUSY = 0.3  # processors that a process which only waits does not use
_WINDOW = 0.02  # seconds that a judgement is about, at least
_LARGE = 1 << 16  # bytes of a message that takes its time; smaller ones, and the end of a connection, are no flow
_PAUSE = 0.15  # seconds for which a flow of data may halt, on a machine with more to do than processors
PATIENCE = 3.0  # seconds after which even a busy process counts as still


class _Look(NamedTuple):
    """What the process had done until a moment."""

    moment: float
    demand: Demand
    flow: Flow


_NOTHING = _Look(0.0, Demand(0.0, 0.0, is_made=False), Flow({}, 0))


class Stillness:
    """Judges by what has happened since it was asked last."""

    def __init__(self, groups: GroupKeeper) -> None:
        self._groups = groups
        self._run: int | None = None
        self._since = 0.0
        self._last = _NOTHING
        self._is_still, self._flows_until = False, 0.0

    def begin(self, run: int, now: float) -> None:
        """From now on `run` is to stop."""
        if run != self._run:
            self._run, self._since = run, now
        self._last = self._look(now)
        self._is_still = False
        self._flows_until = now + _PAUSE if self._last.flow.underway >= _LARGE else now

    def is_so(self, now: float) -> bool:
        """Whether the process does nothing.

        A process that waits for its GPU is busy all the time, and NCCL's abort loses nothing that is not lost already.
        """
        if self._groups.use_nccl() or now > self._since + PATIENCE:
            return True
        if now >= self._last.moment + _WINDOW:
            before, self._last = self._last, self._look(now)
            self._is_still = self._judge(before, self._last)
        return self._is_still

    def _judge(self, before: _Look, now: _Look) -> bool:
        if now.flow.since(before.flow) >= _LARGE:
            self._flows_until = now.moment + _PAUSE
        demand = now.demand.ran + now.demand.waited - before.demand.ran - before.demand.waited
        is_idle = demand < _BUSY * (now.moment - before.moment) and not now.demand.is_made
        return is_idle and now.moment >= self._flows_until

    def _look(self, now: float) -> _Look:
        """Without gloo's event loops: they may be busy for nothing, around a connection that a peer has ended."""
        try:
            demand = processor_demand(threading.get_native_id(), with_loops=False)
            return _Look(now, demand, self._groups.flow())
        except OSError:  # no descriptor is left to look with: it seems to do nothing
            return _NOTHING._replace(moment=now)
