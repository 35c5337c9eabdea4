"""When the state of the world is shown while a run goes on: soon enough to be of use, never at a high price."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from nbsync.kernel.output.sink import Controls, Sink
from nbsync.kernel.state import Snapshot

_log = logging.getLogger(__name__)

FIRST = 0.5  # seconds: a run that is over by then is not shown, unless it has bars
FIRST_BEFORE_TEXT = 0.2  # seconds after which the view comes before the first line of output, not in the midst of it
EVERY = 0.1
SHARE = 20  # drawing takes at most one part in so many of the time


class LiveView:
    """Shows one run.

    Args:
        sink: what shows it.
        look: the state of the world at a time.
        controls: act on the run.
        now: the start of the run; times are given in.
        clock: measures what drawing costs.
    """

    def __init__(
        self,
        sink: Sink,
        look: Callable[[float], Snapshot],
        controls: Controls,
        now: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sink, self._look, self._controls, self._clock = sink, look, controls, clock
        self._began = now
        self._is_shown = self._is_broken = False
        self._next = now + EVERY

    @property
    def next_tick(self) -> float:
        """When `tick` has something to do."""
        return self._next

    def before_text(self, now: float) -> None:
        """Text is about to be shown."""
        if not self._is_shown and now - self._began >= FIRST_BEFORE_TEXT:
            self._show(now)

    def tick(self, now: float) -> None:
        """Show the state, if it is time for it."""
        if now < self._next:
            return
        self._next = now + EVERY
        if self._is_shown or now - self._began >= FIRST or any(s.bars for s in self._look(now).ranks):
            self._show(now)

    def close(self, now: float) -> None:
        """The run is over: show the end of what was shown, and what there is to be kept of it."""
        snapshot = self._look(now)
        if self._is_shown or any(state.bars for state in snapshot.ranks if state.rank in snapshot.in_run):
            self._draw(snapshot, final=True)

    def _show(self, now: float) -> None:
        begin = self._clock()
        self._is_shown = True
        self._draw(self._look(now), final=False)
        self._next = max(self._next, now + max(EVERY, SHARE * (self._clock() - begin)))

    def _draw(self, snapshot: Snapshot, final: bool) -> None:
        """A defect of the view costs the view, not the run."""
        if self._is_broken:
            return
        try:
            self._sink.view(snapshot, final, self._controls)
        except Exception:
            self._is_broken = True
            _log.exception("the live view is turned off for this run: it could not be drawn")


class NoView:
    """In the place of a view that is turned off."""

    next_tick = float("inf")

    def before_text(self, now: float) -> None: ...

    def tick(self, now: float) -> None: ...

    def close(self, now: float) -> None: ...
