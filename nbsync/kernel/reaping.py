"""Ends children of this process, in which the user's code may wait for children too."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

UNKNOWN = -1  # in place of a status that somebody else in the notebook took, who waited for all children


def kill_and_reap(pid: int) -> int:
    """End the child `pid`, if it has not ended, and wait until it has.

    Returns:
        The status as `waitpid` gives it, or `UNKNOWN`.
    """
    if not _is_child(pid):
        return UNKNOWN
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return UNKNOWN


def kill_and_reap_group(leader: int) -> None:
    """End the child `leader` and its whole process group, and wait until all of them have ended that are children.

    For a process that adopts orphans these are all of them: when a process ends, its children are adopted first.
    """
    if not _is_child(leader):
        return
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-leader, 0)


def _is_child(pid: int) -> bool:
    """Whether it is a child still: the number of one that was reaped may be a stranger's by now."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
