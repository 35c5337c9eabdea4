"""Rows 2 and 16: a backward pass that Python code in it ends, or an interrupt there. The model goes on training."""

from __future__ import annotations

import pytest
from worlds import Ranks, Worlds

# What is checkpointed runs again in the backward pass, in Python and for long: there most interrupts hit.
_MODEL = """
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint
def sines(y):
    for _ in range(100): y = y.sin()
    return y
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
    def forward(self, x):
        return self.b(checkpoint(lambda z: sines(self.a(z)), x, use_reentrant=False))
torch.manual_seed(0)
model = DDP(Net(), {options})
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def step():
    optimizer.zero_grad()
    model(torch.randn(4, 16)).pow(2).mean().backward()
    optimizer.step()
"""
_SAME = """for parameter in model.parameters():
    first = parameter.detach().clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, parameter)"""
_OPTIONS = ["", "find_unused_parameters=True", "static_graph=True", "gradient_as_bucket_view=True"]


def _goes_on(ranks: Ranks) -> None:
    ranks.run(f"for _ in range(3): step()\n{_SAME}").ok()
    ranks.assert_whole()


@pytest.mark.parametrize("options", _OPTIONS)
@pytest.mark.parametrize("who", ["rank == 1", "True"])
@pytest.mark.parametrize("steps", [0, 3])
def test_row_02_a_hook_raises_in_a_backward_pass(pair: Ranks, options: str, who: str, steps: int) -> None:
    """On one rank, or on all, where nothing is cut; in the first step, or later."""
    pair.run(f"{_MODEL.format(options=options)}\nfor _ in range({steps}): step()").ok()
    cell = f"hook = model.module.a.weight.register_hook(lambda grad: 1 / 0 if {who} else grad)\nstep()"
    for _ in range(2):
        error = pair.fail(cell, "ZeroDivisionError")
        assert "nbsync" not in error.traceback
        pair.run("hook.remove()").ok()
        _goes_on(pair)


@pytest.mark.parametrize("size", [2, 4])
def test_row_16_interrupts_in_a_backward_pass(world_of: Worlds, size: int) -> None:
    """Wherever each of them hits. No optimizer steps here: one rank may be past it, and another before."""
    ranks = world_of(size)
    ranks.run(_MODEL.format(options="")).ok()
    for _ in range(5):
        ranks.interrupted("while True: model(torch.randn(4, 16)).sum().backward()").failed("KeyboardInterrupt")
        _goes_on(ranks)


@pytest.mark.parametrize("size", [2, 4])
def test_row_02_a_rank_is_a_step_behind(world_of: Worlds, size: int) -> None:
    """Nothing makes the copies equal again, so it is told, once; but not where all took the same steps."""
    ranks = world_of(size)
    ranks.run(f"{_MODEL.format(options='')}\nfor _ in range(3): step()").ok()
    same = ranks.run("step()\nif rank == 1: inject.raise_error('row 2')\nstep()")
    same.failed("ValueError")
    assert "other parameters" not in same.stderr
    cell = "if rank == 1: optimizer.step = inject.raise_error\nstep()"
    apart = ranks.run(cell)
    apart.failed()
    others = "rank 0" if size == 2 else "ranks 0,2-3"
    assert f"the DDP model Net has other parameters on {others} and rank 1, perhaps because" in apart.stderr
    assert "other parameters" not in ranks.run(cell).stderr
    ranks.run("for p in model.parameters(): dist.broadcast(p.data, 0)").ok()
    ranks.run(f"optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nstep()\n{_SAME}").ok()
    ranks.run("step()\nif rank == 1: inject.raise_error('row 2')\nstep()").failed("ValueError")
    assert "other parameters" in ranks.run(cell).stderr  # they were equal again


def test_row_02_a_rank_is_a_step_behind_in_few_elements(pair: Ranks) -> None:
    """A step of an embedding changes the rows that were used, which may be any."""
    pair.run(
        "from torch.nn.parallel import DistributedDataParallel as DDP\n"
        "model = DDP(torch.nn.Embedding(1000, 8))\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "def step(raises=False):\n"
        "    optimizer.zero_grad()\n    model(torch.tensor([500 + rank])).sum().backward()\n"
        "    if raises: inject.raise_error('row 2')\n    optimizer.step()\n"
        "for _ in range(3): step()"
    ).ok()
    same = pair.run("step()\nif rank == 0: inject.raise_error('row 2')\nstep()")
    same.failed("ValueError")
    assert "other parameters" not in same.stderr
    apart = pair.run("step(rank == 0)")
    apart.failed("ValueError")
    assert "the DDP model Embedding has other parameters on rank 0 and rank 1, perhaps" in apart.stderr, apart.stderr
    assert len(pair.run("model.module.weight[500, 0].item()").ok().texts) == 2
    pair.assert_whole()


def test_row_02_parameters_replaced_after_wrapping(pair: Ranks) -> None:
    """The cause is told: DDP knows nothing of them. Two such models of one name are one line."""
    pair.run(
        f"{_MODEL.format(options='')}\nfrom torch.nn.parallel import DistributedDataParallel as DDP\n"
        "models = [DDP(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(4, 3))) for _ in range(2)]\n"
        "torch.manual_seed(rank)\nfor each in models: each.module[1] = torch.nn.Linear(4, 3)"
    ).ok()
    told = pair.run("if rank == 0: dist.barrier()")
    told.failed("Deadlock")
    what = "the DDP model Sequential has other parameters on rank 0 and rank 1"
    assert told.stderr.count(f"{what}: parameters were replaced after it was wrapped: wrap the model again") == 1
    assert told.stderr.count("other parameters") == 1
    pair.run("models = [DDP(each.module) for each in models]").ok()
    again = pair.run("if rank == 0: dist.barrier()")
    again.failed("Deadlock")
    assert "other parameters" not in again.stderr


