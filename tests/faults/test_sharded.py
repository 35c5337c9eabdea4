"""Rows 2 and 16: FSDP2 models that are cut in the middle of a step train on, as if that step had never begun."""

from __future__ import annotations

import random
import time

import pytest
from worlds import GUARD, SETTLED, Ranks, Worlds

_TOOLS = """
import torch.nn as nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)  # the outermost module's own: not resharded between forward and backward
        self.layers = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])
        self.hit = {}

    def at(self, place):
        def hook(grad):
            self.hit.get(place, lambda: None)()
        return hook

    def forward(self, x):
        x = self.first(x).relu()
        x.register_hook(self.at("late in backward"))
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i == 1:
                self.at("forward")(None)
                x.register_hook(self.at("backward"))
        return x

def build(nested=True, **options):
    torch.manual_seed(0)
    model = Net()
    for layer in model.layers if nested else ():
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

x = torch.randn(4, 8, generator=torch.Generator().manual_seed(rank))
def step():
    loss = model(x).square().mean()
    model.at("between")(None)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
def raise_on(place, *ranks):
    if rank in ranks:
        model.hit[place] = lambda: inject.raise_error("row 2")
def sleep_on(place, *ranks):
    if rank in ranks:
        model.hit[place] = inject.sleep_forever
def prepare(**kinds):
    global model, optimizer, expected
    model, optimizer = build(**kinds)
    expected = [step() for _ in range(5)]
    model, optimizer = build(**kinds)
def assert_sharded():
    assert all(isinstance(p, DTensor) for p in model.parameters())
    assert all(p is q for p, q in zip(model.parameters(), optimizer.param_groups[0]["params"], strict=True))
def go_on(steps, sharded=True):
    model.hit = {}
    if sharded:
        assert_sharded()
    done = [step() for _ in range(steps)]
    assert_sharded()
    want, expected[:] = expected[:steps], expected[steps:]
    return done == want or (done, want)
"""

_KINDS = {
    "nested": "",
    "one module": "nested=False",
    "kept unsharded": "reshard_after_forward=False",
}
_PLACES = ["forward", "between", "backward", "late in backward"]
_WHERE = [(2, who, place) for who in ("one", "all") for place in _PLACES] + [
    (4, "one", "forward"),
    (4, "one", "backward"),
]


def _prepare(ranks: Ranks, kind: str = "nested", steps: int = 2) -> None:
    """A model that has made some steps, and what comes of them when no fault is in between."""
    if ranks.run("'Net' in globals()").texts != [f"[0-{ranks.size - 1}] True"]:
        ranks.run(_TOOLS).ok()
    ranks.run(f"prepare({_KINDS[kind]})").ok()
    _go_on(ranks, steps)


def _go_on(ranks: Ranks, steps: int = 2, at_rest: bool = False) -> None:
    """The next steps are those of a model that has met no fault; all parameters are the optimizer's.

    Args:
        at_rest: it was let alone between the passes, where torch does not shard the outermost module.
    """
    assert ranks.run(f"go_on({steps}, {not at_rest})").ok().texts == [f"[0-{ranks.size - 1}] True"]


@pytest.mark.parametrize(("size", "who", "place"), _WHERE)
def test_row_02_an_error(world_of: Worlds, size: int, who: str, place: str) -> None:
    """Wherever in a step an error is raised, on one rank or on all: nothing is left of that step."""
    ranks = world_of(size)
    _prepare(ranks)
    hit = "1" if who == "one" else "*range(world_size)"
    ranks.fail(f"raise_on('{place}', {hit})\nstep()", "ValueError")
    _go_on(ranks, at_rest=place == "between" and who == "all")
    ranks.assert_whole()


@pytest.mark.parametrize("kind", [kind for kind in _KINDS if kind != "nested"])
@pytest.mark.parametrize("place", _PLACES)
def test_row_02_however_it_is_sharded(pair: Ranks, kind: str, place: str) -> None:
    """Also where all parameters are of one module, or stay unsharded between the passes."""
    _prepare(pair, kind)
    pair.fail(f"raise_on('{place}', 1)\nstep()", "ValueError")
    _go_on(pair)


@pytest.mark.parametrize("place", _PLACES)
def test_row_02_in_the_first_step(pair: Ranks, place: str) -> None:
    """The first forward pass also prepares the model."""
    _prepare(pair, steps=0)
    pair.fail(f"raise_on('{place}', 1)\nstep()", "ValueError")
    _go_on(pair)


@pytest.mark.parametrize("preparation", ["_init_fqns", "_init_shared_state", "_validate_no_duplicate_params"])
def test_row_02_in_the_preparations(pair: Ranks, preparation: str) -> None:
    """Preparations that were cut are made again."""
    _prepare(pair, steps=0)
    cell = (
        "from unittest import mock\nkind = type(fully_shard.state(model))\n"
        f"with mock.patch.object(kind, '{preparation}', lambda state: inject.raise_error('row 2')):\n    step()"
    )
    pair.fail(cell, "ValueError")
    _go_on(pair)


