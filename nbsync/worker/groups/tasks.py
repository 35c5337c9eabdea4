"""The threads of this process as the system sees them: gloo's are known by their names, and by what they sleep in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

RUNNER, LOOP = "pt_gloo", "gloo_tcp_loop"  # gloo's threads, as they are named
_NANO = 1e-9


def tasks(name: str = "") -> Iterator[Path]:
    """The folders in /proc of the threads whose names begin so."""
    return (task for task in Path("/proc/self/task").iterdir() if not name or is_named(task, name))


def is_named(task: Path, name: str) -> bool:
    """Whether the thread's name begins so."""
    try:
        return (task / "comm").read_text().startswith(name)
    except OSError:  # the thread has ended
        return False


def gloo_threads() -> frozenset[int]:
    """The threads, by number, in which gloo's collectives run."""
    return frozenset(int(task.name) for task in tasks(RUNNER))


def sleeps_in(task: Path) -> int | None:
    """The first argument of the system call that a thread sleeps in."""
    with suppress(OSError):  # the thread has ended
        call = (task / "syscall").read_text().split()
        if len(call) > 3 and _state(task) == "S":
            return int(call[1], 16)
    return None


class Demand(NamedTuple):
    """What threads have asked of the processors.

    Attributes:
        ran: seconds for which they had one.
        waited: seconds for which they waited for one.
        is_made: one has one or waits for it, or for a disk, now. How long counts when it has got one, maybe long after.
            Gloo's event loops are left out: they look up every 10 ms.
    """

    ran: float
    waited: float
    is_made: bool


def processor_demand(besides: int, *, with_loops: bool) -> Demand:
    """Of this process until now, but for the thread of the number `besides`.

    Args:
        with_loops: gloo's event loops too.
    """
    ran, waited, is_made = 0, 0, False
    for task in tasks():
        with suppress(OSError):  # the thread has ended, or this system keeps no such account
            is_loop = is_named(task, LOOP)
            if task.name == str(besides) or (is_loop and not with_loops):
                continue
            is_made = is_made or (not is_loop and _state(task) in "RD")
            of_task = (task / "schedstat").read_text().split()
            ran, waited = ran + int(of_task[0]), waited + int(of_task[1])
    return Demand(ran * _NANO, waited * _NANO, is_made)


def _state(task: Path) -> str:
    """One letter: R of one that has or wants a processor, D of one that waits for a disk, S of one that sleeps."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]
