"""How full memory is, from files as the system writes them, and when that is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbsync.kernel.supervision.headroom import Fill, Headroom, read_fill

GB = 1_000_000_000


def _files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {
    "proc/meminfo": "MemTotal:       1000000 kB\nMemFree: 1 kB\nMemAvailable:    600000 kB\nHugePages_Total: 0\n"
}
V2 = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/memory.max": "800\n",
    "sys/fs/cgroup/outer/memory.current": "700\n",
    "sys/fs/cgroup/outer/memory.stat": "anon 600\ninactive_file 100\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": "500\n",
}
V1 = {
    "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1000\n",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "990\n",
    "sys/fs/cgroup/memory/job/memory.stat": "cache 5\ntotal_inactive_file 40\n",
}
# A container that sees the host's name of its group, and its own group as the mount.
INSIDE = {
    "proc/self/cgroup": "0::/docker/abc\n",
    "sys/fs/cgroup/memory.max": "800\n",
    "sys/fs/cgroup/memory.current": "720\n",
}


@pytest.mark.parametrize(
    ("files", "fill"),
    [
        (MACHINE, Fill(400_000 * 1024, 1_000_000 * 1024, "the memory of this machine")),
        (MACHINE | V2, Fill(600, 800, "this control group")),
        (MACHINE | V1, Fill(950, 1000, "this control group")),
        (MACHINE | INSIDE, Fill(720, 800, "this control group")),
        ({}, None),
    ],
    ids=["machine", "version 2", "version 1", "container", "nothing"],
)
def test_fill(tmp_path: Path, files: dict[str, str], fill: Fill | None) -> None:
    """The tightest of all limits counts, and what the system can drop does not."""
    assert read_fill(_files(tmp_path, files)) == fill


def test_this_machine() -> None:
    """The files of the system at hand are understood."""
    fill = read_fill()
    assert fill is not None
    assert 0 < fill.used < fill.limit


def test_told_once_until_it_was_better() -> None:
    """A warning comes when the memory becomes full, and again only after it was not."""
    shares = iter([0.5, 0.89, 0.91, 0.95, 0.85, 0.95, 0.5, 0.92])
    told: list[str] = []
    headroom = Headroom(lambda rank: os.getpid(), told.append, lambda: Fill(int(next(shares) * GB), GB, "it"))
    counts = []
    for _ in range(8):
        headroom.look([0, 1])
        counts.append(len(told))
    assert counts == [0, 0, 1, 1, 1, 1, 1, 2]
    assert told[0].startswith("it is 91 % full, 0.9 of 1.0 GB: rank 1 holds ")
