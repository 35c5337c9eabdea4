"""What the system tells about a worker's process: memory, state, and whether it was ended for want of memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbsync.protocol.blackbox import Statement
from nbsync.protocol.cgroups import memory_groups

STOPPED = "stopped by a signal"
ENDED = "ended"
DISK_SLEEP = "in uninterruptible sleep, as for a disk or file server that does not answer"
_STATES = {
    "T": STOPPED,
    "t": "stopped by a debugger",
    "D": DISK_SLEEP,
    "Z": ENDED,
}


@dataclass(frozen=True)
class End:
    """How a rank's process ended.

    Attributes:
        status: what `waitpid` gave.
        time: when that was noticed, by the monotonic clock.
        line: where it was then.
        last_words: the end of its stderr.
    """

    status: int
    time: float
    line: str
    last_words: tuple[str, ...]


def last_line(statement: Statement | None, seen: str, crash: Iterable[str]) -> str:
    """Where a rank was when it ended, as exactly as it is known; "" when it is not.

    Args:
        statement: the one of the cell that it ran.
        seen: the line at which it was seen last, up to a second before.
        crash: the stack that Python wrote when it crashed, innermost first.
    """
    if statement is not None and not statement.line:
        return f"{'after' if statement.name.startswith('had ') else 'while'} it {statement}"
    if statement is not None:
        here = re.compile(rf'\s*File "{re.escape(statement.file)}", line (\d+) ')
        match = next((found for line in crash if (found := here.match(line))), None)
        if match is not None:
            return f"at {statement.at(int(match[1]))}"
    if statement is None or not seen:
        return f"seen last at {seen}" if seen else f"in the statement at {statement}" if statement else ""
    name, _, number = seen.rpartition(", line ")
    if name == statement.name:  # what was seen may be of an earlier statement
        return f"seen last at {seen}" if int(number) > statement.line else f"in the statement at {statement}"
    return f"in the statement at {statement}, seen last at {seen}"


def last_words(lines: Sequence[str]) -> list[str]:
    """The last of these lines of a rank's stderr, without the stack that Python writes when it crashes."""
    crash = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    return list(lines if crash is None else lines[: crash + 1])[-4:]


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
    return next((group.oom_kills for group in memory_groups() if group.oom_kills is not None), None)
