"""Row 10: the ranks do not mean the same operation. Each side is told, and no number is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from worlds import GUARD, MODEL, Ranks, Worlds

from notebooks import Notebook

SIZES = [2, 4, 8]


@pytest.mark.parametrize(
    ("fault", "first", "second"),
    [
        ("mismatched_shapes", "all_reduce (2,) float32 sum", "all_reduce (3,) float32 sum"),
        ("mismatched_types", "all_reduce (2,) float32 sum", "all_reduce (2,) float64 sum"),
        ("mismatched_reductions", "all_reduce (2,) float32 sum", "all_reduce (2,) float32 max"),
        ("mismatched_operations", "all_reduce (2,) float32 sum", "broadcast (2,) float32 root 1"),
    ],
)
def test_row_10_mismatch(pair: Ranks, fault: str, first: str, second: str) -> None:
    """Both sides' operation, shape, type and line are told; nobody crashes, hangs or goes on with a wrong number."""
    outcome = pair.run(f"wrong = False\ninject.{fault}()\nwrong = True")
    error = outcome.failed("CollectiveMismatch")
    assert f"rank 0: {first} at Cell In[{outcome.number}], line 3" in error.evalue
    assert f"rank 1: {second} at Cell In[{outcome.number}], line 3" in error.evalue
    assert error.evalue.startswith("ranks 0-1: CollectiveMismatch")
    assert pair.run("wrong").ok().texts == ["[0-1] False"]
    pair.assert_whole()


@pytest.mark.parametrize("size", SIZES[1:])
def test_row_10_many_ranks(world_of: Worlds, size: int) -> None:
    """The odd one out can be seen in the list of ranks, in which equal ones share a line."""
    ranks = world_of(size)
    error = ranks.fail("inject.mismatched_shapes(rank=2)", "CollectiveMismatch")
    assert "rank 2: all_reduce (3,)" in error.evalue
    ranks.assert_whole()


#: The cell, the size of which it always tells, and a size for each other rank, of which it tells one at least: a rank
#: that is late may not have begun when the others have noticed.
_UNCOMPARED = [
    (
        "dist.send(torch.ones({b}), 1) if rank == 0 else dist.recv(torch.ones({a}), 0) if rank == 1 else 0",
        lambda a, b: (b, {a}),
    ),
    ("dist.all_reduce(torch.ones({a} if rank else {b}), async_op=True).wait()", lambda a, b: (b, {a})),
    ("dist.broadcast(torch.ones({a} if rank else {b}), 0, async_op=True).wait()", lambda a, b: (b, {a})),
    (
        "dist.all_gather([torch.ones({a} + rank)] * world_size, torch.ones({a} + rank), async_op=True).wait()",
        lambda a, b: (a, {a + 1, a + 2, a + 3}),
    ),
]


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("numbers", [(10, 1000), (1000, 10), (300_000, 3_000_000), (3_000_000, 300_000)])
@pytest.mark.parametrize(("cell", "sizes"), _UNCOMPARED)
def test_row_10_not_compared_before(
    world_of: Worlds,
    size: int,
    numbers: tuple[int, int],
    cell: str,
    sizes: Callable[[int, int], tuple[int, set[int]]],
) -> None:
    """Where nobody waits for the others to compare first, too much is an error, too little no wrong number."""
    ranks, (a, b) = world_of(size), numbers
    first, others = sizes(a, b)
    outcome = ranks.run(cell.format(a=a, b=b))
    error = outcome.failed("CollectiveMismatch")
    told = re.findall(rf"ranks? \S+: (\w+ \(\d+,\) float32.*) at Cell In\[{outcome.number}\], line 2", error.evalue)
    assert any(f" ({first},) " in each for each in told), error.evalue
    assert any(f" ({number},) " in each for each in told for number in others), error.evalue
    ranks.assert_whole()


def test_row_10_messages_are_known_by_their_order(pair: Ranks) -> None:
    """Each of several messages under way is compared with the one that it is, also one that a thread has sent."""
    cell = """
    import threading
    sizes = [3, 5, 7]
    if rank == 0:
        work = [dist.isend(torch.ones(size), 1, tag=size) for size in sizes]
        threading.Thread(target=dist.send, args=(torch.ones(2), 1)).start()
        for each in work: each.wait()
        dist.send(torch.ones(4), 1)
    else:
        received = [torch.zeros(size) for size in (2, *reversed(sizes), 4)]
        for each in received: dist.recv(each, 0, tag=each.numel() if each.numel() % 2 else 0)
        assert all(each.sum() == each.numel() for each in received)
    """
    pair.run("if True:\n" + cell).ok()
    refused = "    try: dist.broadcast(torch.ones(1), 5, async_op=True)\n    except RuntimeError: print('refused')"
    outcome = pair.run(f"if rank:\n{refused}\ndist.all_reduce(torch.ones(1), async_op=True).wait()").ok()
    assert outcome.stdout == "[1] refused\n"
    pair.run("dist.send(torch.ones(9), 1) if rank == 0 else dist.recv(torch.ones(9))").ok()
    pair.run("for size in (3, 4): dist.send(torch.ones(size), 1) if rank == 0 else dist.recv(torch.ones(size), 0)").ok()
    pair.fail("if rank == 0: inject.raise_error('row 10')\ndist.barrier()", "ValueError")  # a new life
    pair.run("dist.send(torch.ones(2, 3), 1) if rank == 0 else dist.recv(torch.ones(6), 0)").ok()
    error = pair.fail("dist.send(torch.ones(6).int(), 1) if rank == 0 else dist.recv(torch.ones(6), 0)")
    assert "rank 0: send (6,) int32" in error.evalue
    pair.assert_whole()


