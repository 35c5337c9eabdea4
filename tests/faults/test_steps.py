"""Rows 2 and 16: optimizer steps that not all ranks have made are told, since nothing else would."""

from __future__ import annotations

import pytest
from worlds import Ranks, Worlds

_MODEL = """from torch import nn
from torch.distributed.fsdp import fully_shard
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters())
def step():
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
step()"""
_APART = "the sharded model of an optimizer (AdamW of 4 parameters) was stopped where its ranks had not made the same"


@pytest.mark.parametrize("size", [2, 4])
def test_row_02_a_sharded_model_is_a_step_behind(world_of: Worlds, size: int) -> None:
    """It is told once, with who is ahead; and again when it happens again. Where all made the same steps: nothing."""
    ranks = world_of(size)
    ranks.run(_MODEL).ok()
    same = "step()\nif rank == 1: inject.raise_error('row 2')\nstep()"
    outcome = ranks.run(same)
    outcome.failed("ValueError")
    assert _APART not in outcome.stderr
    for call in ("step()", "step(None)"):
        apart = ranks.run(f"step()\nif rank == 1: inject.raise_error('row 2')\noptimizer.{call}")
        apart.failed("ValueError")
        ahead = "rank 0 is" if size == 2 else "ranks 0,2-3 are"
        assert f"{_APART} optimizer steps: {ahead} 1 ahead. Its shards do not belong" in apart.stderr, apart.stderr
        again = ranks.run(same)
        again.failed("ValueError")
        assert _APART not in again.stderr
    ranks.assert_whole()


@pytest.mark.parametrize("closure", ["", "None", "closure=None"])
def test_row_16_in_the_middle_of_a_sharded_step(pair: Ranks, closure: str) -> None:
    """All ranks are in it: each may have changed other shards."""
    pair.run(
        f"{_MODEL}\nclass Slow(torch.optim.AdamW):\n"
        "    def step(self, closure=None):\n        super().step()\n        time.sleep(60)\n"
        "optimizer = Slow(model.parameters())"
    ).ok()
    outcome = pair.interrupted(f"optimizer.step({closure})")
    outcome.failed("KeyboardInterrupt")
    assert "(Slow of 4 parameters)" in outcome.stderr
    assert "optimizer steps: ranks 0-1 were in the middle of one." in outcome.stderr, outcome.stderr
    pair.assert_whole()


def test_row_02_steps_that_are_not_torn(pair: Ranks) -> None:
    """A closure that raises before anything has changed, an optimizer of one rank alone, and one that was dropped."""
    pair.run(_MODEL).ok()
    cells = (
        "optimizer.step(lambda: inject.raise_error('row 2'))",
        "optimizer.step(closure=lambda: inject.raise_error('row 2'))",
        "own = nn.Linear(2, 2)\nalone = torch.optim.SGD(own.parameters())\n"
        "own(torch.ones(2)).sum().backward()\nif rank: alone.step()\ninject.raise_error('row 2')",
        "optimizer = torch.optim.AdamW(model.parameters())\nstep()\n"
        "if rank == 0: kept = optimizer\noptimizer = torch.optim.AdamW(model.parameters())\nstep()\n"
        "if rank: inject.raise_error('row 2')\ndist.barrier()",
    )
    for cell in cells:
        outcome = pair.run(cell)
        outcome.failed("ValueError")
        assert _APART not in outcome.stderr
    pair.assert_whole()


def test_row_02_an_optimizer_that_only_some_ranks_made(pair: Ranks) -> None:
    """The ones that are made later are known by the same name again on all ranks."""
    pair.run(_MODEL).ok()
    for _ in range(2):
        pair.fail(
            "if rank: inject.raise_error('row 2')\noptimizer = torch.optim.AdamW(model.parameters())\ndist.barrier()",
            "ValueError",
        )
    pair.run("optimizer = torch.optim.AdamW(model.parameters())\nstep()").ok()
    outcome = pair.run("step()\nif rank == 1: inject.raise_error('row 2')\noptimizer.step()")
    outcome.failed("ValueError")
    assert f"{_APART} optimizer steps: rank 0 is 1 ahead" in outcome.stderr
    pair.assert_whole()


