"""Rows 16 to 25: Jupyter's interrupt ends a cell wherever its ranks are, and nobody loses anything."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from worlds import GUARD, LATER, Ranks, Worlds

from notebooks import Notebook, alive, family, poll

_FOLDED = "Traceback (most recent call last)"


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("operation", ["dist.all_reduce(torch.ones(1))", "dist.barrier()"])
def test_row_16_collective(world_of: Worlds, size: int, operation: str) -> None:
    """The cell ends with KeyboardInterrupt, and says at which line each rank was."""
    ranks = world_of(size)
    outcome = ranks.interrupted(f"if rank == 1:\n    inject.sleep_forever()\n{operation}")
    error = outcome.failed("KeyboardInterrupt")
    others = "rank 0" if size == 2 else f"ranks 0,2-{size - 1}"
    assert re.search(rf"{others}: interrupted .*at Cell In\[{outcome.number}\], line 5", error.traceback)
    assert f"rank 1: interrupted at Cell In[{outcome.number}], line 4" in error.traceback
    assert _FOLDED not in error.traceback
    ranks.assert_whole()


def test_row_16_operation_is_named(pair: Ranks) -> None:
    """The message says in which operation the ranks were."""
    error = pair.interrupted("if rank == 1:\n    inject.sleep_forever()\ndist.barrier()").failed("KeyboardInterrupt")
    assert "rank 0: interrupted in barrier at" in error.traceback


def test_row_16_interrupt_while_data_flows(pair: Ranks) -> None:
    """A transfer that is on its way is let through before the ranks come out, and the next collective works."""
    cell = (
        "big = torch.ones(30_000_000)\nwhile True:\n    dist.send(big, dst=1) if rank == 0 else dist.recv(big, src=0)"
    )
    for _ in range(3):
        pair.interrupted(cell).failed("KeyboardInterrupt")
        pair.assert_whole()


_WAITS = {
    "sleep": "inject.sleep_forever()",
    "pipe": "inject.read_forever()",
    "program": "inject.wait_for_program()",
    "shell command": "!sleep 1000",
    "own recv": "if rank == 0: dist.recv(torch.ones(1), src=1)\nelse: inject.sleep_forever()",
    "thread": "import threading; threading.Event().wait()",
    "lock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "await": "import asyncio; await asyncio.sleep(1000)",
    "select": "import select; select.select([], [], [])",
}


@pytest.mark.parametrize("wait", _WAITS)
def test_row_18_wait(pair: Ranks, wait: str) -> None:
    """Whatever a rank waits for outside torch, an interrupt ends it."""
    pair.interrupted(_WAITS[wait]).failed("KeyboardInterrupt")
    pair.assert_whole()


@pytest.mark.parametrize("handler", ["SIG_DFL", "SIG_IGN", "default_int_handler"])
def test_row_18_handlers_last_for_a_cell(pair: Ranks, handler: str) -> None:
    """As in the notebook itself, what a cell makes of SIGINT holds until its end: the next one can be interrupted."""
    pair.run(f"signal.signal(signal.SIGINT, signal.{handler})").ok()
    pair.interrupted("time.sleep(60)").failed("KeyboardInterrupt")
    pair.assert_whole()


def test_row_18_blocked_signals_last_for_a_cell(pair: Ranks) -> None:
    """So do signals that a cell has blocked, and not let through again."""
    pair.run("signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())").ok()
    pair.interrupted("time.sleep(60)").failed("KeyboardInterrupt")
    pair.run("signal.pthread_sigmask(signal.SIG_SETMASK, [])").ok()
    pair.assert_whole()


def test_row_18_input(pair: Ranks) -> None:
    """A rank cannot ask for input: an error says so at once, instead of a wait that nobody answers."""
    error = pair.fail("input('name? ')", "UsageError")
    assert "a rank cannot ask for input" in error.evalue
    assert "shell.py" not in error.traceback
    pair.assert_whole()


_LOADERS = {
    "quick": "inject.load_data_forever(num_workers=2)",
    "slow": "inject.load_data_forever(num_workers=2, seconds=100)",
    "break": (
        "from torch.utils.data import DataLoader\n"
        "while True:\n    for _ in DataLoader(inject.SlowData(0.01), num_workers=2):\n        break"
    ),
}


@pytest.mark.parametrize("loader", _LOADERS)
def test_row_19_data_loader(pair: Ranks, loader: str) -> None:
    """A DataLoader's processes end with the cell, whatever they do, and show no tracebacks."""
    outcome = pair.interrupted(_LOADERS[loader])
    error = outcome.failed("KeyboardInterrupt")
    assert outcome.seconds < 10
    poll(lambda: len(alive(family(pair.notebook.pid))) == 3, 1.0)  # two ranks and the guard
    assert len(alive(family(pair.notebook.pid))) == 3
    assert "Traceback (most recent call last)" not in outcome.stdout + outcome.stderr + error.traceback
    assert "Exception ignored" not in outcome.stderr
    pair.assert_whole()


