"""What this rank has to tell of its progress: gathered by the user's threads, sent by the helper thread."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from nbsync.protocol.channel import Channel
from nbsync.protocol.reports import Bar, BarrierEvent, Progress

MOST_BARS = 24  # in one message, beside the first of all: more than anybody can look at
MOST_EVENTS = 1000  # entered and left barriers in one message; of more than that the oldest are forgotten

#: Looks at a bar that is still open; None where it cannot be looked at now.
Picture = Callable[[], Bar | None]

_log = logging.getLogger(__name__)


class Feed:
    """Gathers what has changed until it is sent.

    The user's threads only put things into a dict and a deque, which is atomic and holds each bar once however often
    it moves. Looking at a bar is left to the helper thread, at most once per message.

    Args:
        interval: seconds between two messages at least.

    Attributes:
        wake: makes the helper thread call `send`.
        shows_bars: whether bars are to be told; while not, they are the user's text.
    """

    def __init__(self, interval: float) -> None:
        self.wake: Callable[[], None] = lambda: None
        self.shows_bars = False
        self._interval = interval
        self._bars: dict[int, Picture | Bar | None] = {}
        self._barriers: deque[BarrierEvent] = deque(maxlen=MOST_EVENTS)
        self._is_waiting = False  # the helper thread knows that there is something to send
        self._sent_at = float("-inf")
        self._told: set[int] = set()  # the open bars that the kernel knows of
        self._count = 0
        self._first: int | None = None  # bar of this request
        self._lock = threading.Lock()  # of those who send; never taken by the user's threads
        self._pid = os.getpid()
        self._problem: Exception | None = None  # the first bar that could not be looked at; not logged yet
        self._has_failed = False

    @property
    def is_mine(self) -> bool:
        """Whether this is the worker itself, not a child of it: that must not speak in its place."""
        return os.getpid() == self._pid

    def begin(self, shows_bars: bool) -> None:
        """The main thread begins to work on a request."""
        self.shows_bars = shows_bars
        self._count = 0
        self._first = None

    def add_bar(self, number: int) -> None:
        """There is one more bar."""
        self._count += 1
        if self._first is None:
            self._first = number

    def bar(self, number: int, look: Picture | Bar) -> None:
        """Bar `number` has moved."""
        if self._problem is not None:  # said here: a handler of the user's must not hold up the helper thread
            problem, self._problem = self._problem, None
            _log.error("a progress bar is not shown: it could not be looked at", exc_info=problem)
        self._bars[number] = look
        self._call()

    def remove_bar(self, number: int) -> None:
        """Bar `number` is not to be shown any more."""
        if self._first is not None and number >= self._first:  # else it is of an earlier request, and not counted
            self._count -= 1
        self._bars[number] = None
        self._call()

    def barrier(self, event: BarrierEvent) -> None:
        """This rank has entered or left a barrier."""
        self._barriers.append(event)
        self._call()

    def due(self, now: float) -> float | None:
        """In how many seconds there will be something to send; None when there is nothing."""
        if not self._bars and not self._barriers:
            return None
        return max(0.0, self._sent_at + self._interval - now)

    def send(self, channel: Channel, now: float, *, at_once: bool = False) -> None:
        """Send what there is, if it is time for it. `at_once` does not wait for the interval to pass."""
        with self._lock:
            wait = self.due(now)
            if wait is not None and (wait <= 0 or at_once):
                self._sent_at = now
                self._is_waiting = False  # from here on a change wakes the helper thread again
                channel.send(self._take())

    def _take(self) -> Progress:
        moved = {number: self._bars.pop(number) for number in list(self._bars)}
        events = tuple(self._barriers.popleft() for _ in range(len(self._barriers)))
        numbers = sorted(number for number, look in moved.items() if look is not None)
        chosen = [n for n in numbers[:-MOST_BARS] if n == self._first] + numbers[-MOST_BARS:]
        looks = (self._look(look) for look in map(moved.__getitem__, chosen) if look is not None)
        bars = tuple(bar for bar in looks if bar is not None)
        gone = tuple(number for number, look in moved.items() if look is None and number in self._told)
        self._told = (self._told | {bar.number for bar in bars if not bar.closed}).difference(
            gone, (bar.number for bar in bars if bar.closed)
        )
        return Progress(bars, gone, self._count, events)

    def _look(self, look: Picture | Bar) -> Bar | None:
        """The bar. What fails costs this bar, not the helper thread and with it the rank."""
        if isinstance(look, Bar):
            return look
        try:
            return look()
        except Exception as error:
            if not self._has_failed:
                self._has_failed, self._problem = True, error
            return None

    def _call(self) -> None:
        if not self._is_waiting and self.is_mine:
            self._is_waiting = True
            self.wake()


class FeedReporter:
    """Tells the kernel which barrier this rank enters and leaves, and where its output meets that of the others."""

    def __init__(self, feed: Feed, meet: Callable[[str], None]) -> None:
        self._feed, self.all_have_met = feed, meet

    def barrier_entered(self, name: str, call_site: str) -> None:
        self._feed.barrier(BarrierEvent(name, call_site, entered=True, time=time.monotonic()))

    def barrier_left(self, name: str, call_site: str, passed: bool) -> None:
        self._feed.barrier(BarrierEvent(name, call_site, entered=False, time=time.monotonic(), passed=passed))