# Adam changes its moments first and the parameters last: what raises in between leaves all copies equal, for now.
_COPIES = """from torch.nn.parallel import DistributedDataParallel as DDP
torch.manual_seed(0)
net = torch.nn.Linear(4, 4)
if {early}: optimizer = torch.optim.Adam(net.parameters(), foreach=True)
model = DDP(net, process_group={group})
if not {early}: optimizer = torch.optim.Adam(model.parameters(), foreach=True)
def step(raises=False, tears=False):
    optimizer.zero_grad()
    model(torch.randn(2, 4) + rank).pow(2).sum().backward()
    if raises: inject.raise_error('row 2')
    if tears: torch._foreach_addcdiv_ = cut
    optimizer.step()
def cut(*args, **kwargs):
    torch._foreach_addcdiv_ = kept
    raise KeyboardInterrupt
kept = torch._foreach_addcdiv_
def same(values):
    ours = [torch.as_tensor(value).float() for value in values]
    theirs = [value.clone() for value in ours]
    for value in theirs: dist.broadcast(value, 0)
    return all(map(torch.equal, ours, theirs))
"""
_EQUAL = "same(model.parameters()), same(v for s in optimizer.state.values() for v in s.values())"
_REPAIR = "optimizer.load_state_dict(world.broadcast_object_list([optimizer.state_dict()])[0])"


@pytest.mark.parametrize("early", [False, True], ids=["wrapped_first", "wrapped_later"])
@pytest.mark.parametrize("steps", [0, 3])
def test_row_16_in_the_middle_of_a_step_of_copies(pair: Ranks, early: bool, steps: int) -> None:
    """It is told once, also in the first step, and what is told to do makes all equal again."""
    pair.run(_COPIES.format(early=early, group=None) + f"for _ in range({steps}): step()").ok()
    for _ in range(2):
        torn = pair.run("step(raises=rank == 1, tears=rank == 0)")
        torn.failed()
        what = "the optimizer of a DDP model (Adam of 2 parameters) has another state on rank 0 and rank 1"
        why = "had not made the same optimizer steps: rank 0 was in the middle of one. Load a checkpoint, or make"
        for part in (what, why, f"`{_REPAIR}`"):
            assert part in torn.stderr, torn.stderr
        assert "other parameters" not in torn.stderr
        again = pair.run("step(raises=True)")
        again.failed("ValueError")
        assert again.stderr == ""
        assert pair.run(f"{_REPAIR}\nfor _ in range(2): step()\n{_EQUAL}").ok().texts == ["[0-1] (True, True)"]
    pair.assert_whole()


def test_row_02_the_state_of_copies_is_a_step_behind(pair: Ranks) -> None:
    """It is told beside the parameters: to make only those equal is not enough."""
    pair.run(_COPIES.format(early=False, group=None) + "step()").ok()
    outcome = pair.run("step(raises=rank == 1)")
    outcome.failed("ValueError")
    assert "the DDP model Linear has other parameters on rank 0 and rank 1" in outcome.stderr
    assert "has another state on rank 0 and rank 1: it was stopped" in outcome.stderr
    assert "the same optimizer steps: rank 0 is 1 ahead." in outcome.stderr
    equal = "for p in model.parameters(): dist.broadcast(p.data, 0)"
    assert pair.run(f"{equal}\n{_REPAIR}\nstep()\n{_EQUAL}").ok().texts == ["[0-1] (True, True)"]
    pair.assert_whole()


def test_row_16_copies_that_were_cut_alike(pair: Ranks) -> None:
    """Where all ranks were stopped at the same place of a step, or there is no state, no difference is told."""
    pair.run(_COPIES.format(early=False, group=None) + "step()").ok()
    for cell in (
        "step(tears=True)",
        "optimizer = torch.optim.SGD(model.parameters())\nstep()\nstep(raises=True)",
        "del optimizer.state\noptimizer.step = inject.raise_error\nstep()",
        "optimizer.param_groups = None\ninject.raise_error() if rank else dist.barrier()",
    ):
        outcome = pair.run(cell)
        outcome.failed()
        assert outcome.stderr == ""
        pair.assert_whole()


def test_row_16_copies_of_several_models(world_of: Worlds) -> None:
    """Only ranks of the same model are compared."""
    ranks = world_of(4)
    ranks.run("groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]").ok()
    ranks.run(_COPIES.format(early=False, group="groups[rank // 2]") + "for _ in range(rank // 2 + 1): step()").ok()
    outcome = ranks.run("step(raises=rank != 2, tears=rank == 2)")
    outcome.failed()
    assert outcome.stderr.count("has another state") == 1, outcome.stderr
    assert "has another state on rank 2 and rank 3" in outcome.stderr
    assert "other parameters" not in outcome.stderr
    ranks.assert_whole()
