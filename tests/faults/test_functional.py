"""Row 10 for functional collectives: those of DTensor, of autograd, and of compiled functions."""

from __future__ import annotations

import pytest
from worlds import Ranks

from nbsync.protocol import userlines

SETUP = """import torch.distributed._functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
world_group = dist.group.WORLD
ops = torch.ops._c10d_functional
name = world_group.group_name
mesh = init_device_mesh("cpu", (world_size,))"""

#: Each operator, on a tensor `t`: its name in errors, the cell, and what two ranks get of ones.
OPERATORS = [
    ("all_reduce", "ops.all_reduce(t, 'sum', name)", "2.0, 2.0"),
    ("all_reduce", "ops.all_reduce_(t, 'sum', name)", "2.0, 2.0"),
    ("all_reduce_coalesced", "ops.all_reduce_coalesced([t], 'sum', name)[0]", "2.0, 2.0"),
    ("all_gather_into_tensor", "ops.all_gather_into_tensor(t, 2, name)", "1.0, 1.0, 1.0, 1.0"),
    ("all_gather_into_tensor", "ops.all_gather_into_tensor_out(t, 2, name, out=t.repeat(2))", "1.0, 1.0, 1.0, 1.0"),
    ("all_reduce_coalesced", "ops.all_reduce_coalesced_([t], 'sum', name)[0]", "2.0, 2.0"),
    (
        "all_gather_into_tensor_coalesced",
        "ops.all_gather_into_tensor_coalesced([t], 2, name)[0]",
        "1.0, 1.0, 1.0, 1.0",
    ),
    ("reduce_scatter_tensor", "ops.reduce_scatter_tensor(t, 'sum', 2, name)", "2.0"),
    ("reduce_scatter_tensor", "ops.reduce_scatter_tensor_out(t, 'sum', 2, name, out=t[: len(t) // 2].clone())", "2.0"),
    ("reduce_scatter_tensor_coalesced", "ops.reduce_scatter_tensor_coalesced([t], 'sum', 2, name)[0]", "2.0"),
    ("broadcast", "ops.broadcast(t, 0, name)", "1.0, 1.0"),
    ("broadcast", "ops.broadcast_(t, 0, name)", "1.0, 1.0"),
]


@pytest.fixture
def pair(pair: Ranks) -> Ranks:
    """Two ranks that have what these tests use."""
    pair.run(SETUP).ok()
    return pair


@pytest.mark.parametrize(("name", "cell", "numbers"), OPERATORS)
def test_row_10_functional(pair: Ranks, name: str, cell: str, numbers: str) -> None:
    """What differs is told with both sides and their lines; what agrees gives the numbers that torch gives."""
    outcome = pair.run(f"t = torch.ones(2 + 2 * rank)\nx = {cell}\nops.wait_tensor(x)\nwrong = True")
    error = outcome.failed("CollectiveMismatch")
    assert f"rank 0: {name} (2,) float32" in error.evalue
    assert f"rank 1: {name} (4,) float32" in error.evalue
    assert error.evalue.count(f"at Cell In[{outcome.number}], line 3") == 2, error.evalue
    pair.assert_whole()
    assert pair.run(f"t = torch.ones(2)\nops.wait_tensor({cell}).tolist()").ok().texts == [f"[0-1] [{numbers}]"]


def test_row_10_functional_reductions_and_roots(pair: Ranks) -> None:
    """Gloo does not notice these: the numbers would be wrong."""
    error = pair.fail("functional.all_reduce(torch.ones(3), 'max' if rank else 'sum', world_group) + 1")
    assert "rank 0: all_reduce (3,) float32 sum" in error.evalue
    assert "rank 1: all_reduce (3,) float32 max" in error.evalue
    for cell in (
        "functional.broadcast(torch.ones(3), rank, world_group) + 1",
        "dist.broadcast(torch.ones(3), rank, async_op=True).wait()",  # each is a root that waits for the other
    ):
        error = pair.fail(cell, "CollectiveMismatch")
        assert "rank 0: broadcast (3,) float32 root 0" in error.evalue
        assert "rank 1: broadcast (3,) float32 root 1" in error.evalue
    pair.assert_whole()


def test_row_10_functional_in_another_order(pair: Ranks) -> None:
    """Ranks that use the results of different ones would wait for each other."""
    cell = (
        "if rank: x = functional.all_reduce(torch.ones(3), 'sum', world_group)\n"
        "else: x = ops.all_gather_into_tensor(torch.ones(3), 2, name)\n"
        "ops.wait_tensor(x)"
    )
    outcome = pair.run(cell)
    error = outcome.failed("CollectiveMismatch")
    assert f"rank 0: all_gather_into_tensor (3,) float32 at Cell In[{outcome.number}], line 3" in error.evalue
    assert f"rank 1: all_reduce (3,) float32 sum at Cell In[{outcome.number}], line 2" in error.evalue
    pair.assert_whole()


