"""The helper thread collects no garbage: it would run the `__del__` of the user's objects, for as long as that takes.

Meanwhile nobody would interrupt or free the main thread, of which the `__del__` may even wait for something.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator

_NEVER = 2**31 - 1  # new objects after which Python collects: nobody else chooses that many


class Collector:
    """Python's, which may be paused.

    The user's code turns it on and off as well, at any moment between two lines here, and also in C. That is left
    alone. It is the number of new objects after which Python collects that is set to one which is never reached.
    Another number that is found in its place was chosen meanwhile, and stays.
    """

    def __init__(self) -> None:
        self._get, self._set = gc.get_threshold, gc.set_threshold
        self._wanted = gc.get_threshold()[0]
        self._pausing = self._swaps(_NEVER)  # made before: whatever is new could be what lets Python collect

    def install(self) -> None:
        """From now on it can be paused."""
        gc.get_threshold = functools.wraps(gc.get_threshold)(lambda: self._told)
        os.register_at_fork(after_in_child=self.resume)

    @property
    def _told(self) -> tuple[int, int, int]:
        """What the user's code has chosen."""
        first, second, third = self._get()
        return self._wanted if first == _NEVER else first, second, third

    def pause(self) -> None:
        """Until `resume`, nothing is collected but by the user's code."""
        found = next(self._pausing)[0][0]
        if found != _NEVER:  # else by somebody who has looked in a pause, and now put it back
            self._wanted = found

    def resume(self) -> None:
        """It is again as the user's code wants it."""
        put, expected = self._wanted, _NEVER
        while (found := next(self._swaps(put))[0][0]) != expected:  # the main thread may choose another at any moment
            put, expected = found, put

    def _swaps(self, first: int) -> Iterator[tuple[tuple[int, int, int], None]]:
        """Each sets the number and gives what it was, in one step: both are called by one function of C."""
        return zip(iter(self._get, None), iter(functools.partial(self._set, first), 0), strict=False)
