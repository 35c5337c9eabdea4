"""Ends children of this process, in which the user's code may wait for children too."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


def kill_and_reap(pid: int) -> int:
    """End the child `pid`, if it has not ended, and wait until it has.

    Returns:
        The status as `waitpid` gives it; 0 when somebody else in the notebook took it, who waited for all children.
    """
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return 0
