"""Rows 11 to 15: ranks that wait for each other, and a rank that does not move. The world says who waits for whom."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from worlds import GUARD, LATER, MODEL, Ranks, Worlds

from notebooks import Notebook, poll

SIZES = [2, 4, 8]


@pytest.mark.parametrize("size", SIZES)
def test_row_11_missed_collective(world_of: Worlds, size: int) -> None:
    """Who waits where, and who had finished, is told, and nobody loses state."""
    ranks = world_of(size)
    outcome = ranks.run("dist.barrier()\ninject.miss_collective(rank=1)")
    error = outcome.failed("Deadlock")
    waiting = "rank 0 waits" if size == 2 else f"ranks 0,2-{size - 1} wait"
    assert re.search(rf"{waiting} in all_reduce #\d+ at Cell In\[{outcome.number}\], line 3", error.evalue)
    assert "rank 1 has finished" in error.evalue
    assert outcome.seconds < 30
    ranks.assert_whole()


def test_row_11_code_that_says_more_of_a_lost_connection(pair: Ranks) -> None:
    """Why the connection was lost is told; the error that was raised then stands below it."""
    wait = (
        "try: dist.all_reduce(torch.ones(1))\n    except RuntimeError as error: raise ValueError('row 11') from error"
    )
    error = pair.fail(f"if rank == 0:\n    {wait}", "Deadlock")
    assert re.search(r"rank 0 waits in all_reduce #\d+ at Cell In\[\d+\], line 3; rank 1 has finished", error.evalue)
    assert re.search(r"\nrank 0: ValueError: row 11 at Cell In\[\d+\], line 4", error.evalue)
    pair.assert_whole()


def test_row_15_what_a_rank_had_raised_before(fresh_notebook: Notebook) -> None:
    """A group that was not made again after a restart fails at once; its error is told with who then waits in vain."""
    made = "pairs = [dist.new_group([0, 1]), dist.new_group([0, 2])]\nt = torch.ones(1)\n"
    fresh_notebook.run("%load_ext nbsync\n%nbsync start -n 3", GUARD).ok()
    fresh_notebook.run(f"%%distributed\n{made}if rank != 1: dist.all_reduce(t, group=pairs[1])", GUARD).ok()
    fresh_notebook.run("%nbsync restart --ranks 2", GUARD).ok()
    cell = "%%on_rank 0,1\ndist.all_reduce(t, group=pairs[1 - rank])"
    error = fresh_notebook.run(cell, GUARD).failed("Deadlock")
    assert "rank 1 waits in all_reduce #1" in error.evalue
    assert re.search(r"\nrank 0: RuntimeError: .*Connection closed by peer.* at Cell In\[\d+\], line 2", error.evalue)


_TRAIN = """
from torch.nn.parallel import DistributedDataParallel as DDP
torch.manual_seed(rank)
layers = [torch.nn.Linear(40, 40) for _ in range(4)]
model = DDP(torch.nn.Sequential(*layers), bucket_cap_mb=0.01{options})
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def step():
    optimizer.zero_grad()
    model(torch.randn(2, 40)).square().mean().backward()
    optimizer.step()
