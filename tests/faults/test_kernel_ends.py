"""Rows 26 to 28, 50: the kernel goes, by force or as Jupyter ends it, or sleeps. Nothing of it stays behind."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds import GUARD, SETTLED

from notebooks import Belongings, Notebook, family, poll

_START = "%load_ext nbsync\n%nbsync start -n 2"
_BEGIN = "%%distributed\nimport time\nfrom nbsync.testing import inject\nprint('begun', rank)\n"
_LOADER = (
    "from torch.utils.data import DataLoader\nloader = iter(DataLoader(list(range(100)), num_workers=2))\nnext(loader)"
)


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Notebook]:
    """A kernel of this test's own with two ranks, which the test ends."""
    notebook = Notebook(tmp_path)
    try:
        notebook.run(_START, GUARD).ok()
        yield notebook
    finally:
        notebook.kill()
        notebook.shutdown()


def _wait_for_begin(kernel: Notebook) -> None:
    for rank in (0, 1):
        kernel.wait_for_output(f"begun {rank}", GUARD)


@pytest.mark.parametrize("doing", ["idle", "loop", "barrier", "hold_gil", "stop", "data loader", "flood"])
def test_row_26_kernel_is_killed(kernel: Notebook, doing: str) -> None:
    """Whatever its workers do, they and their children are gone right after the kernel was killed."""
    cells = {
        "loop": "inject.loop_forever()",
        "barrier": "import torch\ndist.barrier() if rank == 0 else time.sleep(1000)",
        "hold_gil": "inject.hold_gil(600)",
        "stop": "inject.stop()",
        "flood": "while True: inject.flood_stdout(1)",
        "data loader": f"{_LOADER}\ninject.fork_child()\ntime.sleep(1000)",
    }
    if doing != "idle":
        kernel.start(_BEGIN + cells[doing])
        _wait_for_begin(kernel)
        time.sleep(SETTLED)
    mine = kernel.belongings()
    kernel.kill()
    mine.assert_gone()


@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05])
def test_row_26_kernel_is_killed_while_it_starts(kernel: Notebook, delay: float) -> None:
    """A kernel killed at any moment of a start leaves no worker behind."""
    kernel.start("print('begun', flush=True)\nget_ipython().run_line_magic('nbsync', 'restart')")
    kernel.wait_for_output("begun", GUARD)
    time.sleep(delay)
    kernel.kill()
    mine = kernel.belongings()
    mine.assert_gone()


def test_row_26_next_start_tells_of_what_was_cleaned(kernel: Notebook) -> None:
    """The start after a killed kernel says once that its workers are gone; after a shutdown nothing is said."""
    kernel.kill()
    kernel.restart()
    assert "previous workers cleaned" in kernel.run(_START, GUARD).ok().stderr
    assert not kernel.run("%nbsync stop\n%nbsync start -n 2", GUARD).ok().stderr
    kernel.restart(now=False)
    assert not kernel.run(_START, GUARD).ok().stderr
    kernel.run("%nbsync stop").ok()
    kernel.kill()
    kernel.restart()
    assert not kernel.run(_START, GUARD).ok().stderr


def test_row_26_notes_that_no_kernel_takes_go(kernel: Notebook) -> None:
    """What a killed kernel left to be told goes with its connection file; that of a kernel to come stays."""
    runtime = kernel.folder / "runtime"
    notes = [runtime / f"nbsync-{name}.note" for name in ("gone", "waits")]
    for note in notes:
        note.touch()
    (runtime / "waits.json").touch()
    kernel.restart()
    kernel.run(_START, GUARD).ok()
    assert [note.exists() for note in notes] == [False, True]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_row_26_restarts_on_the_same_ports(kernel: Notebook) -> None:
    """Killed 20 times with busy workers, the kernel starts again on its ports, and the ranks work."""
    ports = kernel.ports
    for _ in range(20):
        kernel.start(_BEGIN + "dist.barrier() if rank == 0 else inject.loop_forever()")
        _wait_for_begin(kernel)
        kernel.kill()
        kernel.restart()
        assert kernel.ports == ports
        kernel.run(_START, GUARD).ok()
    assert kernel.run("%%distributed\nt = torch.ones(1); dist.all_reduce(t); t.item()").texts == ["[0-1] 2.0"]


