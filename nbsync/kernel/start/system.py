"""Whether nbsync's workers can run on this system at all."""

from __future__ import annotations

import errno
import sys

from nbsync.errors import StartError
from nbsync.kernel.pidfd import open_pidfd

_NO_PROCESS = -1
_NAMES = {"darwin": "macOS", "win32": "Windows"}


def check_system() -> None:
    """Raises StartError: workers cannot run on this system."""
    if reason := why_no_workers():
        raise StartError(reason)


def why_no_workers() -> str:
    """Why workers cannot run on this system, and what to do; "" when they can."""
    if sys.platform != "linux":
        name = _NAMES.get(sys.platform, sys.platform)
        return (
            f"nbsync's workers need Linux, and this kernel runs on {name}: run the kernel on Linux, e.g. on a server, "
            "in a container or in WSL2. `nbsync.World` works here too"
        )
    try:
        open_pidfd(_NO_PROCESS)  # refused in any case, so there is no descriptor that an interrupt could leave open
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):  # an old kernel, or a container that forbids it
            return (
                "nbsync's workers need Linux 5.3 or newer, and a container that lets them use pidfd_open: here it "
                f"fails ({error.strerror}). Run the kernel on a newer Linux, or allow the call"
            )
    return ""