def test_row_10_what_is_right_is_let_through(pair: Ranks) -> None:
    """Other shapes of as many elements, operations begun before a heal, and torch's own ways to call."""
    pair.run("dist.broadcast(torch.ones(2, 3) if rank else torch.ones(6), 0, async_op=True).wait()").ok()
    pair.run(
        "early = dist.all_reduce(torch.ones(7), async_op=True)\nwhile not early.is_completed(): time.sleep(0.01)"
    ).ok()
    pair.fail("if rank == 0: inject.raise_error('row 10')\ndist.barrier()", "ValueError")
    pair.run("dist.all_reduce(torch.ones(5), async_op=True).wait(); early.wait()").ok()
    pair.run(
        "group = dist.group.WORLD\nt = torch.ones(3)\ngroup.allreduce(tensors=[t]).wait()\n"
        "(group.send([t], dstRank=1, tag=2) if rank == 0 else group.recv([t], srcRank=0, tag=2)).wait()"
    ).ok()
    pair.assert_whole()


def test_row_10_threads_compare_too(pair: Ranks) -> None:
    """Who takes part in a collective with a thread of its own compares like the others."""
    cell = """import threading
t = torch.ones(1)
thread = threading.Thread(target=dist.all_reduce, args=(t,))
thread.start() if rank else dist.all_reduce(t)
if rank: thread.join()
t.item()"""
    assert pair.run(cell).ok().texts == ["[0-1] 2.0"]
    pair.assert_whole()


def test_row_10_on_another_default_device(pair: Ranks) -> None:
    """What the ranks compare lies on the CPU, wherever the user's tensors are made."""
    pair.run("with torch.device('meta'): dist.barrier()").ok()
    error = pair.fail("with torch.device('meta'): dist.all_reduce(torch.ones(2 + rank, device='cpu'))")
    assert "rank 1: all_reduce (3,) float32" in error.evalue
    pair.assert_whole()


_MODES = """
import torch.distributed._functional_collectives as functional
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor.debug import CommDebugMode
from torch.overrides import TorchFunctionMode
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        seen.append(function.__name__)
        return function(*args, **(kwargs or {}))
class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        seen.append(str(operator))
        return operator(*args, **(kwargs or {}))
def work():
    dist.all_reduce(t)
    dist.broadcast(t, 0)
    dist.all_reduce(t, async_op=True).wait()
    dist.send(t, 1) if rank == 0 else dist.recv(t, 0)
t, seen = torch.ones(2), []
"""


def test_row_10_the_users_modes(pair: Ranks) -> None:
    """They see what the user does, and nothing by which the ranks compare it."""
    pair.run(_MODES).ok()
    pair.run(
        "with Functions(): work()\nmessage = ('send', 'recv')[rank]\n"
        "assert seen == ['all_reduce', 'broadcast', 'all_reduce', message], seen\n"
        "del seen[:]\nwith Functions(): functional.wait_tensor(functional.all_reduce(t, 'sum', dist.group.WORLD))\n"
        "assert not {'untyped_storage', 'numel', '__get__'}.intersection(seen), seen"
    ).ok()
    pair.run(
        "del seen[:]\nwith Operators(): work()\n"
        "names = 'allreduce_', 'broadcast_', 'allreduce_', ('send', 'recv_')[rank]\n"
        "assert seen == [f'c10d.{name}.default' for name in names], seen\n"
        "with CommDebugMode() as mode: dist.all_reduce(t)\nassert mode.get_total_counts() == 1"
    ).ok()
    pair.run(
        "with profile() as profiled: work()\nfound = {each.key: each.count for each in profiled.key_averages()}\n"
        "assert found['c10d::allreduce_'] == 2 >= found.get('gloo:all_reduce', 0), found\n"
        "assert not any(name.startswith('aten') for name in found), found"
    ).ok()
    pair.run("with FakeTensorMode(): dist.all_reduce(torch.ones(2))").ok()
    for mode in ("CommDebugMode", "Functions", "profile", "FakeTensorMode"):
        error = pair.fail(f"with {mode}(): dist.all_reduce(torch.ones(2 + rank))", "CollectiveMismatch")
        assert "rank 1: all_reduce (3,) float32" in error.evalue
    pair.assert_whole()


def test_row_10_uneven_inputs(pair: Ranks) -> None:
    """In torch's `Join` a rank without data answers for the others: it blocks where they do not."""
    cell = f"{MODEL}\nwith model.join():\n    for _ in range(2 + 3 * rank): model(torch.ones(1, 4)).sum().backward()"
    pair.run(cell).ok()
    same = "t = model.module.weight.detach().clone(); dist.broadcast(t, 0); torch.equal(t, model.module.weight)"
    assert pair.run(same).ok().texts == ["[0-1] True"]
    pair.assert_whole()


