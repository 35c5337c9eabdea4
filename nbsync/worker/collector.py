"""The helper thread collects no garbage: it would run the `__del__` of the user's objects, for as long as that takes.

Meanwhile nobody would interrupt or free the main thread, of which the `__del__` may even wait for something.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable


class Collector:
    """Python's, which may be paused.

    The user's code turns it on and off as well, at any moment between two lines here. What does that is replaced, so
    that it finds what it has chosen itself, and gets it after each pause: nothing may stay off that it wants on.
    """

    def __init__(self) -> None:
        self._enable, self._disable, self._is_enabled = gc.enable, gc.disable, gc.isenabled
        self._is_wanted = gc.isenabled()

    def install(self) -> None:
        """From now on it can be paused."""
        gc.enable = self._choosing(True, gc.enable)
        gc.disable = self._choosing(False, gc.disable)
        gc.isenabled = functools.wraps(gc.isenabled)(lambda: self._is_wanted)
        os.register_at_fork(after_in_child=self.resume)

    def _choosing(self, is_wanted: bool, original: Callable[[], None]) -> Callable[[], None]:
        @functools.wraps(original)
        def choose() -> None:
            self._is_wanted = is_wanted  # first: a pause that ends now makes it so
            original()

        return choose

    def pause(self) -> None:
        """Until `resume`, nothing is collected but by the user's code."""
        self._disable()

    def resume(self) -> None:
        """It is again as the user's code wants it."""
        while self._is_enabled() != self._is_wanted:  # the main thread may choose otherwise at any moment
            (self._enable if self._is_wanted else self._disable)()
