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
        if len(call) > 3 and (task / "stat").read_text().rpartition(")")[2].split()[0] == "S":
            return int(call[1], 16)
    return None


class Demand(NamedTuple):
    """Seconds for which threads had a processor, or waited for one: all of them, and gloo's event loops among them."""

    all: float
    loops: float


def processor_demand(besides: int) -> Demand:
    """Of this process until now, but for the thread of the number `besides`."""
    demand = loops = 0
    for task, ran, waited in _accounts(besides):
        demand, loops = demand + ran + waited, loops + (ran + waited) * is_named(task, LOOP)
    return Demand(demand * _NANO, loops * _NANO)


def time_queued(besides: int) -> float:
    """Seconds for which threads of this process have waited for a processor, but for that of the number `besides`."""
    return sum(waited for _, _, waited in _accounts(besides)) * _NANO


def _accounts(besides: int) -> Iterator[tuple[Path, int, int]]:
    """The threads, with the nanoseconds for which each had a processor, and waited for one."""
    for task in tasks():
        with suppress(OSError):  # the thread has ended, or this system keeps no such account
            if task.name != str(besides):
                ran, waited, *_ = map(int, (task / "schedstat").read_text().split())
                yield task, ran, waited