def test_row_10_functional_of_much(pair: Ranks) -> None:
    """Nothing is done for each number: to show all of them would take minutes."""
    cell = "t = torch.ones(5_000_000)\n(functional.all_reduce(t, 'sum', world_group)[0] + 1).item()"
    assert pair.run(cell, timeout=60).ok().texts == ["[0-1] 3.0"]


def test_row_10_functional_and_other_asynchronous_ones(pair: Ranks) -> None:
    """They are one kind of operation: ranks may begin it either way."""
    cell = (
        "t = torch.ones(3)\n"
        "if rank: dist.all_reduce(t, async_op=True).wait()\n"
        "else: t = functional.all_reduce(t, 'sum', world_group) + 0\n"
        "t.tolist()"
    )
    assert pair.run(cell).ok().texts == ["[0-1] [2.0, 2.0, 2.0]"]


def test_row_10_dtensor(pair: Ranks) -> None:
    """Ranks that do not redistribute alike are told so, in the forward and in the backward pass."""
    cell = (
        "d = DTensor.from_local(torch.ones(2, 2), mesh, [Shard(0)], run_check=False)\n"
        "whole = d.full_tensor() if rank else d.sum().full_tensor()"
    )
    outcome = pair.run(cell)
    error = outcome.failed("CollectiveMismatch")
    assert f"rank 0: all_reduce () float32 sum at Cell In[{outcome.number}], line 3" in error.evalue
    assert f"rank 1: all_gather_into_tensor (2, 2) float32 at Cell In[{outcome.number}], line 3" in error.evalue
    pair.assert_whole()
    cell = (
        "t = torch.ones(2 + 2 * rank, requires_grad=True)\n"
        "x = functional.reduce_scatter_tensor_autograd(t, 'sum', 0, world_group)\n"
        "x.sum().backward()"
    )
    pair.fail(cell, "CollectiveMismatch")
    pair.assert_whole()
    assert pair.run("d.full_tensor().sum().item()").ok().texts == ["[0-1] 8.0"]


def test_row_10_compiled(pair: Ranks) -> None:
    """What torch.compile has made of a collective is compared when it runs."""
    pair.run(
        "@torch.compile(backend='aot_eager', fullgraph=True)\n"
        "def total(t):\n"
        "    t = t * 2\n"
        "    dist.all_reduce(t)\n"
        "    return t"
    ).ok()
    assert pair.run("total(torch.ones(2)).tolist()").ok().texts == ["[0-1] [4.0, 4.0]"]
    error = pair.fail("total(torch.ones(2 + rank))", "CollectiveMismatch")
    assert "rank 1: all_reduce (3,) float32 sum at Cell In[" in error.evalue
    pair.assert_whole()
    assert pair.run("total(torch.ones(2)).tolist()").ok().texts == ["[0-1] [4.0, 4.0]"]


def test_the_file_of_a_compiled_function_is_not_the_users() -> None:
    """It has the name of its contents; a line of it tells the user nothing."""
    compiled = "/tmp/torchinductor_me/h7/ch7iu3toipsszdb7fzmvucdovdqv7arwsvtus7hxashgithtri5h.py"
    assert not userlines.is_users(compile("1", compiled, "eval"))
    assert userlines.is_users(compile("1", "/home/me/h7/ch7iu3.py", "eval"))


def test_row_42_functional_collectives_before_a_heal(pair: Ranks) -> None:
    """One that ended before is right afterwards; one that was cut off says so."""
    begin = "x = functional.all_reduce(torch.ones(3), 'sum', world_group)"
    pair.fail(f"{begin}\nx + 1\nif rank: raise ValueError", "ValueError")
    assert pair.run("(x + 1).tolist()").ok().texts == ["[0-1] [3.0, 3.0, 3.0]"]
    pair.fail(f"if rank: raise ValueError\n{begin}\nx + 1", "ValueError")
    pair.run(f"if rank == 0: {begin}").ok()
    pair.fail("raise ValueError", "ValueError")
    pair.assert_whole()
    error = pair.fail("x + 1 if rank == 0 else None", "OperationCutOff")
    assert "this all_reduce was cut off when a cell failed before it had ended" in error.evalue
    pair.assert_whole()


def test_row_01_and_16_functional(pair: Ranks) -> None:
    """A rank that waits for one is released by its name, or interrupted, like in any other collective."""
    wait = "x = functional.all_reduce(torch.ones(3), 'sum', world_group)\nx + 1"
    outcome = pair.run(f"if rank: raise ValueError\n{wait}")
    error = outcome.failed("ValueError")
    assert f"rank 0: waited in all_reduce at Cell In[{outcome.number}], line 4" in error.traceback
    pair.assert_whole()
    outcome = pair.interrupted(f"if rank: time.sleep(60)\n{wait}")
    error = outcome.failed("KeyboardInterrupt")
    assert f"rank 0: interrupted in all_reduce at Cell In[{outcome.number}], line 5" in error.traceback
    pair.assert_whole()
