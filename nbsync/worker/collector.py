"""The helper thread collects no garbage: it would run the `__del__` of the user's objects, for as long as that takes.

Meanwhile nobody would interrupt or free the main thread, of which the `__del__` may even wait for something.
"""

from __future__ import annotations

import functools
import gc
import os

_NEVER = 2**31 - 1  # new objects after which Python collects: nobody else chooses that many


class Collector:
    """Python's, which may be paused.

    Whether it is on is left to the user's code, which turns it on and off at any moment, also in C. What pauses it is
    the number of new objects after which it runs. Another that is found in its place was chosen meanwhile, and stays.
    """

    def __init__(self) -> None:
        self._get = gc.get_threshold
        self._wanted = gc.get_threshold()[0]

    def install(self) -> None:
        """From now on it can be paused."""
        gc.get_threshold = functools.wraps(gc.get_threshold)(lambda: self._get_wanted())
        os.register_at_fork(after_in_child=self.resume)

    def _get_wanted(self) -> tuple[int, int, int]:
        """What the user's code has chosen."""
        first, second, third = self._get()
        return self._wanted if first == _NEVER else first, second, third

    def pause(self) -> None:
        """Until `resume`, nothing is collected but by the user's code."""
        self._wanted = self._get_wanted()[0]
        gc.set_threshold(_NEVER)

    def resume(self) -> None:
        """It is again as the user's code wants it."""
        if self._get()[0] == _NEVER:
            gc.set_threshold(self._wanted)
