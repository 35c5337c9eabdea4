"""Row 10: who waits for the future of a collective is told as who waits for the collective."""

from __future__ import annotations

import pytest
from worlds import Ranks

_BEGIN = """
def begin(more=0, op=dist.ReduceOp.SUM):
    return dist.all_reduce(torch.ones(3 + more), op=op, async_op=True).get_future()
def differing():
    return begin(op=dist.ReduceOp.SUM if rank else dist.ReduceOp.MAX)
"""
_DDP = """
def train(hook):
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 4))
    model.register_comm_hook(None, hook)
    for _ in range(3): model(torch.ones(2, 8)).sum().backward()
"""
_TOLD = ["the ranks are not in the same collective", "rank 0: all_reduce (3,) float32 max", "rank 1: all_reduce (3,)"]


@pytest.mark.parametrize(
    "wait",
    [
        "differing().wait()",
        "future = differing()\nwhile not future.done(): pass\nfuture.value()",
        "differing().then(lambda future: future.value()).wait()",
        "torch.futures.wait_all([differing()])",
        "torch.futures.collect_all([differing()]).wait()[0].wait()",
        "def step(future): return differing().wait()\nbegin().then(step).wait()",
    ],
)
def test_row_10_ranks_that_mean_different_operations(pair: Ranks, wait: str) -> None:
    """Whichever way they come to the numbers, which are wrong, they are told."""
    error = pair.fail(f"{_BEGIN}{wait}")
    assert all(told in error.evalue for told in _TOLD), error.evalue
    pair.assert_whole()


def test_row_10_a_communication_hook_of_two_stages(pair: Ranks) -> None:
    """The second begins on a thread of gloo's, as with PowerSGD."""
    hook = """
def hook(state, bucket):
    def second(future):
        op = dist.ReduceOp.{op}
        return dist.all_reduce(future.value()[0], op=op, async_op=True).get_future().wait()[0]
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(second)
train(hook)"""
    pair.run(_DDP + hook.format(op="SUM")).ok()
    error = pair.fail(_DDP + hook.format(op="SUM if rank else dist.ReduceOp.MAX"))
    assert "the ranks are not in the same collective" in error.evalue
    pair.run(_DDP + hook.format(op="SUM")).ok()
    pair.assert_whole()


@pytest.mark.parametrize("wait", ["begin().wait()", "begin().then(lambda future: future.value()).wait()"])
def test_row_11_a_rank_that_does_not_come(pair: Ranks, wait: str) -> None:
    """Who waits for a future is seen as waiting, and for which collective."""
    error = pair.fail(f"{_BEGIN}if rank == 0:\n    {wait}", "Deadlock")
    assert "rank 0 waits in all_reduce #" in error.evalue
    assert "rank 1 has finished" in error.evalue
    pair.assert_whole()


def test_row_02_a_future_that_was_cut_off(pair: Ranks) -> None:
    """It says so in the next cell."""
    pair.run(f"{_BEGIN}early = begin() if rank == 0 else None").ok()
    pair.fail("if rank == 1: inject.raise_error('row 2')\ndist.barrier()", "ValueError")
    told = "this all_reduce was cut off when a cell failed before it had ended"
    assert told in pair.fail("if rank == 0: early.wait()").evalue
    pair.assert_whole()


def test_row_10_futures_of_the_users_own(pair: Ranks) -> None:
    """They are left alone."""
    cell = """
import threading
future = torch.futures.Future()
threading.Timer(0.2, future.set_result, [3]).start()
future.then(lambda done: done.value() + 1).wait(), future.wait(), future.value()"""
    assert pair.run(cell).ok().texts == ["[0-1] (4, 3, 3)"]
    pair.assert_whole()


def test_row_10_what_was_begun_before_a_heal(pair: Ranks) -> None:
    """An error of the user's own is told as such, although the operations are counted from zero again."""
    pair.run(
        "from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook\n"
        f"{_DDP}train(allreduce_hook)\nx = torch.ones(2, requires_grad=True)"
    ).ok()
    pair.fail("if rank == 1: inject.raise_error('row 2')\ndist.barrier()", "ValueError")
    pair.run("for _ in range(40): dist.all_reduce(torch.ones(3), async_op=True).wait()").ok()
    error = pair.fail("loss = (x * x).sum()\nloss.backward()\nloss.backward()", "RuntimeError")
    assert "backward through the graph a second time" in error.evalue
    pair.assert_whole()