def spread():
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    return (world.reduce(mine, "mean") - mine).abs().max().item() < 1e-6
"""
_OPTIONS = ["", ", static_graph=True", ", find_unused_parameters=True", ", gradient_as_bucket_view=True"]


def _assert_trains(ranks: Ranks) -> None:
    """The model takes steps, after which its parameters have changed and are equal on all ranks."""
    cell = (
        "before = layers[0].weight.detach().clone()\nfor _ in range(4): step()\n"
        "spread(), bool((before != layers[0].weight).any())"
    )
    assert ranks.run(cell).ok().texts == [f"[0-{ranks.size - 1}] (True, True)"]


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("options", _OPTIONS)
def test_row_11_missed_first_backward(world_of: Worlds, size: int, options: str) -> None:
    """A rank that misses the very first backward of a DDP model is told; the model can be trained afterwards."""
    ranks = world_of(size)
    ranks.run(_TRAIN.format(options=options)).ok()
    ranks.fail("if rank == 0:\n    step()", "Deadlock")
    _assert_trains(ranks)
    ranks.fail("if rank != 0:\n    step()")
    _assert_trains(ranks)
    ranks.assert_whole()


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("options", _OPTIONS)
def test_row_11_cut_between_the_first_steps(world_of: Worlds, size: int, options: str) -> None:
    """A rank raises where the others already rebuild their buckets: the model can be trained afterwards."""
    ranks = world_of(size)
    ranks.run(_TRAIN.format(options=options)).ok()
    ranks.fail("step()\nif rank == 1:\n    inject.raise_error()\nstep()", "ValueError")
    _assert_trains(ranks)
    ranks.assert_whole()


def test_row_11_graph_made_before_the_cut(pair: Ranks) -> None:
    """A backward pass through a graph from before a failure still averages the gradients."""
    pair.run(_TRAIN.format(options="") + "loss = model(torch.randn(2, 40)).square().mean()").ok()
    pair.fail("if rank == 1:\n    inject.raise_error()\ndist.barrier()", "ValueError")
    pair.run("loss.backward(); optimizer.step()").ok()
    assert pair.run("spread()").ok().texts == ["[0-1] True"]
    _assert_trains(pair)


def test_row_11_comm_hook_is_kept(pair: Ranks) -> None:
    """A model that is given a new reducer keeps the hook that reduces its gradients."""
    hook = (
        "from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook\nused = []\n"
        "def hook(group, bucket):\n    used.append(1)\n    return allreduce_hook(group, bucket)\n"
        "model.register_comm_hook(None, hook)"
    )
    pair.run(_TRAIN.format(options="") + hook).ok()
    pair.fail("if rank == 0:\n    step()", "Deadlock")
    pair.run("used.clear()").ok()
    _assert_trains(pair)
    assert pair.run("len(used) > 0").ok().texts == ["[0-1] True"]


def test_row_11_missed_backward(pair: Ranks) -> None:
    """A rank that misses DDP's backward is told as well; the model trains on."""
    pair.run(f"{MODEL}\nmodel(torch.ones(2, 4)).sum().backward()").ok()
    error = pair.fail("if rank == 0:\n    model(torch.ones(2, 4)).sum().backward()", "Deadlock")
    assert "rank 0 waits in" in error.evalue
    assert "rank 1 has finished" in error.evalue
    pair.run("model.zero_grad(); model(torch.ones(2, 4)).sum().backward()").ok()
    pair.assert_whole()


def test_row_11_cell_on_some_ranks(pair: Ranks) -> None:
    """A collective in a cell that runs on one rank only is told: the others do not run the cell."""
    error = pair.notebook.run("%%on_rank 0\ndist.barrier()", GUARD).failed("Deadlock")
    assert "rank 0 waits in barrier" in error.evalue
    assert "rank 1 does not run this cell" in error.evalue
    pair.assert_whole()


def test_row_11_late_rank_is_no_fault(pair: Ranks) -> None:
    """A rank that computes for longer than the watch looks is waited for."""
    pair.run("if rank == 1:\n    inject.loop_forever(2.5)\nt = torch.ones(1); dist.all_reduce(t)").ok()
    pair.run("if rank == 1:\n    inject.sleep_forever(2.5)\nt = torch.ones(1); dist.all_reduce(t)").ok()
    pair.assert_whole()


@pytest.fixture
def stopped(pair: Ranks) -> tuple[Ranks, int]:
    """A world whose rank 1 is stopped in a cell in which rank 0 waits for it, and the pid of rank 1."""
    pid = pair.pids()[1]
    pair.begin("if rank == 1:\n    inject.stop()\ndist.barrier()")
    return pair, pid


def test_row_12_stopped_rank_goes_on(stopped: tuple[Ranks, int]) -> None:
    """A stopped rank is no reason to break anything: when it is resumed the cell ends well."""
    ranks, pid = stopped
    os.kill(pid, signal.SIGCONT)
    ranks.notebook.wait(GUARD).ok()
    ranks.assert_whole()


def test_row_12_interrupt_frees_the_others(stopped: tuple[Ranks, int]) -> None:
    """An interrupt frees the other rank at once; the stopped one follows when it is resumed, and keeps its state."""
    ranks, pid = stopped
    ranks.notebook.interrupt()
    time.sleep(1.0)  # the others are free by then; the cell itself waits for the stopped rank
    os.kill(pid, signal.SIGCONT)
    error = ranks.notebook.wait(GUARD).failed("KeyboardInterrupt")
    assert re.search(r"ranks? 0(-1)?: interrupted", error.traceback)
    ranks.assert_whole()


def test_row_12_given_up_and_replaced(stopped: tuple[Ranks, int]) -> None:
    """After three interrupts the cell ends, names the rank, and `restart` replaces it without touching the other."""
    ranks, _ = stopped
    for _ in range(3):
        ranks.notebook.interrupt()
        time.sleep(LATER)
    outcome = ranks.notebook.wait(GUARD)
    error = outcome.failed("KeyboardInterrupt")
    assert "%nbsync restart --ranks 1" in outcome.stderr
    assert "rank 1: still running" in error.traceback
    assert "rank 1" in ranks.fail("1").evalue
    ranks.bring_back(1)