def test_row_10_the_line_is_that_of_this_run(pair: Ranks) -> None:
    """The same cell, run again, is told by its new number."""
    for cell in ("dist.all_reduce(torch.ones(1 + rank))", _UNCOMPARED[0][0].format(a=3, b=4)):
        for _ in range(2):
            outcome = pair.run(cell)
            assert outcome.failed("CollectiveMismatch").evalue.count(f"at Cell In[{outcome.number}], line 2") == 2


_DROPPED = """
import gc, threading
from nbsync.worker.groups import uncaught, watch
(watching,) = (thing for thing in gc.get_objects() if isinstance(thing, watch.CollectiveWatch))
came, thrown = threading.Event(), uncaught._thrown
def slowly(memory):
    came.set()
    time.sleep(0.1)
    return thrown(memory)
if rank == 0: dist.send(torch.ones(1000), 1)
else:
    uncaught._thrown = slowly
    work = dist.irecv(torch.ones(10), 0)
    came.wait(10)
    watching.underway._held.clear()
    del work
    uncaught._thrown = thrown
"""


def test_row_10_nobody_waits_for_what_is_too_long(pair: Ranks) -> None:
    """Also a rank that drops the operation while its end is being seen to goes on."""
    for _ in range(2):
        pair.run(_DROPPED).ok()
        pair.assert_whole()


@pytest.mark.parametrize("size", SIZES[:2])
def test_row_10_comparing_is_off(fresh_notebook: Notebook, size: int) -> None:
    """What gloo ends processes for is an error all the same, as often as it happens."""
    fresh_notebook.run(f"import nbsync\nsession = nbsync.Session({size}, compare_collectives=False)", GUARD).ok()
    ranks = Ranks(fresh_notebook, size)
    ranks.mark()
    for _ in range(3):
        for cell in ("dist.all_reduce(torch.ones(9 + 99 * rank))", _UNCOMPARED[0][0].format(a=9, b=99)):
            assert "expected: the ranks are not in the same operation" in ranks.fail(cell, "CollectiveMismatch").evalue
            ranks.assert_whole()


def test_row_10_other_order(pair: Ranks) -> None:
    """Two collectives in another order are told with the lines of both, once for all ranks."""
    cell = (
        "t = torch.ones(1)\nif rank == 0:\n    dist.all_reduce(t)\n    dist.barrier()\n"
        "else:\n    dist.barrier()\n    dist.all_reduce(t)"
    )
    outcome = pair.run(cell)
    error = outcome.failed("CollectiveMismatch")
    assert re.search(rf"rank 0: all_reduce .* at Cell In\[{outcome.number}\], line 4", error.evalue)
    assert re.search(rf"rank 1: barrier at Cell In\[{outcome.number}\], line 7", error.evalue)
    assert error.evalue.startswith("ranks 0-1: CollectiveMismatch")
    assert error.evalue.count("the ranks are not in the same collective") == 1
    pair.assert_whole()


def test_row_10_different_barriers(pair: Ranks) -> None:
    """Ranks that are in barriers of different names are both named."""
    error = pair.fail("world.wait_for_everyone('start' if rank else 'end')")
    assert "start" in error.evalue
    assert "end" in error.evalue
    pair.assert_whole()


_OPERATIONS = """
import torch.distributed._functional_collectives as functional
from torch.nn.parallel import DistributedDataParallel
t = torch.ones(2)
dist.all_reduce(t)
dist.all_reduce(t, async_op=True).get_future().wait()
summed = functional.all_reduce(torch.ones(2), "sum", dist.group.WORLD) + 0
model = DistributedDataParallel(torch.nn.Linear(2, 1))
model(t).sum().backward()
t[0].item(), summed[0].item(), model.module.bias.grad.item()
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("_C._collect_all", "what is waited for by a future"),
        ("_C._current_graph_task_id", "what DDP does in C++"),
        ("ops._c10d_functional.broadcast.default._op_dk", "functional collectives, such as those of DTensor"),
    ],
)
def test_row_10_another_torch(fresh_notebook: Notebook, name: str, told: str) -> None:
    """One that lacks what only the comparison needs: it is told what is not compared, and the rest works."""
    fresh_notebook.run(f"import torch, torch.distributed\ndel torch.{name}").ok()
    first = fresh_notebook.run(f"%%distributed\n{_OPERATIONS}", GUARD).ok()
    lack = f"torch {torch.__version__} has no torch.{name}"
    assert f"[0-1] nbsync: the ranks do not compare {told}: {lack}\n" in first.stderr
    assert first.texts[-1] == "[0-1] (4.0, 2.0, 1.0)"
    outcome = fresh_notebook.run("%%distributed\ndist.all_reduce(torch.ones(2 + rank))", GUARD)
    assert "all_reduce (3,)" in outcome.failed("CollectiveMismatch").evalue
