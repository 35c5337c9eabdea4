"""Rows 4 to 7: a rank's process ends. It is named; the others are free, keep their state, and get it back."""

from __future__ import annotations

import os
import re
import signal

import pytest
from worlds import GUARD, Ranks, Worlds

from notebooks import Notebook

SIZES = [2, 4, 8]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("inject.exit_process(0)", "exit code 0"),
        ("inject.exit_process(3)", "exit code 3"),
        ("inject.c_exit(4)", "exit code 4"),
    ],
)
def test_row_04_process_exits(pair: Ranks, end: str, told: str) -> None:
    """An exit that Python does not see is told with rank and code, and the slot can be filled again."""
    error = pair.fail(f"if rank == 1:\n    {end}\ndist.barrier()", "WorkerDied")
    assert error.evalue.startswith(f"rank 1: the process ended with {told}")
    assert "rank 0: waited in barrier" in error.evalue
    pair.bring_back(1)


def test_row_05_segfault(pair: Ranks) -> None:
    """A crash is told with the signal, and with the Python stack that faulthandler saw."""
    outcome = pair.run("def crash():\n    inject.segfault()\nif rank == 1:\n    crash()\ndist.barrier()")
    error = outcome.failed("WorkerDied")
    assert error.evalue.startswith("rank 1: the process was ended by SIGSEGV")
    assert "rank 0: waited in barrier" in error.evalue
    assert "Segmentation fault" in outcome.stderr
    assert "in crash" in outcome.stderr
    pair.bring_back(1)


_AT = r"at {cell}, line 6"
_IN = r"in the statement at {cell}, line 4|seen last at {cell}, line 6"  # by chance it was looked at just then
_EXIT = r"in the statement at {cell}, line 6"


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("inject.segfault()", _AT),
        ("inject.abort()", _AT),
        ("inject.kill(signal.SIGBUS)", _AT),
        ("inject.exit_process(3)", _EXIT),
        ("os._exit(3)", _EXIT),
        ("inject.kill()", _IN),
        ("inject.c_exit(3)", _IN),
    ],
)
def test_row_05_last_line_is_told(pair: Ranks, end: str, told: str) -> None:
    """The error says at which line of the cell the rank was when it ended, however soon that was."""
    outcome = pair.run(f"x = 1\nx = 2\nif rank == 1:\n    x = 3\n    {end}\ny = 1")
    told = told.format(cell=rf"Cell In\[{outcome.number}\]")
    error = outcome.failed("WorkerDied")
    try:
        assert re.search(rf"\(({told})\)", error.evalue), error.evalue
    finally:
        pair.bring_back(1)


def test_row_04_detailed_debugging_of_torch(fresh_notebook: Notebook) -> None:
    """Where torch is to compare collectives too, all is as usual: who waited, the refill, and what differs."""
    fresh_notebook.run("import os; os.environ['TORCH_DISTRIBUTED_DEBUG'] = 'DETAIL'\n%nbsync start -n 2", GUARD).ok()
    ranks = Ranks(fresh_notebook, 2)
    ranks.mark()
    assert ranks.run("dist.get_debug_level().name").ok().texts == ["[0-1] 'DETAIL'"]
    error = ranks.fail("if rank == 1:\n    import os; os._exit(3)\ndist.all_reduce(torch.ones(1))", "WorkerDied")
    assert "rank 0: waited in all_reduce" in error.evalue
    ranks.bring_back(1)
    ranks.fail("dist.all_reduce(torch.ones(1 + rank))", "CollectiveMismatch")
    ranks.assert_next()
    ranks.run("group = dist.new_group([0, 1]); dist.all_reduce(torch.ones(1), group=group)").ok()


_CRASH = """import nbsync
from nbsync.testing import inject
def crash():
    x = 1
    inject.segfault()
"""


@pytest.mark.parametrize("launch", ["nbsync.session().call(crash)", "nbsync.notebook_launcher(crash, num_processes=2)"])
def test_row_05_last_line_of_a_function_is_told(pair: Ranks, launch: str) -> None:
    """Also of one that is called, in a session or in fresh workers, a crash is told with its line."""
    outcome = pair.notebook.run(f"{_CRASH}{launch}", GUARD)
    try:
        assert f"(at Cell In[{outcome.number}], line 5)" in outcome.failed("WorkerDied").evalue
    finally:
        if "session" in launch:
            pair.notebook.run("%nbsync restart --ranks 0,1", GUARD).ok()
    pair.assert_next()