def test_row_12_process_state_is_told(stopped: tuple[Ranks, int]) -> None:
    """That the rank is stopped is said when its state is asked for."""
    ranks, pid = stopped
    ranks.notebook.interrupt()
    time.sleep(1.0)
    os.kill(pid, signal.SIGCONT)
    outcome = ranks.notebook.wait(GUARD)
    assert "stopped" in outcome.stderr + outcome.failed().traceback


@pytest.mark.parametrize("size", SIZES[:2])
def test_row_12_is_told_while_the_cell_runs(world_of: Worlds, size: int) -> None:
    """A stopped rank is told, and so is that it goes on; nobody has to ask, nothing is broken."""
    ranks = world_of(size)
    pid = ranks.pids()[1]
    ranks.notebook.start("%%distributed\nif rank == 1:\n    inject.stop()\ntime.sleep(1); dist.barrier()")
    ranks.notebook.wait_for_output(f"rank 1 is stopped by a signal; `kill -CONT {pid}` lets it go on", GUARD)
    os.kill(pid, signal.SIGCONT)
    outcome = ranks.notebook.wait(GUARD).ok()
    assert "rank 1 goes on" in outcome.stderr
    assert outcome.stderr.count("stopped") == 1
    ranks.assert_whole()


def test_row_12_uninterruptible_sleep(pair: Ranks) -> None:
    """A rank that waits for a dead disk is told; an interrupt frees the other, and it follows when it can."""
    pair.notebook.start("%%distributed\nif rank == 1:\n    inject.sleep_uninterruptibly(4)\ndist.barrier()")
    pair.notebook.wait_for_output("rank 1 is in uninterruptible sleep", GUARD)
    pair.notebook.interrupt()
    outcome = pair.notebook.wait(GUARD)
    error = outcome.failed("KeyboardInterrupt")
    assert "rank 0: interrupted in barrier" in error.traceback
    assert "rank 1: interrupted" in error.traceback
    pair.assert_whole()


@pytest.mark.parametrize("on_all", [False, True])
def test_row_13_endless_loop(pair: Ranks, on_all: bool) -> None:
    """An interrupt ends an endless loop, on one rank or all, and says where they were."""
    cell = "inject.loop_forever()" if on_all else "if rank == 1:\n    inject.loop_forever()\ndist.barrier()"
    error = pair.interrupted(cell).failed("KeyboardInterrupt")
    assert ("ranks 0-1: interrupted" if on_all else "rank 0: interrupted") in error.traceback
    pair.assert_whole()


def test_row_13_status_tells_line_and_time(fresh_notebook: Notebook) -> None:
    """While a cell runs in the background the status tells each rank's line, and for how long it has been there."""
    fresh_notebook.run("%nbsync start -n 2", GUARD).ok()
    cell = "%%distributed --background\nimport time\nif rank == 1:\n    while True: pass\ndist.barrier()"
    line = f"Cell In[{fresh_notebook.run(cell).ok().number}], line"
    time.sleep(2.5)
    said = fresh_notebook.run("%nbsync status").ok().stdout
    assert re.search(rf"  rank 0: at {re.escape(line)} 5, in barrier, for [23] s", said), said
    assert re.search(rf"  rank 1: at {re.escape(line)} 4, for [23] s", said), said
    fresh_notebook.run("%nbsync interrupt").ok()
    assert poll(lambda: "ranks 0-1: idle" in fresh_notebook.run("%nbsync status").stdout, GUARD, interval=0.2)


def test_row_14_c_code_holds_the_gil(pair: Ranks) -> None:
    """The other rank is free while one computes in C; that one follows when it is back, and keeps its state."""
    cell = "if rank == 1:\n    inject.hold_gil(3)\n    reached = True\n    inject.sleep_forever()\ndist.barrier()"
    error = pair.interrupted(cell).failed("KeyboardInterrupt")
    assert "rank 0: interrupted" in error.traceback
    assert "rank 1: interrupted" in error.traceback
    pair.assert_whole()


def test_row_14_backtracking_regex(pair: Ranks) -> None:
    """A regular expression that backtracks looks at signals, so the first interrupt ends it at once."""
    outcome = pair.interrupted("inject.backtrack(28)")
    outcome.failed("KeyboardInterrupt")
    assert outcome.seconds < 6


