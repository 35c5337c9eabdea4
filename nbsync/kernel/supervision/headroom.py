"""Warns while there is still time when memory runs out: the ranks' and everybody else's, up to the tightest limit.

Limits are those of the control groups of this process, of either version, and of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nbsync.kernel.supervision.evidence import resident_bytes
from nbsync.protocol.cgroups import memory_groups, read_fields
from nbsync.protocol.words import format_size

WARN_AT = 0.9  # of the limit
CALM_AT = 0.8  # below this, the next time is told again
MOST_NAMED = 4  # ranks
_GIGABYTE = 1e9


@dataclass(frozen=True)
class Fill:
    """How full something is, in bytes, without what the system can drop at once."""

    used: int
    limit: int
    what: str


def read_fill(root: Path = Path("/")) -> Fill | None:
    """The fullest of the limits that hold for this process; None where the system does not tell.

    Args:
        root: of the file system.
    """
    fills = [*_groups(root), *_machine(root)]
    return max(fills, key=lambda fill: fill.used / fill.limit, default=None)


class Headroom:
    """Looks at the memory from time to time while a run goes on.

    Args:
        pid_of: a rank's process id, None when the session was closed.
        notify: tells the user something, in one line.
        read: how full the memory is.
    """

    def __init__(
        self,
        pid_of: Callable[[int], int | None],
        notify: Callable[[str], None],
        read: Callable[[], Fill | None] | None = None,
    ) -> None:
        self._pid_of, self._notify, self._read = pid_of, notify, read or read_fill
        self._is_told = False

    def look(self, ranks: Iterable[int]) -> None:
        """Warn if the memory is nearly full; `ranks` are those that may be why."""
        fill = self._read()
        if fill is None:
            return
        share = fill.used / fill.limit
        if share < CALM_AT:
            self._is_told = False
        elif share >= WARN_AT and not self._is_told:
            self._is_told = True
            self._notify(
                f"{fill.what} is {100 * share:.0f} % full, {fill.used / _GIGABYTE:.1f} of "
                f"{fill.limit / _GIGABYTE:.1f} GB: {self._holders(ranks)}. When it is full the system ends a rank, "
                "not the notebook"
            )

    def _holders(self, ranks: Iterable[int]) -> str:
        """The ranks that hold most, the largest first."""
        pids = [(pid, rank) for rank in ranks if (pid := self._pid_of(rank)) is not None]
        held = sorted(((resident_bytes(pid) or 0, rank) for pid, rank in pids), reverse=True)
        named = [f"rank {rank} holds {format_size(size)}" for size, rank in held[:MOST_NAMED]]
        return ", ".join(named)


def _groups(root: Path) -> Iterator[Fill]:
    for group in memory_groups(root):
        if group.limit and group.used is not None:
            yield Fill(max(0, group.used - group.droppable), group.limit, "this control group")


def _machine(root: Path) -> Iterator[Fill]:
    fields = read_fields(root / "proc/meminfo")
    total, available = fields.get("MemTotal:"), fields.get("MemAvailable:")
    if total and available is not None:
        yield Fill(1024 * (total - available), 1024 * total, "the memory of this machine")
