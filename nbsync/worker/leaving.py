"""How a worker ends when it is told to: as a Python program does, for what its own code has opened and registered.

It is a copy of the notebook, or of a server: what those have registered for their end is not for it to run, nor are
their files for it to write.
"""

from __future__ import annotations

import atexit
import gc
import io
import weakref
from contextlib import suppress
from typing import Any

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def forget_inherited_exits() -> None:
    """At the start of a worker: what was registered with `atexit` before is not its own."""
    atexit._clear()
    finalize: Any = weakref.finalize  # of a TemporaryDirectory, for example
    for inherited in list(finalize._registry):
        inherited.atexit = False
    finalize._registered_with_atexit = False


def finish() -> None:
    """Write what is in the buffers of files, and run what was registered with `atexit`.

    Files of before the start are frozen for the garbage collector, and so not among its objects.
    """
    _flush_files()
    atexit._run_exitfuncs()
    _flush_files()


def _flush_files() -> None:
    for thing in gc.get_objects():
        if issubclass(type(thing), _WRITERS):
            with suppress(OSError, ValueError):  # closed, only read from, or its disk is full
                thing.flush()