def test_row_14_stack_is_shown(pair: Ranks) -> None:
    """A rank that an interrupt cannot reach is named, with the line it is at and its stack; the other one is free."""
    pair.begin("if rank == 1:\n    inject.hold_gil(4)\n    inject.sleep_forever()\ndist.barrier()")
    pair.notebook.interrupt()
    pair.notebook.wait_for_output("in hold_gil", GUARD)
    outcome = pair.notebook.wait(GUARD)
    error = outcome.failed("KeyboardInterrupt")
    assert "rank 1 is in C code that lets no other thread run" in outcome.stderr
    assert "rank 0: interrupted in barrier" in error.traceback
    pair.assert_whole()


@pytest.mark.parametrize("number", ["SIGUSR2", "SIGRTMIN + 4"])
def test_row_14_signal_without_its_handler(pair: Ranks, number: str) -> None:
    """A rank whose code took the handler of a signal of nbsync away does not end by it."""
    pair.begin(f"signal.signal(signal.{number}, 0)\nif rank == 1:\n    inject.hold_gil(4)\ndist.barrier()")
    pair.notebook.interrupt()
    outcome = pair.notebook.wait(GUARD)
    error = outcome.failed("KeyboardInterrupt")
    assert "rank 1 is in C code that lets no other thread run" in outcome.stderr
    assert re.search(r"rank(s 0-| )1: (interrupted|waited in barrier)", error.traceback)
    pair.assert_whole()


def test_row_14_stack_is_shown_after_lost_handlers(pair: Ranks) -> None:
    """What puts all handlers back as Python knows them, as Lightning's Trainer does, costs only its own cell stacks."""
    pair.run("for number in signal.valid_signals() - {9, 19}: signal.signal(number, signal.getsignal(number))").ok()
    pair.begin("if rank == 1:\n    inject.hold_gil(4)\ndist.barrier()")
    pair.notebook.interrupt()
    pair.notebook.wait_for_output("in hold_gil", GUARD)
    pair.notebook.wait(GUARD).failed("KeyboardInterrupt")
    outcome = pair.run("if rank == 1: inject.segfault()\ndist.barrier()")
    outcome.failed("WorkerDied")
    assert "Segmentation fault" in outcome.stderr
    pair.bring_back(1)


def test_row_14_one_interrupt_is_one(pair: Ranks) -> None:
    """What the kernel sends past a helper thread that is only late does not interrupt the user's clean-up."""
    cell = (
        "if rank == 1:\n    try:\n        inject.hold_gil(2); time.sleep(100)\n"
        "    finally:\n        time.sleep(0.5); cleaned = True"
    )
    pair.interrupted(cell).failed("KeyboardInterrupt")
    assert pair.notebook.run("%%on_rank 1\ncleaned").ok().texts == ["[1] True"]
    pair.assert_whole()


def test_row_14_third_interrupt_gives_up(pair: Ranks) -> None:
    """A rank that stays in C for ever is given up on the third interrupt, and can be replaced."""
    pair.begin("if rank == 1:\n    inject.hold_gil(600)\ndist.barrier()")
    for _ in range(3):
        pair.notebook.interrupt()
        time.sleep(LATER)
    outcome = pair.notebook.wait(GUARD)
    error = outcome.failed("KeyboardInterrupt")
    assert "rank 0: interrupted" in error.traceback
    assert "rank 1: still running" in error.traceback
    assert "%nbsync restart --ranks 1" in outcome.stderr
    pair.bring_back(1)


@pytest.mark.parametrize("size", SIZES[:2])
def test_row_15_deadlock_in_recv(world_of: Worlds, size: int) -> None:
    """Ranks that all wait to receive are told that they wait for each other, and freed."""
    ranks = world_of(size)
    outcome = ranks.run("inject.deadlock_in_recv()")
    error = outcome.failed("Deadlock")
    for rank in range(size):
        assert re.search(rf"rank {rank} waits in recv for rank \d at Cell In\[{outcome.number}\], line 2", error.evalue)
    assert outcome.seconds < 30
    ranks.assert_whole()


