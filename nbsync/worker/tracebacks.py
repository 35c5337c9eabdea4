"""What keeps IPython from rendering a traceback at once, while others wait for the error.

It loads what it renders with at the first one: 30 to 140 ms of processor time, on each rank again. That is done before
the ranks start: once, where they are forked.
"""

from __future__ import annotations

import copy
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.ultratb import AutoFormattedTB

_OURS = tuple(os.path.join(os.path.dirname(__file__), *name) for name in (("groups", ""), ("interrupts.py",)))
_is_done = False


def load_tracebacks() -> None:
    """Render one, and ask `inspect` for a module: it notes where each comes from, and IPython asks for every frame."""
    global _is_done
    if _is_done:
        return
    _is_done = True
    with suppress(Exception):  # a module it loads may be the user's, of the same name: his own traceback tells of that
        inspect.getmodule(sys._getframe())
        try:
            raise ValueError
        except ValueError as error:
            _renderer().structured_traceback(type(error), error, error.__traceback__, tb_offset=0)


def _renderer() -> Any:
    if not InteractiveShell.initialized():
        return AutoFormattedTB(mode="Context")
    return copy.copy(InteractiveShell.instance().InteractiveTB)  # its own remembers the user's last error


def note_modules(trace: TracebackType | None) -> None:
    """A cell's file is no module's: to find that, `inspect` would look through all modules, several times a frame."""
    for frame, _ in traceback.walk_tb(trace):
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and name in sys.modules:
            inspect.modulesbyfile.setdefault(frame.f_code.co_filename, name)


@contextmanager
def without_own(error: BaseException | None, trace: TracebackType | None) -> Iterator[None]:
    """Meanwhile no line of ours is in this traceback of `error`, nor in those of the errors that it came from.

    They stand where torch calls a process group, or C++, and where an interrupt came.
    """
    links = []
    for each in [trace, *(one.__traceback__ for one in _came_from(error))]:
        while each is not None:
            following = each.tb_next
            while following is not None and is_own(following.tb_frame.f_code.co_filename):
                following = following.tb_next
            links.append((each, each.tb_next))
            each.tb_next = following
            each = following
    try:
        yield
    finally:
        for one, following in reversed(links):
            one.tb_next = following


def _came_from(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its causes and contexts, and those of a group; each once."""
    found: dict[int, BaseException] = {}
    left = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in found:
            found[id(one)] = one
            left += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return iter(found.values())


def is_own(filename: str) -> bool:
    """Whether this is a file of ours that stands between the user's line and what it does."""
    return filename.startswith(_OURS)