_LARGE = {
    "broadcast from it": "dist.broadcast(big, src=1)",
    "broadcast to it": "dist.broadcast(big, src=0)",
    "all_gather": "dist.all_gather([torch.empty_like(big) for _ in range(world_size)], big)",
    "recv": "dist.send(big, dst=0) if rank == 1 else dist.recv(big, src=1)",
    "send": "dist.recv(big, src=0) if rank == 1 else dist.send(big, dst=1)",
    "DDP construction": "torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4000, 4000))",
}


@pytest.mark.parametrize("operation", _LARGE)
def test_row_06_sigkill_in_the_middle_of_a_message(pair: Ranks, operation: str) -> None:
    """Who sends to the killed rank, or receives from it, is released also when half of a large message was through."""
    pair.run("big = torch.ones(20_000_000)").ok()
    victim = pair.pids()[1]
    pair.begin(f"while True:\n    {_LARGE[operation]}")
    os.kill(victim, signal.SIGKILL)
    error = pair.notebook.wait(GUARD).failed("WorkerDied")
    assert error.evalue.startswith("rank 1: the process was ended by SIGKILL")
    pair.bring_back(1)


@pytest.mark.parametrize("size", SIZES)
def test_row_06_sigkill_mid_collective(world_of: Worlds, size: int) -> None:
    """A killed rank is named with its signal; the others are released from the collective, in one line."""
    ranks = world_of(size)
    error = ranks.fail("if rank == 1:\n    inject.kill()\ndist.all_reduce(torch.ones(1))", "WorkerDied")
    first, *rest = error.evalue.splitlines()
    assert first.startswith("rank 1: the process was ended by SIGKILL")
    (line,) = [line for line in rest if "waited" in line]
    others = "rank 0" if size == 2 else f"ranks 0,2-{size - 1}"
    assert line.startswith(f"{others}: waited in all_reduce")
    assert rest[-1] == "`%nbsync restart --ranks 1` brings rank 1 back"
    ranks.bring_back(1)


@pytest.mark.parametrize("size", SIZES)
def test_row_06_sigkill_while_idle(world_of: Worlds, size: int) -> None:
    """A rank killed between cells is named at the next cell, which runs nowhere."""
    ranks = world_of(size)
    ranks.notebook.run(f"import os, signal; os.kill({ranks.pids()[1]}, signal.SIGKILL)").ok()
    ranks.notebook.run("import time; time.sleep(0.2)").ok()
    error = ranks.fail("sentinel = 'overwritten'", "WorkerDied")
    way_back = "`%nbsync restart --ranks 1` brings it back"
    assert error.evalue == f"rank 1 is not running (ended by SIGKILL). {way_back}"
    assert error.traceback == f"WorkerDied: {error.evalue}"
    ranks.bring_back(1)


@pytest.mark.parametrize("size", SIZES)
def test_row_06_two_ranks_die(world_of: Worlds, size: int) -> None:
    """All ranks that die are named, and come back together."""
    ranks = world_of(size)
    last = size - 1
    error = ranks.fail(f"if rank in (0, {last}):\n    inject.kill()\ndist.barrier()", "WorkerDied")
    spec = "0-1" if size == 2 else f"0,{last}"
    assert f"ranks {spec}: the process was ended by SIGKILL" in error.evalue
    if size == 2:
        ranks.notebook.run("%nbsync restart --ranks 0,1", GUARD).ok()
        ranks.assert_next()
        return
    ranks.bring_back(0, last)


_SAYS_MORE = """
try: dist.all_reduce(torch.ones(1))
except RuntimeError as error: raise ValueError("row 6"){then}
"""


@pytest.mark.parametrize("then", ["", " from error"])
def test_row_06_code_that_says_more_of_a_lost_connection(pair: Ranks, then: str) -> None:
    """The death is what is told; the error that was raised where the connection was lost stands below it."""
    cell = "if rank == 1:\n    time.sleep(0.2)\n    inject.kill()" + _SAYS_MORE.format(then=then)
    error = pair.fail(cell, "WorkerDied")
    assert error.evalue.startswith("rank 1: the process was ended by SIGKILL")
    assert "what was in its memory is lost" in error.evalue
    assert re.search(r"rank 0: ValueError: row 6 at Cell In\[\d+\], line 6", error.evalue)
    pair.bring_back(1)
    error = pair.fail("if rank == 1:\n    raise KeyError('row 1')" + _SAYS_MORE.format(then=then), "KeyError")
    assert error.evalue.startswith("rank 1: KeyError: 'row 1'")
    pair.assert_next()


