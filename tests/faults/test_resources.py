"""Rows 9 and 35 to 41: a machine that runs out of something, and a kernel that is hard to fork."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from worlds import GUARD, Ranks

from notebooks import Notebook, family

_WORKS = "%%distributed\nt = torch.ones(1); dist.all_reduce(t); t.item()"


def test_row_09_memory_runs_out(pair: Ranks) -> None:
    """A rank that takes the last tenth of the memory is named while its cell runs, once, with the limit."""
    limit = (
        "import nbsync.kernel.supervision.headroom as headroom, nbsync\n"
        "from nbsync.kernel.supervision.evidence import resident_bytes\n"
        "def held(): return sum(resident_bytes(state.pid) for state in nbsync.session().status().ranks)\n"
        "limit = int((held() + 150e6) / 0.9)\n"
        "read, headroom.read_fill = headroom.read_fill, lambda: headroom.Fill(held(), limit, 'the memory')"
    )
    pair.notebook.run(limit).ok()
    try:
        cell = "import time\ntaken = inject.leak_memory(250) if rank == 1 else None\ntime.sleep(1.5)"
        told = [line for line in pair.run(cell).ok().stderr.splitlines() if "% full" in line]
        assert len(told) == 1, told
        assert told[0].startswith("nbsync: the memory is ")
        assert re.search(r": rank 1 holds [\d.]+ [MG]B", told[0])
        pair.run("del taken").ok()
        assert not pair.run("time.sleep(1)").ok().stderr
    finally:
        pair.notebook.run("headroom.read_fill = read").ok()


def test_row_09_the_kernel_is_never_the_victim(pair: Ranks) -> None:
    """For want of memory the system prefers the ranks, and their children, to the kernel."""

    def badness(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    pair.run("child = inject.fork_child()").ok()
    kernel = badness(pair.notebook.pid)
    theirs = [badness(process.pid) for process in family(pair.notebook.pid) if process.name != "sh"]
    assert len(theirs) == 4
    assert all(score == min(1000, kernel + 500) for score in theirs)
    pair.run("os.kill(child, signal.SIGKILL); os.waitpid(child, 0)").ok()


_LIMITED = (
    "import resource\nheld = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
    "resource.setrlimit(resource.RLIMIT_AS, (held + (200 << 20), resource.RLIM_INFINITY))"
)
_UNLIMITED = "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"


def test_row_09_a_rank_has_no_room_for_a_value(pair: Ranks) -> None:
    """What the system gives a rank no memory for is refused with its size, and the rank lives."""
    pair.notebook.run(f"%%on_rank 1\n{_LIMITED}").ok()
    pair.notebook.run("big = bytes(1 << 29)").ok()
    error = pair.notebook.run("%nbsync push big", GUARD).failed("MemoryError")
    assert "there is no memory for the 537 MB that were sent to this rank" in error.traceback
    pair.notebook.run(f"%%on_rank 1\n{_UNLIMITED}").ok()
    pair.assert_whole()
    pair.notebook.run("%nbsync push big", GUARD).ok()
    assert pair.run("len(big)").ok().texts == ["[0-1] 536870912"]


def test_row_09_the_notebook_has_no_room_for_a_value(pair: Ranks) -> None:
    """So is a value that a rank sends; both go on."""
    pair.run("big = bytes(1 << 29)").ok()
    pair.notebook.run(_LIMITED).ok()
    error = pair.notebook.run("%nbsync pull big --ranks 0", GUARD).failed("MemoryError")
    assert error.evalue == "rank 0: MemoryError: the notebook has no memory for the 537 MB that this rank sent"
    pair.notebook.run(_UNLIMITED).ok()
    pair.assert_whole()
    pair.notebook.run("%nbsync pull big --ranks 0", GUARD).ok()
    assert pair.notebook.run("len(big)").ok().texts == ["536870912"]
    pair.notebook.run("del big").ok()


def test_row_35_disk_is_full(pair: Ranks) -> None:
    """A rank that may write no file any more has an ordinary error, prints as before, and takes part."""
    cell = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nprint('no room')\n"
        "with open('file', 'w') as file: file.write('x')"
    )
    outcome = pair.run(cell)
    error = outcome.failed("OSError")
    assert error.evalue.startswith("ranks 0-1: OSError")
    assert outcome.stdout == "[0-1] no room\n"
    pair.assert_whole()
    pair.run("resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))").ok()


@pytest.fixture
def full_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own, on which nothing is free."""
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        with suppress(OSError), open(folder / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_row_35_no_room_for_our_files(tmp_path: Path, full_folder: Path) -> None:
    """On a machine without disk space the ranks start, fail, heal, end and come back as ever."""
    notebook = Notebook(tmp_path / "kernel", {"TMPDIR": str(full_folder)})
    try:
        notebook.run("%load_ext nbsync").ok()
        notebook.run("%nbsync start -n 2", GUARD).ok()
        notebook.run("%%distributed\nkept = rank\nfrom nbsync.testing import inject").ok()
        error = notebook.run("%%distributed\nif rank:\n    inject.raise_error()\ndist.barrier()", GUARD)
        assert error.failed("ValueError").evalue.startswith("rank 1: ValueError: injected")
        assert notebook.run(_WORKS).ok().texts == ["[0-1] 2.0"]
        died = notebook.run("%%distributed\nif rank:\n    inject.kill()\ndist.barrier()", GUARD)
        assert died.failed("WorkerDied").evalue.startswith("rank 1: the process was ended by SIGKILL")
        notebook.run("%nbsync restart --ranks 1", GUARD).ok()
        assert notebook.run(_WORKS).ok().texts == ["[0-1] 2.0"]
        assert notebook.run("%%on_rank 0\nkept").ok().texts == ["[0] 0"]
    finally:
        notebook.shutdown()


def test_row_36_descriptors_of_a_rank(pair: Ranks) -> None:
    """A rank without descriptors has an ordinary error, answers, and its control channel needs no new one."""
    error = pair.fail("if rank == 1:\n    taken = inject.exhaust_descriptors()\n    open('/dev/null')", "OSError")
    assert error.evalue.startswith("rank 1: ")
    assert "Too many open files" in error.evalue
    assert "all 256 file descriptors of this process are in use" in error.evalue
    pair.assert_kept()
    pair.run("if rank == 1:\n    for fd in taken: os.close(fd)").ok()
    pair.assert_whole()
    pair.notebook.run("%nbsync restart").ok()


def test_row_36_peer_raises_while_a_rank_has_no_descriptors(pair: Ranks) -> None:
    """A rank that has no descriptor left can be released from a collective, and lives."""
    pair.run("if rank == 1:\n    taken = inject.exhaust_descriptors()").ok()
    for _ in range(2):
        pair.fail("if rank == 0:\n    inject.raise_error()\ndist.barrier()", "ValueError", timeout=6)
        pair.assert_next()
    pair.notebook.run("%%on_rank 1\nfor fd in taken: os.close(fd)").ok()
    pair.assert_whole()


def test_row_36_descriptors_of_the_kernel(fresh_notebook: Notebook) -> None:
    """A start in a kernel without descriptors fails, says why, and leaves nothing; it works when there are some."""
    fresh_notebook.run("import torch\nfrom nbsync.testing import inject\ntaken = inject.exhaust_descriptors()").ok()
    error = fresh_notebook.run("%nbsync start -n 2", GUARD).failed()
    assert "Too many open files" in error.evalue
    fresh_notebook.run("import os\nfor fd in taken: os.close(fd)").ok()
    fresh_notebook.run("%nbsync start -n 2", GUARD).ok()
    assert fresh_notebook.run(_WORKS).ok().texts == ["[0-1] 2.0"]


@pytest.mark.skipif(os.getuid() == 0, reason="the limit of processes does not hold for root")
def test_row_37_no_process_can_be_made(fresh_notebook: Notebook) -> None:
    """A start beyond the limit of processes is all or nothing, and names the limit."""
    fresh_notebook.run("import torch, resource\nresource.setrlimit(resource.RLIMIT_NPROC, (1, 1))").ok()
    assert "ulimit" in fresh_notebook.run("%nbsync start -n 2", GUARD).failed().evalue


def test_row_37_half_of_the_ranks_can_be_forked(fresh_notebook: Notebook) -> None:
    """When a fork fails in the middle, the ranks are named and those that came up are ended."""
    cell = (
        "import os, errno\nfork, made = os.fork, []\n"
        "def limited():\n    if len(made) == 2: raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "    made.append(1); return fork()\nos.fork = limited"
    )
    fresh_notebook.run(cell).ok()
    error = fresh_notebook.run("%nbsync start -n 4", GUARD).failed()
    assert "no process for ranks 2-3" in error.evalue
    assert "ulimit" in error.evalue
    fresh_notebook.run("os.fork = fork\n%nbsync start -n 4", GUARD).ok()
    assert fresh_notebook.run(_WORKS).ok().texts == ["[0-3] 4.0"]


def test_row_38_port_is_taken(fresh_notebook: Notebook) -> None:
    """Somebody else on torch's usual port, and a host name that cannot be resolved, are no matter."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # taken already: as good
            sock.bind(("", 29500))
        cell = "import os\nos.environ |= {'MASTER_ADDR': 'no.such.host.invalid', 'MASTER_PORT': '29500'}"
        fresh_notebook.run(cell).ok()
        fresh_notebook.run("%nbsync start -n 2", GUARD).ok()
        assert fresh_notebook.run(_WORKS).ok().texts == ["[0-1] 2.0"]


def test_row_40_warm_pools(fresh_notebook: Notebook) -> None:
    """OpenMP and BLAS threads that were at work in the kernel before the fork do not make a rank hang."""
    warm = "import torch, numpy\na = torch.randn(600, 600); (a @ a).sum(); numpy.linalg.svd(a.numpy()); a.exp().sum()"
    fresh_notebook.run(warm).ok()
    fresh_notebook.run("%nbsync start -n 2 --env OMP_NUM_THREADS=2", GUARD).ok()
    cell = "torch.set_num_threads(2)\nb = torch.randn(800, 800); (b @ b).exp().sum(); numpy.linalg.svd(b.numpy()[:99])"
    fresh_notebook.run(f"%%distributed\n{cell};", GUARD).ok()
    assert fresh_notebook.run(_WORKS).ok().texts == ["[0-1] 2.0"]


def test_row_41_threads_hold_locks(fresh_notebook: Notebook) -> None:
    """Threads that hold the locks of logging, import and the allocator all the time do not keep ranks from starting."""
    busy = (
        "import colorsys, importlib, io, logging, threading\n"
        "stop, log = threading.Event(), logging.getLogger('busy')\n"
        "log.addHandler(logging.StreamHandler(io.StringIO())); log.propagate = False\n"
        "def work():\n    while not stop.is_set():\n"
        "        log.warning('x'); importlib.reload(colorsys); bytearray(100_000)\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\nfor t in threads: t.start()"
    )
    fresh_notebook.run(busy).ok()
    fresh_notebook.run("%nbsync start -n 2", GUARD).ok()
    for _ in range(10):
        fresh_notebook.run("%nbsync restart", GUARD).ok()
        check = (
            "%%distributed\nimport logging, fractions\nlogging.getLogger('busy').warning('y')\nbytearray(1_000_000);"
        )
        fresh_notebook.run(check, GUARD).ok()
    fresh_notebook.run("stop.set()\nfor t in threads: t.join()").ok()
    assert fresh_notebook.run(_WORKS).ok().texts == ["[0-1] 2.0"]
