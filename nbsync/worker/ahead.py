"""What a rank's first error would have to wait for, done before the ranks start: once, where they are forked.

IPython loads what it renders tracebacks with at the first of them. That takes 30 to 140 ms of processor time, on each
rank again, in which an error that has happened is not shown.
"""

from __future__ import annotations

import copy
import inspect
import sys
from contextlib import suppress
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.ultratb import AutoFormattedTB

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
