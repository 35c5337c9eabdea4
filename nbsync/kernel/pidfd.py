"""A process by a descriptor: it cannot become another process of the same number.

conda's Python is built against a C library that is older than these calls and has no functions for them. So they are
made by their numbers, which are the same on all processors (but Alpha).
"""

from __future__ import annotations

import ctypes
import os

_PIDFD_SEND_SIGNAL, _PIDFD_OPEN = 424, 434


def open_pidfd(pid: int) -> int:
    """A descriptor for the process, which polls as readable when it has ended.

    Raises:
        OSError: the system refused. ProcessLookupError: there is no such process.
    """
    return _call(_PIDFD_OPEN, pid, 0)


def send_signal(pidfd: int, number: int) -> None:
    """Send a signal to the process.

    Raises:
        ProcessLookupError: it has ended.
    """
    _call(_PIDFD_SEND_SIGNAL, pidfd, number, None, 0)


def _call(number: int, *arguments: int | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
