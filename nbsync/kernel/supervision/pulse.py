"""Tells of ranks that the system holds back while a cell runs: stopped by a signal, or waiting for a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nbsync.kernel.supervision.evidence import DISK_SLEEP, ENDED, STOPPED, unusual_state

_TOLD_AT = {DISK_SLEEP: 3}  # looks in a row; any read from a disk is such a sleep for a moment


class Pulse:
    """Remembers what was seen of each rank.

    Args:
        pid_of: the rank's process id, None when the session was closed.
        notify: tells the user something, in one line.
    """

    def __init__(self, pid_of: Callable[[int], int | None], notify: Callable[[str], None]) -> None:
        self._pid_of, self._notify = pid_of, notify
        self._seen: dict[int, tuple[str, int]] = {}  # what, and in how many looks in a row

    def look(self, ranks: Iterable[int]) -> None:
        """See how the processes of `ranks` are; say what is new."""
        for rank in ranks:
            pid = self._pid_of(rank)
            if pid is None:
                continue
            state = unusual_state(pid)
            if state == ENDED:  # the hub is about to tell of it
                continue
            before, count = self._seen.pop(rank, ("", 0))
            if state is not None:
                count = count + 1 if state == before else 1
                self._seen[rank] = state, count
                if count == _TOLD_AT.get(state, 1):
                    resume = f"; `kill -CONT {pid}` lets it go on" if state == STOPPED else ""
                    self._notify(f"rank {rank} is {state}{resume}; an interrupt frees the ranks that wait for it")
            elif count >= _TOLD_AT.get(before, 1):
                self._notify(f"rank {rank} goes on")
