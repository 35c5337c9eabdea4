"""The control groups that this process is in, innermost first, of either version: what memory they may have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_LIMIT = 1 << 60  # version 1 has no "max", but a number that no machine reaches


@dataclass(frozen=True)
class MemoryGroup:
    """What one group tells of its memory, in bytes; None where it does not.

    Attributes:
        limit: what it may use; None for no limit of its own.
        used: what it uses, with `droppable`, which the system can drop at once.
        oom_kills: how many of its processes were ended for want of memory.
    """

    limit: int | None
    used: int | None
    droppable: int
    oom_kills: int | None


def memory_groups(root: Path = Path("/")) -> Iterator[MemoryGroup]:
    """The groups of this process that may limit memory, and those that they are in.

    Args:
        root: of the file system.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            for folder in _folders(root / "sys/fs/cgroup", name):
                yield _group(folder, "memory.max", "memory.current", "inactive_file", "memory.events")
        elif "memory" in controllers.split(","):
            for folder in _folders(root / "sys/fs/cgroup/memory", name):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control")
                yield _group(folder, *names)


def _folders(mount: Path, name: str) -> Iterator[Path]:
    """Of a group and its parents. A container may see its own group as the mount itself."""
    for part in (PurePosixPath(name), *PurePosixPath(name).parents):
        yield mount / str(part).lstrip("/")


def _group(folder: Path, limit: str, used: str, droppable: str, events: str) -> MemoryGroup:
    most = _number(folder / limit)
    return MemoryGroup(
        most if most and most < _NO_LIMIT else None,
        _number(folder / used),
        read_fields(folder / "memory.stat").get(droppable, 0),
        read_fields(folder / events).get("oom_kill"),
    )


def read_fields(path: Path) -> dict[str, int]:
    """A file of lines with a name and a number, e.g. /proc/meminfo; empty when there is none."""
    rows = [line.split() for line in read_text(path).splitlines()]
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None


def read_text(path: Path) -> str:
    """The file's text; "" when there is none."""
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:  # not this version of control groups, or not this system
        return ""
