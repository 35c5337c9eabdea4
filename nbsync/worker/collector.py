"""The helper thread collects no garbage: it would run the `__del__` of the user's objects, for as long as that takes.

Meanwhile nobody would interrupt or free the main thread, of which the `__del__` may even wait for something.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable

_NEVER = 2**31 - 1  # new objects after which Python collects


class Collector:
    """Python's, which may be paused.

    Whether it is on is left to the user's code, which turns it on and off at any moment, also in C. What pauses it is
    the number of new objects after which it runs: of that, the user's code sees and chooses its own.
    """

    def __init__(self) -> None:
        self._get, self._set = gc.get_threshold, gc.set_threshold
        self._wanted = gc.get_threshold()[0]

    def install(self) -> None:
        """From now on it can be paused."""
        gc.get_threshold = functools.wraps(gc.get_threshold)(lambda: (self._wanted, *self._get()[1:]))
        gc.set_threshold = functools.wraps(gc.set_threshold)(self._choosing(gc.set_threshold))
        os.register_at_fork(after_in_child=self.resume)

    def _choosing(self, original: Callable[..., None]) -> Callable[..., None]:
        def set_threshold(first: int, *others: int) -> None:
            original(first, *others)
            self._wanted = first

        return set_threshold

    def pause(self) -> None:
        """Until `resume`, nothing is collected but by the user's code. Nothing new is made for it: that could be."""
        self._set(_NEVER)

    def resume(self) -> None:
        """It is again as the user's code wants it."""
        self._set(self._wanted)
