"""Rows 2 and 16: optimizer steps of sharded models that not all ranks have made are told, since nothing else would."""

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
