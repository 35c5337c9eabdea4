"""What the system tells about a worker's process: memory, state, and whether it was ended for want of memory."""

from __future__ import annotations

import os
from pathlib import Path

STOPPED = "stopped by a signal"
DISK_SLEEP = "in uninterruptible sleep, as for a disk or file server that does not answer"
_STATES = {
    "T": STOPPED,
    "t": "stopped by a debugger",
    "D": DISK_SLEEP,
    "Z": "ended",
}


def resident_bytes(pid: int) -> int | None:
    """Memory that the process holds, None when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def unusual_state(pid: int) -> str | None:
    """E.g. "stopped by a signal"; None when the process runs or sleeps as usual, or is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return _STATES.get(stat.rpartition(")")[2].split()[0])


def oom_kills() -> int | None:
    """How many processes of this control group the kernel has ended for want of memory; None if not known."""
    try:
        group = Path("/proc/self/cgroup").read_text("ascii").rpartition("::")[2].strip()
        events = Path(f"/sys/fs/cgroup{group}/memory.events").read_text("ascii")
    except OSError:  # another version of control groups, or none
        return None
    counts = dict(line.split() for line in events.splitlines())
    return int(counts["oom_kill"]) if "oom_kill" in counts else None
