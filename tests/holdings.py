"""`Holdings`: what a kernel holds, to be the same before and after something that must leave nothing behind."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from notebooks import alive, family, listeners, poll

CLEAN_LIMIT = 3.0  # seconds: only to tell what is left from a slow machine


@dataclass(frozen=True)
class Holdings:
    """What the kernel holds."""

    processes: int
    descriptors: Counter[str]
    listeners: int
    threads: int
    shared_memory: frozenset[str]

    @classmethod
    def of(cls, pid: int) -> Holdings:
        """Of a kernel and its descendants; descriptors, listeners and threads are the kernel's own.

        Descriptors are counted without TCP sockets: the front end's come and go, the store's are row 42's business.
        """
        return cls(
            len(alive(family(pid))),
            _descriptors(pid),
            len(listeners([pid])),
            len(os.listdir(f"/proc/{pid}/task")),
            frozenset(name for name in os.listdir("/dev/shm") if "nbsync" in name or "torch" in name),
        )

    def is_no_more_than(self, before: Holdings) -> bool:
        """Whether nothing has come to what was held before."""
        return (
            self.processes <= before.processes
            and self.descriptors <= before.descriptors
            and self.listeners <= before.listeners
            and self.threads <= before.threads
            and self.shared_memory <= before.shared_memory
        )


def assert_no_more(pid: int, before: Holdings) -> None:
    """Fail unless the kernel soon holds nothing that it did not hold before."""
    poll(lambda: Holdings.of(pid).is_no_more_than(before), CLEAN_LIMIT, interval=0.1)
    now = Holdings.of(pid)
    assert now.is_no_more_than(before), f"before: {before}, now: {now}"


def _descriptors(pid: int) -> Counter[str]:
    """What the process has open besides TCP sockets: how often each kind of thing."""
    lines = Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
    unix = {f"socket:[{line.split()[6]}]" for line in lines}
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if "profile_default" in target:  # IPython's history is written whenever it likes
                continue
            if target in unix or not target.startswith("socket:"):
                found[re.sub(r"nbsync-\w+|\d+", "N", target)] += 1
    return found