_HEARD_LATE = """
import time
from nbsync.kernel.conductor import Conductor
from nbsync.kernel.hub import Exited
take = Conductor._take
def late(self, rank, message): time.sleep(0.5 * isinstance(message, Exited)), take(self, rank, message)
Conductor._take = late"""
_SEES_IT = """
if rank == 1: inject.kill()
while os.path.exists(f"/proc/{pids[1]}"): time.sleep(0.001)
raise ValueError("row 6")"""


def test_row_06_the_death_was_before_the_error(pair: Ranks) -> None:
    """What counts is when a rank has ended, not when the notebook came to that: it may have much to print."""
    pair.run("pids = [None, None]; dist.all_gather_object(pids, os.getpid())").ok()
    pair.notebook.run(_HEARD_LATE).ok()
    try:
        error = pair.fail(_SEES_IT, "WorkerDied")
    finally:
        pair.notebook.run("Conductor._take = take").ok()
    assert error.evalue.startswith("rank 1: the process was ended by SIGKILL")
    assert "rank 0: ValueError: row 6" in error.evalue
    pair.bring_back(1)


def test_row_06_two_ranks_die_of_different_things(world_of: Worlds) -> None:
    """Each is told with its own end, when somebody wants to use them."""
    ranks = world_of(4)
    ranks.fail("if rank == 1:\n    inject.kill()\nif rank == 2:\n    inject.segfault()\ndist.barrier()", "WorkerDied")
    error = ranks.notebook.run("%%distributed\nrank").failed("WorkerDied")
    told = "rank 1 is not running (ended by SIGKILL), rank 2 is not running (ended by SIGSEGV). "
    assert told + "`%nbsync restart --ranks 1-2` brings them back" in error.evalue
    ranks.bring_back(1, 2)


_REAPED_LATE = """
from nbsync.kernel.engines.base import Process
from nbsync.kernel.supervision.pulse import Pulse
reap, look, looks, ended = Process.reap, Pulse.look, [], {}
def late(self): return reap(self) if len(looks) > ended.setdefault(self.pid, len(looks)) + 1 else None
def noted(self, ranks): look(self, ranks), looks.append(1)
Process.reap, Pulse.look = late, noted"""


def test_row_06_nothing_is_told_before_the_error(pair: Ranks) -> None:
    """That a process has ended is told with how, not a moment before that is known."""
    pair.notebook.run(_REAPED_LATE).ok()
    try:
        outcome = pair.run("if rank == 1:\n    inject.kill()\ndist.barrier()")
    finally:
        pair.notebook.run("Process.reap, Pulse.look = reap, look").ok()
    assert outcome.failed("WorkerDied").evalue.startswith("rank 1: the process was ended by SIGKILL")
    assert "rank 1 is" not in outcome.stderr
    pair.bring_back(1)


def test_row_06_the_notebook_takes_no_interest_in_its_children(pair: Ranks) -> None:
    """Where the system tells nobody how a process has ended, the error does not either."""
    pair.notebook.run("import signal; before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)").ok()
    try:
        error = pair.fail("if rank == 1:\n    inject.kill()\ndist.barrier()", "WorkerDied")
    finally:
        pair.notebook.run("signal.signal(signal.SIGCHLD, before)").ok()
    assert error.evalue.startswith("rank 1: the process ended, how is not known: something in the notebook waits")
    shown = pair.notebook.run("import sys; (sys.last_value.exit_code, sys.last_value.signal_name)")
    assert shown.ok().texts == ["(None, None)"]
    pair.bring_back(1)


def test_row_06_refill_brings_it_back_by_itself(pair: Ranks) -> None:
    """With refill the next cell works with no action: the killed rank is a fresh copy, the other kept its state."""
    pair.notebook.run("%nbsync stop\n%nbsync start -n 2 --refill", GUARD).ok()
    pair.mark()
    error = pair.fail("from nbsync.testing import inject\nif rank == 1:\n    inject.kill()\ndist.barrier()")
    assert error.evalue.startswith("rank 1: the process was ended by SIGKILL")
    assert "restart" not in error.evalue
    pair.assert_next()
    pair.assert_kept([0])
    pair.notebook.run("%nbsync stop\n%nbsync start -n 2", GUARD).ok()


