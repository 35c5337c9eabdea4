"""Row 2: gloo closes a connection for good after a timeout, also where the user's code has caught the error."""

from __future__ import annotations

import pytest
from worlds import Ranks

_GROUP = """import datetime
limit = datetime.timedelta(seconds=0.5)
g = dist.new_group(list(range(world_size)))
def wait_at_most(seconds): dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), g)
DDP, ops = torch.nn.parallel.DistributedDataParallel, torch.ops._c10d_functional"""
_LATE = "wait_at_most(0.5)\nif rank: time.sleep(1.5)"


@pytest.fixture
def pair(pair: Ranks) -> Ranks:
    """Two ranks with a group of their own."""
    pair.run(_GROUP).ok()
    return pair


@pytest.mark.parametrize(
    "operation",
    [
        "dist.all_reduce(torch.ones(1), group=g)",
        "dist.all_reduce(torch.ones(1), group=g, async_op=True).wait()",
        "dist.monitored_barrier(group=g, timeout=limit)",
        "dist.all_reduce(torch.ones(1), group=g, async_op=True).get_future().wait()",
        "ops.wait_tensor(ops.all_reduce(torch.ones(1), 'sum', g.group_name))",
        "DDP(torch.nn.Linear(2, 2), process_group=g)",
    ],
)
def test_row_02_a_timeout_that_was_caught(pair: Ranks, operation: str) -> None:
    """The next cell finds the group whole, as after any other failure."""
    cell = f"{_LATE}\ntry:\n    {operation}\nexcept RuntimeError as error:\n    print('caught')"
    assert "caught" in pair.run(cell).ok().stdout
    assert pair.run("wait_at_most(60); t = torch.ones(1); dist.all_reduce(t, group=g); t.item()").ok().texts == [
        "[0-1] 2.0"
    ]
    pair.assert_whole()


def test_row_02_a_timeout_that_was_not_caught(pair: Ranks) -> None:
    """It is an error like any other, whose traceback ends in torch and not in ours."""
    outcome = pair.run(f"{_LATE}\ndist.all_reduce(torch.ones(1), group=g)")
    error = outcome.failed("RuntimeError")
    assert "Timed out waiting 500ms" in error.evalue
    assert f"Cell In[{outcome.number}], line 4" in error.traceback
    assert "distributed_c10d.py" in error.traceback
    assert "watch.py" not in error.traceback
    assert "_wait_in" not in error.traceback
    pair.assert_whole()


@pytest.mark.parametrize("hook", ["pass", "model.register_comm_hook(g, default_hooks.allreduce_hook)"])
def test_row_02_a_timeout_caught_in_a_backward_pass(pair: Ranks, hook: str) -> None:
    """It has closed the connection for good, although C++ has begun what timed out: so the next cell is healed."""
    pair.run(
        "from torch.distributed.algorithms.ddp_comm_hooks import default_hooks\n"
        f"model = DDP(torch.nn.Linear(2, 2), process_group=g)\n{hook}\n"
        "def loss(): return model(torch.ones(2)).sum()\nloss().backward()\nnow = loss()"
    ).ok()
    pair.run(f"{_LATE}\ntry:\n    now.backward()\nexcept RuntimeError:\n    pass").ok()
    pair.run("wait_at_most(60); dist.all_reduce(torch.ones(1), group=g)").ok()
    pair.run("loss().backward()\ndist.all_reduce(torch.ones(1), group=g)").ok()
    pair.assert_whole()


def test_row_02_released_while_a_value_is_shown(pair: Ranks) -> None:
    """What showing a value waits for is a collective like any other: not an error of its `repr`."""
    outcome = pair.run(
        "class Waits:\n    def __repr__(self): dist.barrier(); return 'together'\n"
        "if rank: inject.raise_error('row 2')\nWaits()"
    )
    error = outcome.failed("ValueError")
    assert outcome.stderr == ""
    assert f"rank 0: waited in barrier at Cell In[{outcome.number}], line 3" in error.traceback, error.traceback
    assert pair.run("Waits()").ok().texts == ["[0-1] together"]
    outcome = pair.run("class Differs:\n    def __repr__(self): dist.all_reduce(torch.ones(1 + rank))\nDiffers()")
    outcome.failed("CollectiveMismatch")
    assert outcome.stderr == ""
    pair.assert_whole()


def test_row_01_a_connection_of_the_users_own(pair: Ranks) -> None:
    """It says nothing of the groups: what is under way in them goes on."""
    pair.run("early = dist.all_reduce(torch.ones(1), async_op=True)").ok()
    pair.fail("raise ConnectionResetError('Connection reset by peer')", "ConnectionResetError")
    pair.run("early.wait()").ok()
    pair.assert_whole()
