"""Which side of the protocol this process is on, where it was not forked from a notebook and cannot tell by that."""

from __future__ import annotations

_in_worker = False


def become_worker() -> None:
    """From now on this process, and what it forks, is a rank."""
    global _in_worker
    _in_worker = True


def is_worker() -> bool:
    """Whether this process was started as a rank."""
    return _in_worker
