"""Rows 42 and 43: many faults one after the other. Nothing grows, and the kernel is never lost."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from holdings import Holdings
from worlds import SETTLED, Ranks, suffer

from nbsync.testing.inject import FAULTS, Schedule
from notebooks import alive, family

CYCLES = 50
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Growth:
    """What one process has."""

    resident: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Growth:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE"),
            len(os.listdir(f"/proc/{pid}/fd")),
            len(os.listdir(f"/proc/{pid}/task")),
        )


def _fail_often(ranks: Ranks, count: int) -> None:
    """A broken cell and its corrected version, again and again."""
    for number in range(count):
        error = ranks.fail(f"if rank == {number % 2}:\n    inject.raise_error('cycle')\ndist.barrier()", "ValueError")
        assert error.evalue.splitlines()[0] == f"rank {number % 2}: ValueError: cycle"
        ranks.run("dist.barrier()").ok()


def _grown(ranks: Ranks) -> list[tuple[Growth, Growth]]:
    """The kernel and each rank before and after many cycles; the first few are not counted."""
    pids = [ranks.notebook.pid, *ranks.pids()]
    _fail_often(ranks, 5)
    time.sleep(SETTLED)
    before = [Growth.of(pid) for pid in pids]
    _fail_often(ranks, CYCLES)
    ranks.assert_whole()
    time.sleep(SETTLED)  # the store's side of a connection ends a moment after the rank's
    return list(zip(before, [Growth.of(pid) for pid in pids], strict=True))


@pytest.fixture(scope="module")
def cycles(request: pytest.FixtureRequest) -> list[tuple[Growth, Growth]]:
    """What 50 error cycles made of the kernel and the ranks; measured once."""
    return _grown(request.getfixturevalue("worlds")(2))


def test_row_42_memory(cycles: list[tuple[Growth, Growth]]) -> None:
    """Memory grows by less than 20 MB, in the kernel and in each rank."""
    grown = [(after.resident - before.resident) / MEGABYTE for before, after in cycles]
    assert max(grown) < 20, grown


def test_row_42_descriptors(cycles: list[tuple[Growth, Growth]]) -> None:
    """No descriptor is left open, in the kernel and in each rank."""
    assert [after.descriptors - before.descriptors for before, after in cycles] == [0, 0, 0]


def test_row_42_threads(cycles: list[tuple[Growth, Growth]]) -> None:
    """No thread is left, in the kernel and in each rank."""
    assert [after.threads - before.threads for before, after in cycles] == [0, 0, 0]


def test_row_43_random_mix(pair: Ranks) -> None:
    """A seeded mix of faults, one after the other: the next collective always works, in the same kernel."""
    before = Holdings.of(pair.notebook.pid)
    faults = [fault for fault in FAULTS if fault.row != 19]  # what DataLoaders leave is told there
    for planned in islice(Schedule(seed=43, rate=1.0, faults=faults), 15):
        suffer(pair, planned)
    assert len(alive(family(pair.notebook.pid))) <= before.processes
