"""Rows 2 and 16: a pipeline whose step was cut makes the next one as if that step had never begun."""

from __future__ import annotations

import pytest
from worlds import GUARD, Ranks

_PIPELINE = """from torch import nn
from torch.distributed import pipelining
class Layer(nn.Module):
    hit = None
    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(8, 8), 0
    def forward(self, x):
        self.calls += 1
        time.sleep(0.002)
        if Layer.hit == (rank, self.calls): inject.raise_error('row 2')
        return torch.tanh(self.linear(x))
torch.manual_seed(0)
layers = [Layer() for _ in range(2 * {each})]
mine = layers[rank::2]
def stage(i, layer): return pipelining.PipelineStage(layer, rank + 2 * i, len(layers), torch.device('cpu'))
stages = [stage(i, layer) for i, layer in enumerate(mine)]
schedule = pipelining.{kind}(stages if {each} > 1 else stages[0], 4, loss_fn=nn.functional.mse_loss)
def step(hit=None):
    for layer in mine: layer.zero_grad(); layer.calls = 0
    Layer.hit = hit
    x = torch.linspace(0, 1, 64).reshape(8, 8)
    schedule.step(x) if rank == 0 else schedule.step(target=-x)
    return [layer.linear.weight.grad.norm().item() for layer in mine]
step()
expected = step()"""
_KINDS = [("ScheduleGPipe", 1), ("Schedule1F1B", 1), ("ScheduleInterleaved1F1B", 2)]


@pytest.fixture(params=_KINDS, ids=[kind for kind, _ in _KINDS])
def pipeline(pair: Ranks, request: pytest.FixtureRequest) -> Ranks:
    """Two ranks with a pipeline."""
    kind, each = request.param
    pair.run(_PIPELINE.format(kind=kind, each=each), 60).ok()
    return pair


@pytest.mark.parametrize("hit", [(0, 3), (1, 2), (1, 4)])
def test_row_02_in_a_micro_batch(pipeline: Ranks, hit: tuple[int, int]) -> None:
    """The error is that of the rank that raised it, and the next step is right."""
    error = pipeline.fail(f"step({hit})", "RuntimeError")  # as torch tells it, from the one that was raised
    assert error.evalue.startswith(f"rank {hit[0]}")
    assert "ValueError: row 2" in error.traceback
    for _ in range(2):
        assert pipeline.run("step() == expected", GUARD).ok().texts == ["[0-1] True"]
    pipeline.assert_whole()


def test_row_16_in_a_pipeline(pipeline: Ranks) -> None:
    """Wherever it was interrupted."""
    pipeline.interrupt_anywhere("while True: step()", "step() == expected")
    pipeline.assert_whole()


def test_row_01_objects_that_answer_for_their_class(pair: Ranks) -> None:
    """Schedules are found among all objects, whose classes may be compared, or hashed, by code of the user's."""
    pair.run(
        "import torch.distributed.pipelining.schedules\n"
        "class Meta(type):\n    def __eq__(self, other): raise RuntimeError('not comparable')\n"
        "class Odd(metaclass=Meta): pass\nodd = Odd()"
    ).ok()
    pair.fail("raise ValueError('row 1')", "ValueError")
    pair.assert_whole()