def test_row_02_parameters_that_differ_by_design(pair: Ranks) -> None:
    """What DDP was told to ignore is each rank's own, and what nobody holds any more is no rank's model."""
    pair.run(
        _MODEL.format(options="") + "\nDDP = torch.nn.parallel.DistributedDataParallel\nimport gc; gc.disable()\n"
        "for _ in range(3):\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.Linear(4, 4))\n"
        "    DDP._set_params_and_buffers_to_ignore_for_model(net, ['1.weight', '1.bias'])\n"
        "    with torch.no_grad(): net[1].weight.fill_(rank)\n"
        "    own = DDP(net)\n    own(torch.randn(4, 16)).sum().backward()\n    if rank: gc.collect()"
    ).ok()
    outcome = pair.run("if rank == 0: inject.raise_error('row 2')\ndist.barrier()")
    outcome.failed("ValueError")
    assert outcome.stderr == ""
    pair.run("gc.enable()\nown(torch.randn(4, 16)).sum().backward()\nassert (net[1].weight == rank).all()").ok()
    _goes_on(pair)


@pytest.mark.parametrize("who", ["True", "rank == 1"])
def test_row_02_models_that_were_taken_apart(pair: Ranks, who: str) -> None:
    """Who frees a model's memory so keeps the rank, and the other models train on."""
    pair.run(f"{_MODEL.format(options='')}\nspent = [DDP(torch.nn.Linear(4, 4)) for _ in range(3)]").ok()
    pair.run(f"if {who}:\n    spent[0].module = None\n    del spent[1].module, spent[2].reducer").ok()
    _goes_on(pair)
    pair.fail("step()\nif rank == 0: inject.raise_error('row 2')\nstep()", "ValueError")
    _goes_on(pair)
    pair.run("del spent").ok()
    _goes_on(pair)


def test_row_16_between_forward_and_backward(pair: Ranks) -> None:
    """An error between the two passes spoils nothing: the backward pass of the next cell still fits."""
    pair.run(f"{_MODEL.format(options='')}\nfor _ in range(3): step()").ok()
    pair.fail("loss = model(torch.randn(4, 16)).sum()\ninject.raise_error('row 2')", "ValueError")
    pair.run("optimizer.zero_grad(); loss.backward(); optimizer.step()").ok()
    _goes_on(pair)


# Each checkpoint runs a backward pass within that of the model, and has a bucket of its own. In one model DDP is done
# at the end of the whole pass; in the other, whose `last` is true, within the pass of a checkpoint.
_CHECKPOINTS = """
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint
def send(grad):
    if rank == 0: dist.send(torch.ones(1), 1)
def receive(grad):
    if rank == 1: dist.recv(torch.ones(1), 0)
class Net(torch.nn.Module):
    def __init__(self, last):
        super().__init__()
        self.a, self.b, self.c, self.d = [torch.nn.Linear(400, 400) for _ in range(4)]
        self.last = last
    def forward(self, x):
        x = x if self.last else self.a(x)
        before = x
        for layer in (self.b, self.c): x = checkpoint(layer, x, use_reentrant=True)
        if talks:
            before.register_hook(send)
            x.register_hook(receive)
        return self.d(x)
def made(last, **options):
    torch.manual_seed(0)
    net = Net(last)
    if last: del net.a
    return DDP(net, bucket_cap_mb=0.5, **options)
def step(times=1):
    for _ in range(times):
        optimizer.zero_grad()
        model(torch.randn(4, 400, requires_grad=True)).pow(2).mean().backward()
        optimizer.step()
talks = False
model = made({last}, {options})
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
step(3)
"""


@pytest.mark.parametrize("options", ["", "static_graph=True"])
def test_row_11_ranks_talk_around_a_checkpoint(pair: Ranks, options: str) -> None:
    """A bucket that is begun within the pass of a checkpoint is not waited for at its end: others go on meanwhile."""
    pair.run(_CHECKPOINTS.format(last=False, options=options)).ok()
    pair.run(f"talks = True\nstep(3)\n{_SAME}").ok()
    pair.assert_whole()


@pytest.mark.parametrize("options", ["", "static_graph=True"])
@pytest.mark.parametrize("last", [False, True])
def test_row_11_checkpoints_of_a_rank_that_is_alone(pair: Ranks, last: bool, options: str) -> None:
    """Wherever DDP waits for the other rank, that is told; and so is what else the other one does."""
    pair.run(_CHECKPOINTS.format(last=last, options=options)).ok()
    pair.fail("if rank == 0: step()", "Deadlock")
    pair.run(f"step(3)\n{_SAME}").ok()
    other = "dist.all_reduce(torch.ones(7), async_op=True).wait()"
    error = pair.fail(f"step() if rank == 0 else {other}", "CollectiveMismatch")
    assert "rank 1: all_reduce (7,) float32 sum at" in error.evalue
    pair.run(f"step(3)\n{_SAME}").ok()
    pair.assert_whole()


def test_row_11_ranks_talk_where_ddp_waits_in_a_checkpoint(pair: Ranks) -> None:
    """Rank 0 would send when DDP is done, and rank 1 is not: no such program goes on."""
    pair.run(_CHECKPOINTS.format(last=True, options="")).ok()
    error = pair.fail("talks = True\nstep()", "Deadlock")
    assert "rank 0 waits in backward" in error.evalue
    assert "rank 1 waits in recv for rank 0" in error.evalue
    pair.run(f"talks = False\nstep(3)\n{_SAME}").ok()
    pair.assert_whole()
