"""The stacks of this process's threads, for the helper thread, which must not hold a frame of theirs.

Whoever holds the frame of a function that returns meanwhile gets its variables too, and so runs the `__del__` of the
user's objects. Threads take turns only between two steps of Python code, never within a function of C. So each look
here is one call of such a function, which takes plain data out of the frames and lets go of them. Nor is any of what
these calls are made of kept in a variable: it may still hold a frame.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, islice, repeat, takewhile
from operator import attrgetter, methodcaller
from types import CodeType
from typing import Any

_PLACE = attrgetter("f_code", "f_lineno")
_VARIABLES = attrgetter("f_locals")


def running_threads() -> list[int]:
    """The threads that run Python code, by their identifiers."""
    return next(map(list, _looks()))


def stack_of(thread: int | None) -> list[tuple[CodeType, int]]:
    """The code and line of a thread's frames, outermost first; nothing if there is no such thread."""
    return [(code, line or 0) for code, line in list(map(_PLACE, _frames(thread)))[::-1]]


def variable_in(thread: int | None, depth: int, name: str) -> Any:
    """What a thread has in a variable, or None; the innermost frame is at depth 0. Whoever asks then holds that."""
    return next(map(methodcaller("get", name), map(_VARIABLES, islice(_frames(thread), depth, None))), None)


def _frames(thread: int | None) -> Iterator[Any]:
    """Innermost first."""
    innermost = islice(map(methodcaller("get", thread), _looks()), 1)
    steps: Iterable[Any] = chain(innermost, repeat("f_back"))
    return takewhile(bool, accumulate(steps, getattr))


def _looks() -> Iterator[dict[int, Any]]:
    """The innermost frame of each thread, as often as asked for."""
    return iter(sys._current_frames, None)