def test_row_19_data_loader_ends_normally(pair: Ranks) -> None:
    """A DataLoader that is read to its end, or left early, in a cell that runs well is torch's business."""
    cell = (
        "from torch.utils.data import DataLoader\n"
        "seen = len(list(DataLoader(range(8), num_workers=2)))\n"
        "for first in DataLoader(range(8), num_workers=2): break\nseen, first.item()"
    )
    assert pair.run(cell).ok().texts[-1] == "[0-1] (8, 0)"
    pair.assert_whole()


def test_row_20_new_group(pair: Ranks) -> None:
    """An interrupt ends a process group's creation to which not all ranks come."""
    outcome = pair.interrupted("dist.new_group([0, 1]) if rank == 0 else inject.sleep_forever()")
    assert "rank 0: interrupted in new_group at" in outcome.failed("KeyboardInterrupt").evalue
    assert outcome.stderr == ""
    pair.assert_whole()


def test_row_20_log_level_of_torch_is_kept(fresh_notebook: Notebook) -> None:
    """What the user wants torch's C++ to log is so again when a cut connection to the store was replaced."""
    fresh_notebook.run("import os; os.environ['TORCH_CPP_LOG_LEVEL'] = 'INFO'\n%nbsync start -n 2", GUARD).ok()
    level = (
        "%%on_rank 0\nimport ctypes\nlibrary = ctypes.CDLL(torch.__path__[0] + '/lib/libc10.so')\n"
        "ctypes.c_int.in_dll(library, 'FLAGS_caffe2_log_level').value"
    )
    assert fresh_notebook.run(level).ok().texts == ["[0] 0"]
    ranks = Ranks(fresh_notebook, 2)
    ranks.run("import time").ok()
    ranks.interrupted("dist.new_group([0, 1]) if rank == 0 else time.sleep(1000)").failed("KeyboardInterrupt")
    ranks.assert_next()
    assert fresh_notebook.run(level).ok().texts == ["[0] 0"]


@pytest.mark.parametrize("timeout", ["", ", timeout=100"])
def test_row_20_wait_for_everyone(pair: Ranks, timeout: str) -> None:
    """An interrupt ends our own barrier, with and without a time limit."""
    cell = f"world.wait_for_everyone('row 20'{timeout}) if rank == 0 else inject.sleep_forever()"
    pair.interrupted(cell).failed("KeyboardInterrupt")
    pair.assert_whole()


def test_row_20_missing_ranks_are_named(pair: Ranks) -> None:
    """Our barrier's time limit names the rank that did not come, and the barrier works afterwards."""
    error = pair.fail(
        "world.wait_for_everyone('row 20', timeout=0.5) if rank == 0 else time.sleep(1)", "BarrierTimeout"
    )
    assert error.evalue.startswith("rank 0: BarrierTimeout: rank 1 did not arrive at 'row 20' within 0.5 s")
    pair.run("world.wait_for_everyone('row 20')").ok()
    pair.assert_whole()


def test_row_21_idle(pair: Ranks) -> None:
    """Interrupts between cells do nothing to the workers."""
    before = pair.pids()
    for _ in range(3):
        pair.notebook.interrupt()
    pair.assert_whole()
    assert pair.pids() == before


def test_row_21_handler_of_the_users(pair: Ranks) -> None:
    """What a handler of the user's raises between cells is shown with the next one, and ends nobody."""
    pair.run("def late(*_): raise TimeoutError('too slow')\nsignal.signal(signal.SIGALRM, late)").ok()
    before = pair.pids()
    for pid in before:
        os.kill(pid, signal.SIGALRM)
    assert poll(lambda: "TimeoutError: too slow" in pair.run("rank").ok().stderr, GUARD)
    assert pair.pids() == before
    pair.assert_whole()


def test_row_22_ten_interrupts(pair: Ranks) -> None:
    """A burst of ten interrupts ends the cell once, and leaves no rank half dead.

    It is over before the cell ends: an interrupt that meets ipykernel between cells can cost the cell's reply.
    """
    pair.begin("if rank == 1:\n    inject.sleep_forever()\ndist.barrier()")
    for _ in range(10):
        pair.notebook.interrupt()
        time.sleep(0.0005)
    outcome = pair.notebook.wait(GUARD)
    error = outcome.failed("KeyboardInterrupt")
    assert "still running" not in error.traceback
    pair.assert_whole()