def test_row_27_shutdown_with_children(kernel: Notebook) -> None:
    """A shutdown in the middle of a session also ends DataLoader workers and forked children, at once."""
    kernel.run(f"{_BEGIN}{_LOADER}\ninject.fork_child()", GUARD).ok()
    mine = kernel.belongings()
    assert len(mine.processes) > 7
    begin = time.monotonic()
    kernel._manager.shutdown_kernel()
    assert time.monotonic() - begin < 10
    mine.assert_gone()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_row_27_no_folder_is_left(kernel: Notebook, method: str) -> None:
    """Nothing that DataLoader workers made is left in the folder for temporary files, however the ranks started."""
    kernel.run(f"%nbsync stop\n%nbsync start -n 2 --start-method {method}", GUARD).ok()
    kernel.run(f"{_BEGIN}{_LOADER}", GUARD).ok()
    assert list(kernel.tmp.iterdir())
    kernel._manager.shutdown_kernel()
    assert not list(kernel.tmp.iterdir())


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_row_27_no_shared_memory_is_left(kernel: Notebook, end: str) -> None:
    """What ranks have in /dev/shm by multiprocessing goes with them, and so does the process that removes it."""
    cell = (
        "%%distributed\nimport multiprocessing\nfrom multiprocessing.shared_memory import SharedMemory\n"
        "memory = SharedMemory(create=True, size=100_000)\nlock = multiprocessing.get_context('spawn').Lock()\n"
        "print(memory.name, lock._semlock.name[1:])"
    )
    shown = kernel.run(cell, GUARD).ok().stdout
    files = [Path("/dev/shm", name.replace("mp-", "sem.mp-")) for name in re.findall(r"psm_\S+|mp-\S+", shown)]
    assert [file.exists() for file in files] == 4 * [True]
    mine = kernel.belongings()
    if end == "kill":
        kernel.kill()
        mine.assert_gone()
    else:
        kernel.run("%nbsync stop", GUARD).ok()
        assert poll(lambda: not family(kernel.pid, kernel.mark), GUARD)
    assert [file for file in files if file.exists()] == []


def test_row_27_restart_while_busy(kernel: Notebook) -> None:
    """Jupyter's restart ends ranks that are in the middle of a cell, and the new kernel starts as usual."""
    kernel.start(_BEGIN + "dist.barrier() if rank == 0 else inject.loop_forever()")
    _wait_for_begin(kernel)
    before = family(kernel.pid)
    kernel.restart()
    Belongings(frozenset(before), frozenset()).assert_gone()
    kernel.run(_START, GUARD).ok()
    assert kernel.run("%%distributed\nt = torch.ones(1); dist.all_reduce(t); t.item()").texts == ["[0-1] 2.0"]


def test_row_28_termination_is_ignored(kernel: Notebook) -> None:
    """Ranks and children that ignore SIGTERM and SIGHUP end with the session."""
    kernel.run(f"{_BEGIN}inject.ignore_termination()\ninject.fork_child()", GUARD).ok()
    assert len(family(kernel.pid)) == 5  # two ranks, a child of each, the guard
    begin = time.monotonic()
    kernel.run("%nbsync stop", GUARD).ok()
    assert time.monotonic() - begin < 10
    assert not family(kernel.pid)


@pytest.mark.parametrize("waits", ["dist.barrier()", "world.wait_for_everyone('slept', timeout=60)"])
def test_row_50_suspended(kernel: Notebook, waits: str) -> None:
    """Kernel and ranks that all stop for some seconds, as a machine sleeps, go on where they were; none is blamed."""
    kernel.start(f"{_BEGIN}if rank == 1: time.sleep(1.5)\n{waits}\nprint('together')")
    _wait_for_begin(kernel)
    time.sleep(SETTLED)
    everyone = [kernel.pid, *(process.pid for process in family(kernel.pid))]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in reversed(everyone):
        os.kill(pid, signal.SIGCONT)
    outcome = kernel.wait(GUARD).ok()
    assert {line.partition("] ")[2] for line in outcome.stdout.splitlines()} == {"begun 0", "begun 1", "together"}
    assert not outcome.stderr
    assert kernel.run("%%distributed\nt = torch.ones(1); dist.all_reduce(t); t.item()").texts[-1] == "[0-1] 2.0"
