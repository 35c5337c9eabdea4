"""A rank displays only as fast as the notebook shows it: what is on its way there is held in the kernel's memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

MOST_UNSHOWN = 100  # displays of one rank that are on their way: at 0.1 s each, as many as a server takes in a second
MOST_BYTES = 8 << 20  # of them, before the last one


class Pace:
    """Lets through what is displayed, and holds it back while too much was not shown yet.

    Args:
        is_helper: whether this is the thread that hears of it: it must not wait for itself. The garbage collector may
            run the user's code there.
    """

    def __init__(self, is_helper: Callable[[], bool]) -> None:
        self._is_helper = is_helper
        self._sizes: deque[int] = deque()
        self._changed = threading.Condition()
        self._pid = os.getpid()

    def keep(self, data: Mapping[str, Any]) -> None:
        """Return when this may be sent. An interrupt ends the wait."""
        if os.getpid() != self._pid:  # a child of this worker, which sends nothing
            return
        size = sum(len(part if isinstance(part, str | bytes) else repr(part)) for part in data.values())
        with self._changed:
            while self._is_full and not self._is_helper():
                self._changed.wait()
            self._sizes.append(size)

    @property
    def _is_full(self) -> bool:
        return len(self._sizes) >= MOST_UNSHOWN or sum(self._sizes) >= MOST_BYTES

    def shown(self, count: int) -> None:
        """So many more were shown, or will never be."""
        with self._changed:
            for _ in range(min(count, len(self._sizes))):
                self._sizes.popleft()
            self._changed.notify_all()

    def begin(self) -> None:
        """A new request: nothing of an earlier one is on its way."""
        self.shown(len(self._sizes))