@pytest.mark.parametrize(("size", "who", "place"), _WHERE)
def test_row_16_an_interrupt(world_of: Worlds, size: int, who: str, place: str) -> None:
    """An interrupt cuts ranks that wait for another one, or hits all in their own code, so that nothing is cut."""
    ranks = world_of(size)
    _prepare(ranks)
    hit = "1" if who == "one" else "*range(world_size)"
    ranks.interrupted(f"sleep_on('{place}', {hit})\nstep()").failed("KeyboardInterrupt")
    _go_on(ranks, at_rest=place == "between" and who == "all")
    ranks.assert_whole()


def test_row_16_an_interrupt_that_the_cell_catches(pair: Ranks) -> None:
    """A training loop may end with `except KeyboardInterrupt`."""
    _prepare(pair)
    cell = "sleep_on('backward', 0, 1)\ntry:\n    step()\nexcept KeyboardInterrupt:\n    print('stopped')"
    pair.interrupted(cell)
    _go_on(pair)


def test_row_02_ranks_at_different_points(pair: Ranks) -> None:
    """One rank is between the passes, the other in the backward pass; nobody waits, so that nothing is cut."""
    _prepare(pair, "one module")
    pair.interrupted("sleep_on('between', 0)\nsleep_on('backward', 1)\nstep()").failed("KeyboardInterrupt")
    _go_on(pair)


def test_row_02_a_graph_outlives_a_heal(pair: Ranks) -> None:
    """A backward pass in a later cell than its forward pass, with a fault in between, is as any other."""
    _prepare(pair)
    pair.run("loss = model(x).square().mean()").ok()
    pair.fail("if rank == 0:\n    inject.raise_error('row 2')\ndist.barrier()", "ValueError")
    pair.assert_whole()
    pair.run("loss.backward(); optimizer.step(); optimizer.zero_grad()\nassert expected.pop(0) == loss.item()").ok()
    _go_on(pair)


def test_row_02_an_error_between_the_passes(pair: Ranks) -> None:
    """Nothing was cut: the parameters that are wanted for the backward pass are not gathered once more."""
    _prepare(pair)
    pair.fail("loss = model(x).square().mean()\ninject.raise_error('row 2')", "ValueError")
    assert pair.run("type(model.first.weight).__name__").ok().texts == ["[0-1] 'Parameter'"]
    pair.run("loss.backward(); optimizer.step(); optimizer.zero_grad()\nassert expected.pop(0) == loss.item()").ok()
    _go_on(pair)


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_row_02_gradients(pair: Ranks, place: str) -> None:
    """Those of earlier passes outlive a forward pass that was cut; a backward pass takes them along, on all ranks."""
    _prepare(pair)
    pair.run("model(x).square().mean().backward()\nkept = [p.grad for p in model.parameters()]").ok()
    pair.fail(f"raise_on('{place}', 1)\nstep()", "ValueError")
    shown = pair.run(
        f"[p.grad is {'k' if place == 'forward' else 'None'} for p, k in zip(model.parameters(), kept, strict=True)]"
    )
    assert shown.ok().texts == [f"[0-1] {[True] * 8}"]
    pair.run("optimizer.zero_grad()").ok()
    _go_on(pair)


@pytest.mark.parametrize("histories", ["the same", "different"])
def test_row_02_gradients_that_are_not_reduced_yet(pair: Ranks, histories: str) -> None:
    """Rank 0 has come to the end of both passes: what is left of them there is not added to the next one either."""
    _prepare(pair, steps=0)
    if histories == "different":
        pair.run("from torch.distributed.fsdp._fully_shard import _fsdp_param").ok()
        pair.run("if rank == 0: next(_fsdp_param._orig_param_uid_counter)").ok()
        _prepare(pair, steps=0)
    pair.fail(
        "model.set_requires_gradient_sync(False)\nmodel(x).square().mean().backward()\n"
        "raise_on('backward', 1)\nmodel(x).square().mean().backward()\ndist.barrier()",
        "ValueError",
    )
    pair.run("model.set_requires_gradient_sync(True)").ok()
    _go_on(pair)
    if histories == "different":
        pair.run("if rank == 1: next(_fsdp_param._orig_param_uid_counter)").ok()