_ANOTHER_DIES = """
import os, signal, time, nbsync
fleet = nbsync.session()._fleet
refill = fleet.refill
def refill_badly(ranks, mend):
    def die_and_mend(life):
        fleet.refill = refill
        os.kill(fleet.traffic.pid(0), signal.SIGKILL)
        while 0 not in nbsync.session().dead_ranks: time.sleep(0.001)
        mend(life)
    refill(ranks, die_and_mend)
fleet.refill = refill_badly
"""


def test_row_06_another_dies_during_the_refill(pair: Ranks) -> None:
    """The error is that of the cell; that the other one died too is told, and the next cell has both again."""
    pair.notebook.run("%nbsync stop\n%nbsync start -n 2 --refill", GUARD).ok()
    pair.notebook.run(_ANOTHER_DIES).ok()
    outcome = pair.run("import os\nif rank == 1: os.kill(os.getpid(), 9)\nprint('here')")
    assert outcome.failed("WorkerDied").evalue.startswith("rank 1: the process was ended by SIGKILL")
    assert "the world could not be made whole: rank 0 is not running" in outcome.stderr
    pair.assert_next()
    pair.notebook.run("%nbsync stop\n%nbsync start -n 2", GUARD).ok()


@pytest.mark.parametrize("fault", ["inject.abort('row seven: assertion failed')", "inject.kill(signal.SIGABRT)"])
def test_row_07_abort(pair: Ranks, fault: str) -> None:
    """SIGABRT is told like any signal, with what C++ wrote before."""
    outcome = pair.run(f"if rank == 1:\n    {fault}\ndist.barrier()")
    error = outcome.failed("WorkerDied")
    assert error.evalue.startswith("rank 1: the process was ended by SIGABRT")
    if "assertion" in fault:
        assert "[1] row seven: assertion failed" in outcome.stderr
    assert "Fatal Python error: Aborted" in outcome.stderr
    pair.bring_back(1)


def test_row_07_last_stderr_lines_are_in_the_error(pair: Ranks) -> None:
    """The error repeats the last lines that the rank wrote to stderr: the output may be long gone."""
    error = pair.fail("if rank == 1:\n    inject.abort('row seven: assertion failed')", "WorkerDied")
    try:
        assert "row seven: assertion failed" in error.evalue
    finally:
        pair.bring_back(1)


_DIE_LATER = """
import threading
def die():
    print('row seven: buffer 7 is corrupt', file=sys.stderr, flush=True)
    inject.segfault()
if rank == 1:
    threading.Timer(0.2, die).start()"""
_WAIT_FOR_IT = """
import nbsync, time
while not nbsync.session().dead_ranks: time.sleep(0.01)"""


def test_row_07_last_stderr_lines_of_a_rank_that_ends_between_cells(pair: Ranks) -> None:
    """They are in the error of the next cell, which runs nowhere."""
    pair.run(_DIE_LATER).ok()
    pair.notebook.run(_WAIT_FOR_IT, GUARD).ok()
    error = pair.fail("pass", "WorkerDied")
    assert "last on rank 1's stderr:\n  row seven: buffer 7 is corrupt" in error.evalue
    assert "SIGSEGV" in error.evalue
    assert "File" not in error.evalue
    pair.bring_back(1)


_UNREADABLE = """
import ctypes, mmap
memory = mmap.mmap(-1, 1 << 20)
sent = torch.frombuffer(memory, dtype=torch.uint8)
def allow(what): assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(sent.data_ptr()), len(memory), what) == 0
if rank == 0:
    work = dist.isend(sent, dst=1)
    allow(0)
dist.barrier()
work.wait() if rank == 0 else dist.recv(sent, src=0)
"""
_LOOPS = (
    "[open(f'/proc/self/task/{task}/comm').read() for task in os.listdir('/proc/self/task')].count('gloo_tcp_loop\\n')"
)


def test_row_07_gloo_s_event_loop_fails(pair: Ranks) -> None:
    """Gloo ends the process when its loop cannot send, as when what is to be sent was freed: here the loop goes on."""
    before = pair.run(_LOOPS).ok().texts
    for _ in range(3):
        error = pair.fail(_UNREADABLE, "RuntimeError")
        assert "Connection closed by peer" in error.evalue
        pair.run("if rank == 0: allow(3)").ok()
        pair.assert_whole()
    assert pair.run(_LOOPS).ok().texts == before