_CATCHES = """
import os, time, torch, torch.distributed as dist, nbsync
def train():
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    print("begun", os.environ["RANK"])
    try:
        {loop}
    except KeyboardInterrupt:
        return torch.ones(3_000_000)
"""
_CALLS = ["nbsync.notebook_launcher(train, num_processes=2)", "nbsync.session().call(train)"]
_LOOPS = ["while True: dist.all_reduce(torch.ones(1))", "time.sleep(1000) if dist.get_rank() else dist.barrier()"]


@pytest.mark.parametrize("loop", _LOOPS)
@pytest.mark.parametrize("call", _CALLS)
def test_row_16_a_function_that_catches_it(pair: Ranks, call: str, loop: str) -> None:
    """What it returns then is not lost: it may be all that the training has come to."""
    pair.notebook.start(f"{_CATCHES.format(loop=loop)}[len(value) for value in {call}]")
    pair.wait_for_all("begun")
    pair.notebook.interrupt()
    assert pair.notebook.wait(GUARD).ok().texts == ["[3000000, 3000000]"]
    pair.assert_whole()


def test_row_16_among_short_calls(pair: Ranks) -> None:
    """An interrupt is never lost, also where it comes when a call has just ended."""
    cell = """
import nbsync, os, random, signal, threading, time
session = nbsync.session()
def small(): return 1
def is_lost():
    press = threading.Timer(0.05 + random.random() / 20, os.kill, [os.getpid(), signal.SIGINT])
    press.start()
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline: session.call(small)
    except KeyboardInterrupt:
        return False
    return True
sum(is_lost() for _ in range(20))"""
    assert pair.notebook.run(cell).ok().texts == ["0"]
    pair.assert_whole()


def test_row_16_a_launch_that_was_interrupted_is_not_restarted(pair: Ranks) -> None:
    """The user does not want it, whatever its code makes of the interrupt."""
    cell = """
import nbsync, time
def train():
    print("begun")
    try: time.sleep(1000)
    except KeyboardInterrupt: raise RuntimeError("stopped") from None
nbsync.notebook_launcher(train, num_processes=1, max_restarts=1)"""
    pair.notebook.start(cell)
    pair.notebook.wait_for_output("begun", GUARD)
    pair.notebook.interrupt()
    outcome = pair.notebook.wait(GUARD)
    assert "stopped" in outcome.failed("RuntimeError").evalue
    assert outcome.stdout.count("begun") == 1
    pair.assert_whole()


def test_row_16_an_interrupt_in_the_last_moment_of_a_call(pair: Ranks) -> None:
    """The rank has its value already: it is an interrupt nevertheless, and no error of the ranks."""
    late = """
from nbsync.worker.main import Worker
describe = Worker._describe
def slowly(self, outcome, run):
    described = describe(self, outcome, run)
    if outcome.error is None:
        print("ready", rank)
        time.sleep(1000)
    return described
"""
    pair.run(late).ok()
    pair.notebook.start(
        "import nbsync\ndef change(): Worker._describe = slowly; return 1\nnbsync.session().call(change)"
    )
    pair.wait_for_all("ready")
    pair.notebook.interrupt()
    assert "ranks 0-1: interrupted" in pair.notebook.wait(GUARD).failed("KeyboardInterrupt").evalue
    pair.run("Worker._describe = describe").ok()
    pair.assert_whole()


def test_row_16_a_cell_that_catches_it_on_one_rank(pair: Ranks) -> None:
    """It ends by the interrupt as long as one rank does."""
    cell = "try:\n    inject.sleep_forever()\nexcept KeyboardInterrupt:\n    if rank == 1: raise"
    error = pair.interrupted(cell).failed("KeyboardInterrupt")
    assert "rank 0: had finished" in error.traceback
    assert "rank 1: interrupted" in error.traceback
    pair.assert_whole()


def test_row_23_second_interrupt(pair: Ranks) -> None:
    """A rank whose code swallowed the first interrupt is named, and asked again by the second."""
    pair.begin("if rank == 1:\n    inject.swallow_interrupts(times=1)")
    pair.notebook.interrupt()
    time.sleep(LATER)
    pair.notebook.interrupt()
    outcome = pair.notebook.wait(GUARD)
    error = outcome.failed("KeyboardInterrupt")
    assert "rank 1 did not follow the interrupt" in outcome.stderr
    assert "rank 1: interrupted" in error.traceback
    assert "rank 0: had finished" in error.traceback
    pair.assert_whole()