def test_row_02_another_model_is_left_alone(pair: Ranks) -> None:
    """The gradients of a model that was at rest stay, also where it looks as the one that was cut."""
    _prepare(pair)
    pair.run("one = model\nmodel(x).square().mean().backward()\nmodel, optimizer = build()").ok()
    pair.fail("raise_on('backward', 1)\nstep()", "ValueError")
    pair.assert_whole()
    assert pair.run("{p.grad is None for p in one.parameters()}").ok().texts == ["[0-1] {False}"]
    assert pair.run("{p.grad is None for p in model.parameters()}").ok().texts == ["[0-1] {True}"]


def test_row_02_a_model_that_cannot_be_put_back(pair: Ranks) -> None:
    """Where torch's own part of it fails, a line says which model is of no use any more."""
    _prepare(pair)
    pair.run("kind = type(fully_shard.state(model))\nkind._reset_iter_state, kept = None, kind._reset_iter_state").ok()
    try:
        outcome = pair.run("raise_on('backward', 0, 1)\nstep()")
        outcome.failed("ValueError")
        line = "nbsync: the FSDP2 model Net was cut in the middle of a pass and cannot be put back (TypeError: "
        assert line in outcome.stderr
    finally:
        pair.run("kind._reset_iter_state = kept").ok()
    pair.fail("raise_on('backward', 0, 1)\nstep()", "ValueError")
    _go_on(pair)


def test_row_02_another_torch(pair: Ranks) -> None:
    """Where torch has other insides it is left alone, and errors are told as ever."""
    _prepare(pair)
    pair.run("kind = type(fully_shard.state(model))\nkept = kind._reset_iter_state\ndel kind._reset_iter_state").ok()
    try:
        assert "cannot be put back" not in pair.run("raise_on('backward', 0, 1)\nstep()").stderr
    finally:
        pair.run("kind._reset_iter_state = kept").ok()
    pair.assert_whole()


@pytest.mark.parametrize("size", [2, 4])
def test_row_16_interrupts_at_any_time(world_of: Worlds, size: int) -> None:
    """Training goes on after each of many, on all ranks with the same parameters."""
    ranks, moments = world_of(size), random.Random(size)
    _prepare(ranks)
    ranks.run("begun = {name: value.clone() for name, value in model.state_dict().items()}").ok()
    ranks.run("model.hit, told = {}, expected[:2]\nimport copy\nmoments = copy.deepcopy(optimizer.state_dict())").ok()
    for _ in range(5):
        ranks.begin("while True:\n    step()")
        time.sleep(moments.random() * SETTLED)
        ranks.notebook.interrupt()
        ranks.notebook.wait(GUARD).failed("KeyboardInterrupt")
        ranks.run(
            "optimizer.zero_grad()\nmodel.load_state_dict(begun)\noptimizer.load_state_dict(copy.deepcopy(moments))\n"
            "expected[:] = told"
        ).ok()
        _go_on(ranks)


_SEVERAL = """from torch import nn
from torch.distributed.fsdp import fully_shard
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
fully_shard(model[0])
fully_shard(model)
optimizer = torch.optim.SGD(model.parameters())
def part(k):
    model.set_requires_gradient_sync(k == 3)
    model(torch.full((2, 8), k / (rank + 1))).pow(2).mean().backward()
def norm(): return nn.utils.clip_grad_norm_(model.parameters(), 1e9).full_tensor().item()
def whole(hit=None):
    optimizer.zero_grad()
    for k in range(4):
        if hit == (rank, k): inject.raise_error('row 2')
        part(k)
    return norm()
expected = whole()"""


@pytest.mark.parametrize("hit", [(1, 1), (0, 2), (1, 3)])
def test_row_02_between_micro_batches(pair: Ranks, hit: tuple[int, int]) -> None:
    """Gradients that were not summed up yet are where `zero_grad` does not find them: they go with the cut step."""
    pair.run(_SEVERAL).ok()
    outcome = pair.run(f"whole({hit})")
    outcome.failed("ValueError")
    assert outcome.stderr == ""
    assert pair.run("whole() == expected").ok().texts == ["[0-1] True"]
    pair.assert_whole()


def test_row_02_micro_batches_of_earlier_cells(pair: Ranks) -> None:
    """A cell that has not touched the model takes none of its gradients; one that has says that it takes them."""
    pair.run(_SEVERAL).ok()
    pair.run("optimizer.zero_grad(); part(0); part(1)").ok()
    assert pair.run("if rank: inject.raise_error('row 2')\ndist.barrier()").stderr == ""
    assert pair.run("part(2); part(3)\nnorm() == expected").ok().texts == ["[0-1] True"]
    pair.run("optimizer.zero_grad(); part(0)").ok()
    outcome = pair.run("part(1)\nif rank: inject.raise_error('row 2')\npart(2)")
    outcome.failed("ValueError")
    assert "gradients of the FSDP2 model Sequential from earlier cells" in outcome.stderr
    assert pair.run("whole() == expected").ok().texts == ["[0-1] True"]
    pair.assert_whole()