def test_row_15_uneven_batches(pair: Ranks) -> None:
    """A rank with more batches waits in DDP's backward pass for one that has finished, and is told what helps."""
    pair.run(MODEL).ok()
    error = pair.fail("for _ in range(5 - rank): model(torch.ones(2, 4)).sum().backward()", "Deadlock")
    waits = r"rank 0 waits in all_reduce #\d+ of a backward pass at Cell In\[\d+\], line 2; rank 1 has finished"
    assert re.search(rf"{waits} \(`torch.distributed.algorithms.Join` ", error.evalue), error.evalue
    even = "from torch.distributed.algorithms import Join\nwith Join([model]):\n    "
    pair.run(f"{even}for _ in range(5 - rank): model(torch.ones(2, 4)).sum().backward()").ok()
    assert "Join" not in pair.fail("dist.barrier() if rank else None", "Deadlock").evalue
    pair.assert_whole()


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (
            "dist.all_reduce(torch.ones(1), async_op=True).wait() if rank == 0 else None",
            r"rank 0 waits in all_reduce #\d+",
        ),
        (
            "o = torch.ops._c10d_functional; o.wait_tensor(o.all_reduce(torch.ones(1), 'sum', '0')) if not rank else 0",
            r"rank 0 waits in all_reduce #\d+",
        ),
        ("dist.irecv(torch.ones(1), src=1).wait() if rank == 0 else None", "rank 0 waits in irecv for rank 1"),
        ("dist.irecv(torch.ones(1), src=1 - rank).wait()", "rank 0 waits in irecv for rank 1"),
    ],
)
def test_row_15_what_was_begun_earlier(pair: Ranks, cell: str, told: str) -> None:
    """A wait for what does not block is seen like any other, with the name of what is waited for where it is known."""
    outcome = pair.run(cell)
    error = outcome.failed("Deadlock")
    assert re.search(rf"{told} at Cell In\[{outcome.number}\], line 2", error.evalue), error.evalue
    pair.assert_whole()


def test_row_15_nobody_keeps_the_work_of_a_message(pair: Ranks) -> None:
    """A message whose `Work` is dropped at once arrives all the same, and blocks nothing that comes after it."""
    cell = """t = torch.zeros(3)
if rank == 0: dist.irecv(t, 1)
dist.barrier()
if rank == 1: dist.send(torch.ones(3), 0)
big = torch.full((3_000_000,), float(rank))
if rank == 1: dist.isend(big, 0)
dist.barrier()
if rank == 0: dist.recv(big, 1)
dist.barrier()
t.tolist() if rank == 0 else None, big[-1].item()"""
    assert pair.run(cell).ok().texts == ["[0] ([1.0, 1.0, 1.0], 1.0)", "[1] (None, 1.0)"]
    pair.assert_whole()


def test_row_15_wait_for_graph(pair: Ranks) -> None:
    """The message says for whom each rank waits."""
    error = pair.fail("inject.deadlock_in_recv()", "Deadlock")
    assert re.search(r"rank 0 .*(from|for) rank 1", error.evalue)
    assert re.search(r"rank 1 .*(from|for) rank 0", error.evalue)


def test_row_15_interrupt_before_it_is_recognised(pair: Ranks) -> None:
    """An interrupt ends it too; who waited where is told."""
    error = pair.interrupted("inject.deadlock_in_recv()").failed()
    assert "ranks 0-1: interrupted" in error.traceback
    pair.assert_whole()


_STARVES = """
import os, subprocess, sys
burn = "import time; end = time.monotonic() + 4\\nwhile time.monotonic() < end: pass"
def starve(grad):
    for _ in range(4 * len(os.sched_getaffinity(0))): subprocess.Popen([sys.executable, "-c", burn])
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
def recover(grad):
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
if rank == 1:
    x = torch.randn(700, 700, requires_grad=True)
    x.register_hook(recover)
    y = x
    for _ in range(20): y = y @ x
    y.register_hook(starve)
    y.sum().backward()
dist.barrier()
"""


def test_row_11_a_rank_that_gets_no_processor(pair: Ranks) -> None:
    """It uses none, as if it waited; it goes on when others leave it one."""
    pair.run(_STARVES).ok()
    pair.assert_whole()


_FEEDS = """
import threading
t = torch.zeros(1)
def feed():
    time.sleep(3)
    dist.send(torch.ones(1), 1)
if rank == 0:
    {thread}
    dist.recv(t, 1)
else:
    dist.recv(t, 0)
    dist.send(t, 0)
t.item()
"""


_THREADS = ["threading.Thread(target=feed).start()", "threading.Timer(3, dist.send, [torch.ones(1), 1]).start()"]


@pytest.mark.parametrize("thread", _THREADS)
def test_row_15_another_thread_sends(pair: Ranks, thread: str) -> None:
    """What another thread may yet do is waited for; that nobody goes on meanwhile is told."""
    outcome = pair.run(_FEEDS.format(thread=thread)).ok()
    assert outcome.texts == ["[0-1] 1.0"]
    assert outcome.stderr.count("Another thread of rank 0 may yet do what is waited for") == 1
    assert "Deadlock" in pair.fail("dist.recv(t, 1 - rank)").ename
    pair.assert_whole()