def test_row_23_ignores_all(pair: Ranks) -> None:
    """A rank that ignores every interrupt keeps the cell no longer than the third; what to do is said."""
    pair.begin("if rank == 1:\n    inject.swallow_interrupts()\ndist.barrier()")
    for _ in range(3):
        pair.notebook.interrupt()
        time.sleep(LATER)
    outcome = pair.notebook.wait(GUARD)
    error = outcome.failed("KeyboardInterrupt")
    assert "rank 1 ignored every interrupt" in outcome.stderr
    assert "the variables there are lost by that" in outcome.stderr
    assert "rank 0: interrupted" in error.traceback
    pair.bring_back(1)


def test_row_24_interrupt_from_another_thread(pair: Ranks) -> None:
    """What a button does, `session.interrupt()` from another thread, is the same as the kernel's interrupt."""
    pair.notebook.run(
        "import nbsync, threading\nbutton = threading.Timer(1.0, nbsync.session().interrupt); button.start()"
    ).ok()
    error = pair.fail("if rank == 1:\n    inject.sleep_forever()\ndist.barrier()")
    assert "KeyboardInterrupt" in error.ename + error.evalue
    pair.assert_whole()


def test_row_25_time_limit(pair: Ranks) -> None:
    """A cell's time limit ends it, names the ranks that had not finished and says where they were."""
    outcome = pair.notebook.run("%%distributed --timeout 0.5\nif rank == 1:\n    inject.sleep_forever()", GUARD)
    error = outcome.failed("RunTimeout")
    assert "rank 1 had not finished" in error.evalue
    assert f"rank 1: interrupted at Cell In[{outcome.number}], line 3" in error.evalue
    assert "rank 0: had finished" in error.evalue
    assert outcome.seconds < 10
    pair.assert_whole()


def test_row_25_time_limit_in_a_collective(pair: Ranks) -> None:
    """The time limit frees ranks that are blocked in a collective."""
    cell = "%%distributed --timeout 0.5\nif rank == 1:\n    inject.sleep_forever()\ndist.barrier()"
    error = pair.notebook.run(cell, GUARD).failed("RunTimeout")
    assert "rank 0: interrupted" in error.evalue
    pair.assert_whole()


def test_row_22_interrupt_while_the_cell_is_sent(pair: Ranks) -> None:
    """An interrupt that comes before the kernel waits for its ranks ends the cell; the next one works."""
    cell = (
        "import os, signal, threading\nfrom nbsync.kernel.hub import Hub\nsend, sent = Hub.send, []\n"
        "again = threading.Timer(3, os.kill, [os.getpid(), signal.SIGINT]); again.start()\n"
        "def interrupted(*args):\n    send(*args)\n    if not sent:\n        sent.append(1); signal.raise_signal(2)\n"
        "Hub.send = interrupted\ntry:\n"
        "    get_ipython().run_cell_magic('distributed', '', 'inject.sleep_forever()')\n"
        "finally:\n    Hub.send = send; again.cancel()"
    )
    pair.notebook.run(cell, GUARD).failed("KeyboardInterrupt")
    try:
        pair.assert_whole()
    finally:
        pair.notebook.run("%nbsync restart", GUARD).ok()


def test_row_22_interrupt_after_every_delay(pair: Ranks) -> None:
    """An interrupt at any moment of a cell that runs ends it; the next cell always works."""
    cell = "print('begun', flush=True)\nfor _ in range(5000):\n    dist.all_reduce(torch.ones(1))"
    for delay in (0.0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03):
        pair.notebook.start(f"%%distributed\n{cell}")
        pair.notebook.wait_for_output("begun", GUARD)
        time.sleep(delay)
        pair.notebook.interrupt()
        pair.notebook.wait(GUARD).failed("KeyboardInterrupt")
        pair.assert_whole()


def test_row_16_in_the_import_of_the_compiler(fresh_notebook: Notebook) -> None:
    """A first model imports it: half of it would leave a rank that can make no model any more."""
    fresh_notebook.run("%load_ext nbsync\n%nbsync start -n 2").ok()
    make = "torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))"
    fresh_notebook.start(f"%%distributed\nprint('begun', rank)\n{make}\nwhile True: pass")
    for rank in (0, 1):
        fresh_notebook.wait_for_output(f"begun {rank}", GUARD)
    fresh_notebook.interrupt()
    fresh_notebook.wait(GUARD).failed("KeyboardInterrupt")
    fresh_notebook.run(f"%%distributed\n{make}(torch.ones(2, 4)).sum().backward()", GUARD).ok()
