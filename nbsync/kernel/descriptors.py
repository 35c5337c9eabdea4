"""File descriptors that belong to the kernel alone: a worker must not hold a copy of them.

A copy of a sibling's channel, or of the guard's pipe, would keep its other end from seeing that the kernel is gone.
"""

from __future__ import annotations

import os

_kernel_only: set[int] = set()


def keep_in_kernel(*fds: int) -> None:
    """These descriptors are not for workers."""
    _kernel_only.update(fds)


def close_kernel_only(*fds: int) -> None:
    """Close descriptors that were kept in the kernel."""
    for fd in fds:
        _kernel_only.discard(fd)
        os.close(fd)


def _release_in_child() -> None:
    """In a child of the kernel, a worker or any other: let go of them all.

    They are pointed at /dev/null, not closed: inherited objects that still know a number may close it once more.
    """
    if not _kernel_only:
        return
    null = os.open(os.devnull, os.O_RDWR)
    for fd in _kernel_only:
        os.dup2(null, fd)
    os.close(null)
    _kernel_only.clear()


os.register_at_fork(after_in_child=_release_in_child)
