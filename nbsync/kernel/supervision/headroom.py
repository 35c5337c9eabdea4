"""Warns while there is still time when memory runs out: the ranks' and everybody else's, up to the tightest limit.

Limits are those of the control groups of this process, of either version, and of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nbsync.kernel.supervision.evidence import resident_bytes

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
        named = [f"rank {rank} holds {size / _GIGABYTE:.1f} GB" for size, rank in held[:MOST_NAMED]]
        return ", ".join(named)


def _groups(root: Path) -> Iterator[Fill]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            yield from _group(root / "sys/fs/cgroup", name, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _group(root / "sys/fs/cgroup/memory", name, *names)


def _group(mount: Path, name: str, limit_file: str, used_file: str, cache_key: str) -> Iterator[Fill]:
    """A group and those that it is in. A container may see its own group as the mount itself."""
    for part in (PurePosixPath(name), *PurePosixPath(name).parents):
        folder = mount / str(part).lstrip("/")
        limit, used = _number(folder / limit_file), _number(folder / used_file)
        if limit and used is not None and limit < 1 << 60:  # "max" and version 1's largest number are no limits
            yield Fill(max(0, used - _fields(folder / "memory.stat").get(cache_key, 0)), limit, "this control group")


def _machine(root: Path) -> Iterator[Fill]:
    fields = _fields(root / "proc/meminfo")
    total, available = fields.get("MemTotal:"), fields.get("MemAvailable:")
    if total and available is not None:
        yield Fill(1024 * (total - available), 1024 * total, "the memory of this machine")


def _fields(path: Path) -> dict[str, int]:
    rows = [line.split() for line in _text(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:  # not this version of control groups, or not this system
        return ""
