"""Rows 2 and 16: FSDP1 models that are cut in the middle of a step train on, as if that step had never begun."""

from __future__ import annotations

import pytest
from worlds import Ranks

_MODEL = """from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.at = nn.Linear(8, 8), None
    def forward(self, x):
        if self.at == 'forward': inject.raise_error('row 2')
        x = torch.tanh(self.linear(x))
        if self.at == 'backward': x.register_hook(lambda grad: inject.raise_error('row 2'))
        return x
torch.manual_seed(0)
net = nn.Sequential(Layer(), Layer(), nn.Linear(8, 1))
cpu = torch.device('cpu')
model = FSDP(net, auto_wrap_policy=ModuleWrapPolicy([Layer]), device_id=cpu, use_orig_params={original})
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def norm(who=None, layer=None, at=None):
    for k in range(2): net[k].module.at = at if (who, layer) == (rank, k) else None
    optimizer.zero_grad()
    loss = model(torch.full((2, 8), rank + 1.0)).pow(2).mean()
    if who == rank and at == 'between': inject.raise_error('row 2')
    loss.backward()
    return model.clip_grad_norm_(1e9).item()
expected = norm()"""


@pytest.fixture(params=[False, True], ids=["flat", "original"])
def model(pair: Ranks, request: pytest.FixtureRequest) -> Ranks:
    """Two ranks with a model, whose optimizer sees flat parameters or the original ones."""
    pair.run(_MODEL.format(original=request.param), 60).ok()
    return pair


@pytest.mark.parametrize("where", ["1, 0, 'forward'", "0, 1, 'forward'", "1, 1, 'backward'", "0, 0, 'backward'"])
def test_row_02_in_a_pass(model: Ranks, where: str) -> None:
    """The next steps have the gradients that they have without the fault."""
    for _ in range(2):
        model.fail(f"norm({where})", "ValueError")
        assert model.run("norm() == norm() == expected").ok().texts == ["[0-1] True"]
    model.assert_whole()


def test_row_02_between_the_passes(model: Ranks) -> None:
    """The rank that raises is at rest; the other one is in a backward pass that nobody follows."""
    model.fail("norm(1, None, 'between')", "ValueError")
    assert model.run("norm() == norm() == expected").ok().texts == ["[0-1] True"]
    model.assert_whole()


def test_row_16_in_an_fsdp1_step(model: Ranks) -> None:
    """Wherever it was interrupted."""
    model.interrupt_anywhere("while True: norm()", "norm() == norm() == expected")
    model.assert_whole()


def test_row_02_an_fsdp1_model_is_a_step_behind(model: Ranks) -> None:
    """Its shards show nothing of it, so it is told."""
    outcome = model.run("norm()\nif rank == 1: inject.raise_error('row 2')\noptimizer.step()")
    outcome.failed("ValueError")
    assert "had not made the same optimizer steps: rank 0 is 1 ahead" in outcome.stderr
    model.assert_whole()


def test_row_02_an_fsdp1_model_that_only_some_ranks_made(pair: Ranks) -> None:
    """The ones that are made later are known by the same name again on all ranks."""
    again = _MODEL.format(original=True)
    pair.run(f"{again}\nalone = dist.new_group([1])").ok()
    one = "if rank: FSDP(nn.Sequential(nn.Linear(2, 1)), process_group=alone, device_id=cpu)"
    pair.fail(f"{one}\ninject.raise_error('row 2') if rank else dist.barrier()", "ValueError")
    pair.run(again).ok()
    pair.fail("norm(1, None, 'between')", "ValueError")
    assert pair.run("norm() == norm() == expected").ok().texts == ["[0-1] True"]
    pair.assert_whole()
