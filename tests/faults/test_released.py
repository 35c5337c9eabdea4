"""Row 2: one rank raises while the others are blocked with it, in whatever way; models built before train on."""

from __future__ import annotations

import re

import pytest
from worlds import Ranks, Worlds

SIZES = [2, 4, 8]

_MODELS = """
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
ddp = DDP(net())
sharded = net()
fully_shard(sharded, mesh=init_device_mesh("cpu", (world_size,)))
models = {"ddp": ddp, "fsdp": sharded}
optimizers = {name: torch.optim.AdamW(model.parameters(), lr=0.1) for name, model in models.items()}
firsts = dist.new_group([0, 1])
everyone = dist.new_group(list(range(world_size)))
def whole(model):
    parts = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in parts])
def train(name):
    model, optimizer = models[name], optimizers[name]
    optimizer.zero_grad()
    x = torch.full((4, 8), float(rank + 1))
    before = whole(model)
    model(x).square().mean().backward()
    optimizer.step()
    after = whole(model)
    assert torch.isfinite(after).all() and not torch.equal(before, after)
    all_of_them = [torch.empty_like(after) for _ in range(world_size)]
    dist.all_gather(all_of_them, after)
    assert all(torch.equal(after, other) for other in all_of_them)
    return "trained"
"""

_BLOCKED = {
    "barrier": "dist.barrier()",
    "all_reduce": "dist.all_reduce(torch.ones(1))",
    "all_gather": "dist.all_gather([torch.ones(1) for _ in range(world_size)], torch.ones(1))",
    "broadcast": "dist.broadcast(torch.ones(1), src=1)",
    "recv": "dist.recv(torch.ones(1), src=1)",
    "async all_reduce": "dist.all_reduce(torch.ones(1), async_op=True).wait()",
    "monitored_barrier": "dist.monitored_barrier()",
    "wait_for_everyone": "world.wait_for_everyone('row 2')",
    "wait_for_everyone with timeout": "world.wait_for_everyone('row 2', timeout=15)",
    "gather_object": "world.gather_object({'rank': rank})",
    "all_gather_object": "dist.all_gather_object([None] * world_size, rank)",
    "broadcast_object_list": "dist.broadcast_object_list([None], src=1)",
    "subgroup": "dist.all_reduce(torch.ones(1), group=everyone)",
    "new_group": "dist.new_group(list(range(world_size)))",
    "main_process_first": "with world.main_process_first(): pass",
    "DDP backward": "ddp(torch.ones(2, 8)).sum().backward()",
    "DDP construction": "DDP(net())",
    "FSDP2 forward": "sharded(torch.ones(2, 8))",
}


def _build(ranks: Ranks) -> None:
    """Models, an optimizer for each, and groups, made before the fault; once for the workers of a world."""
    if ranks.run("'sharded' in globals()").texts != [f"[0-{ranks.size - 1}] True"]:
        ranks.run(_MODELS).ok()
        _train_on(ranks)


def _train_on(ranks: Ranks) -> None:
    """A step of both models: all ranks' parameters are the same, and have changed."""
    shown = ranks.run("[train('ddp'), train('fsdp')]").ok().texts
    assert shown == [f"[0-{ranks.size - 1}] ['trained', 'trained']"]


@pytest.mark.parametrize("blocked", _BLOCKED)
def test_row_02_one_raises_others_are_blocked(pair: Ranks, blocked: str) -> None:
    """The rank that failed is the error, the other's part is one line, and training goes on with equal parameters."""
    _build(pair)
    outcome = pair.run(f"if rank == 1:\n    inject.raise_error('row 2')\n{_BLOCKED[blocked]}")
    error = outcome.failed("ValueError")
    first, *rest = error.evalue.splitlines()
    assert first == "rank 1: ValueError: row 2"
    assert len(rest) == 1, error.evalue
    assert re.match(rf"rank 0: waited in \w+.* at .*Cell In\[{outcome.number}\], line 4", rest[0]), rest
    pair.assert_whole()
    _train_on(pair)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("blocked", ["all_reduce", "wait_for_everyone", "DDP backward", "FSDP2 forward"])
def test_row_02_many_ranks_are_released(world_of: Worlds, size: int, blocked: str) -> None:
    """With more ranks all others are folded into one line, wherever in the operation they were."""
    ranks = world_of(size)
    _build(ranks)
    error = ranks.fail(f"if rank == 2:\n    inject.raise_error('row 2')\n{_BLOCKED[blocked]}", "ValueError")
    first, *rest = error.evalue.splitlines()
    assert first == "rank 2: ValueError: row 2"
    assert len(rest) == 1, error.evalue
    assert rest[0].startswith(f"ranks 0-1,{'3' if size == 4 else '3-7'}: waited in ")
    ranks.assert_whole()
    _train_on(ranks)


@pytest.mark.parametrize("size", SIZES[1:])
def test_row_02_a_subgroup_waits(world_of: Worlds, size: int) -> None:
    """Ranks that had nothing to do with the failed collective are not disturbed; the group of the others is healed."""
    ranks = world_of(size)
    _build(ranks)
    cell = (
        "if rank == 1:\n    inject.raise_error('row 2')\n"
        "if rank == 0:\n    dist.all_reduce(torch.ones(1), group=firsts)\ndone = True"
    )
    error = ranks.fail(cell, "ValueError")
    assert error.evalue.splitlines()[0] == "rank 1: ValueError: row 2"
    assert "rank 0: waited in all_reduce" in error.evalue
    ranks.assert_whole()
    assert ranks.notebook.run(f"%%on_rank 2-{size - 1}\ndone").ok().texts == [f"[2-{size - 1}] True"]
    shown = ranks.notebook.run("%%on_rank 0-1\nt = torch.ones(1); dist.all_reduce(t, group=firsts); t.item()")
    assert shown.ok().texts == ["[0-1] 2.0"]
    _train_on(ranks)


def test_row_02_main_process_raises_first(pair: Ranks) -> None:
    """Who waits for the main process to go first is told that it raised."""
    error = pair.fail("with world.main_process_first():\n    if rank == 0: inject.raise_error('row 2')", "ValueError")
    assert error.evalue.splitlines()[0] == "rank 0: ValueError: row 2"
    assert "rank 1: waited" in error.evalue
    pair.assert_whole()


def test_row_02_late_rank_does_not_hang(pair: Ranks) -> None:
    """A rank that comes to the collective long after the other one failed is released as well."""
    cell = "if rank == 1:\n    inject.raise_error('row 2')\ntime.sleep(0.5)\ndist.all_reduce(torch.ones(1))"
    error = pair.fail(cell, "ValueError")
    assert error.evalue.splitlines()[0] == "rank 1: ValueError: row 2"
    assert "rank 0: waited in all_reduce" in error.evalue
    pair.assert_whole()


def test_row_02_caught_release_fails_again(pair: Ranks) -> None:
    """A rank whose code catches the release does not wait in vain in its next collective."""
    cell = (
        "if rank == 1:\n    inject.raise_error('row 2')\n"
        "try:\n    dist.barrier()\nexcept RuntimeError:\n    dist.all_reduce(torch.ones(1))"
    )
    error = pair.fail(cell, "ValueError")
    assert error.evalue.splitlines()[0] == "rank 1: ValueError: row 2"
    pair.assert_whole()
