"""Row 10: what DDP begins and waits for in C++ meets another operation. Each side is told, and no number is wrong."""

from __future__ import annotations

import re
import time

import pytest
from worlds import Ranks, Worlds

_MODELS = """
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
def made(*layers):
    torch.manual_seed(0)
    return DDP(torch.nn.Sequential(*layers))
x = torch.randn(16, 8)
model, other = made(torch.nn.Linear(8, 4)), made(torch.nn.Linear(8, 3))
hooked, normed = made(torch.nn.Linear(8, 4)), made(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
hooked.register_comm_hook(None, allreduce_hook)
models = [model, other, hooked, normed]
optimizers = [torch.optim.SGD(each.parameters(), 0.1) for each in models]
def step(number):
    optimizers[number].zero_grad()
    models[number](x).sum().backward()
    optimizers[number].step()
def train():
    for number in (0, 1, 2, 3) * 3: step(number)
train()
"""
_SAME = """for parameter in (p for each in models for p in each.parameters()):
    first = parameter.detach().clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, parameter)"""

#: What rank 0 does and what all others do, and how each of it is told.
_PAIRS = {
    "as many": (
        "step(0)",
        "dist.all_reduce(torch.ones(36), async_op=True).wait()",
        "all_reduce (36,) float32 sum by torch",
        "all_reduce (36,) float32 sum",
    ),
    "more": (
        "step(0)",
        "dist.all_reduce(torch.ones(360), async_op=True).wait()",
        "all_reduce (36,) float32 sum by torch",
        "all_reduce (360,) float32 sum",
    ),
    "blocking": (
        "step(0)",
        "dist.all_reduce(torch.ones(36))",
        "all_reduce (36,) float32 sum by torch",
        "blocking all_reduce (36,) float32 sum",
    ),
    "another model": (
        "step(0)",
        "step(1)",
        "all_reduce (36,) float32 sum by torch",
        "all_reduce (27,) float32 sum by torch",
    ),
    "a communication hook": (
        "step(2)",
        "dist.all_reduce(torch.ones(35), async_op=True).wait()",
        "all_reduce (36,) float32 sum",
        "all_reduce (35,) float32 sum",
    ),
    "buffers": (
        "step(3)",
        "dist.barrier()",
        "broadcast (8,) float32 root 0 by torch",
        "blocking barrier",
    ),
    "buffers and gradients": (
        "step(0)",
        "step(3)",
        "all_reduce (36,) float32 sum by torch",
        "broadcast (8,) float32 root 0 by torch",
    ),
    "a new model": (
        "made(torch.nn.Linear(8, 4))",
        "dist.all_gather([torch.ones(1)] * world_size, torch.ones(1))",
        "all_gather (1,) int64 by torch",
        "blocking all_gather (1,) float32",
    ),
}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("which", _PAIRS)
def test_row_10_what_ddp_begins(world_of: Worlds, size: int, which: str) -> None:
    """No rank goes on with a wrong gradient, and all models go on training."""
    ranks, (first, others, *told) = world_of(size), _PAIRS[which]
    ranks.run(_MODELS).ok()
    error = ranks.fail(f"wrong = False\n{first} if rank == 0 else {others}\nwrong = True", "CollectiveMismatch")
    found = re.findall(r"  ranks? \S+: (.*) at Cell In\[\d+\], line \d+", error.evalue)
    assert set(found) == set(told), error.evalue
    assert ranks.run("wrong").ok().texts == [f"[0-{size - 1}] False"]
    ranks.run(f"train()\n{_SAME}").ok()
    ranks.assert_whole()


@pytest.mark.parametrize("options", ["", "find_unused_parameters=True", "gradient_as_bucket_view=True"])
def test_row_10_ddp_with_uneven_inputs(pair: Ranks, options: str) -> None:
    """In `Join` a rank in Python answers for what the others begin in C++."""
    pair.run(_MODELS).ok()
    cell = f"models[:] = [DDP(models[3].module, {options})]\nwith models[0].join():\n    for _ in range(2 + 3 * rank): "
    pair.run(f"{cell}models[0](x).sum().backward()\n{_SAME}").ok()
    pair.assert_whole()


def test_row_10_hooks_of_join(pair: Ranks) -> None:
    """What blocks in a hook of the user's own is compared as it is on the ranks that have data."""
    cell = """
from torch.distributed.algorithms.join import Join, Joinable, JoinHook
class Hook(JoinHook):
    def main_hook(self): dist.all_reduce(torch.zeros(1))
class Counter(Joinable):
    join_device, join_process_group = torch.device("cpu"), property(lambda self: dist.group.WORLD)
    def __init__(self): super().__init__()
    def join_hook(self, **kwargs): return Hook()
    def __call__(self):
        Join.notify_join_context(self)
        count = torch.ones(1)
        dist.all_reduce(count)
        return count.item()
counter = Counter()
with Join([counter]): counts = [counter() for _ in range(2 + 3 * rank)]
counts"""
    assert pair.run(cell).ok().texts == ["[0] [2.0, 2.0]", "[1] [2.0, 2.0, 1.0, 1.0, 1.0]"]
    pair.assert_whole()


def test_row_10_only_what_ddp_waits_for_is_waited_for(pair: Ranks) -> None:
    """A hook of the user's own may begin what another rank begins later, and wait for it when it likes."""
    cell = """
p, t, futures = torch.ones(4, requires_grad=True), torch.ones(1), []
p.register_hook(lambda grad: futures.append(dist.all_reduce(grad.clone(), async_op=True).get_future()))
if rank == 0:
    p.sum().backward()
    dist.send(t, 1)
else:
    dist.recv(t, 0)
    p.sum().backward()
futures[0].wait()"""
    assert pair.run(cell).ok().texts == ["[0-1] [tensor([2., 2., 2., 2.])]"]
    pair.assert_whole()


_RESIDENT = "def resident(): return int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20\nbefore = resident()"
_KEEPERS = {
    "a group of one": "alone = [dist.new_group([each]) for each in range(world_size)][rank]\n"
    "for _ in range(100): dist.all_reduce(torch.ones(1_000_000), group=alone)",
    "a rank without data": "model = DDP(torch.nn.Linear(1000, 1000))\nwith model.join():\n"
    "    for _ in range(2 + 100 * rank): model(torch.ones(1, 1000)).sum().backward()",
    "an error that is caught": """model = DDP(torch.nn.Linear(1000, 1000), bucket_cap_mb=1)
for _ in range(50):
    x = torch.ones(1, 1000, requires_grad=True)
    x.register_hook(lambda grad: 1 / 0)
    try: model(x).sum().backward()
    except ZeroDivisionError: model = DDP(model.module, bucket_cap_mb=1)""",
}


@pytest.mark.parametrize("which", _KEEPERS)
def test_row_42_no_data_is_kept(pair: Ranks, which: str) -> None:
    """Of 400 MB that come and go, the ranks have little in the end."""
    pair.run(f"{_MODELS}{_RESIDENT}\n{_KEEPERS[which]}\ngrown = resident() - before\nassert grown < 100, grown").ok()
    pair.assert_whole()


def test_row_10_buffers_after_a_step_that_one_rank_did_not_share(pair: Ranks) -> None:
    """A rank within `no_sync` would not wait for buffers in its next forward pass; after a heal it does."""
    pair.run(_MODELS).ok()
    apart = "if rank == 1: step(3)\nelse:\n    with normed.no_sync(): normed(x).sum().backward()"
    assert "rank 1 waits in all_reduce" in pair.fail(apart, "Deadlock").evalue
    pair.run("train()").ok()
    pair.assert_whole()


def test_row_10_many_models_are_made(pair: Ranks) -> None:
    """What is begun in C++ never waits for the lock of the interpreter while it keeps gloo's threads waiting."""
    cell = "for _ in range(150):\n    each = made(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))\n    "
    pair.run(f"{_MODELS}{cell}for _ in range(3): each(x).sum().backward()").ok()
    pair.assert_whole()


def test_row_16_an_interrupt_where_ddp_waits(pair: Ranks) -> None:
    """The wait at the end of a backward pass is one for a collective of a known number, and ends at once."""
    pair.run(_MODELS).ok()
    pair.notebook.start("%%distributed\nif rank == 1: time.sleep(60)\nstep(0)")
    pair.notebook.wait_for(lambda shown: "all_reduce #" in str(shown.history), 30)
    begin = time.monotonic()
    pair.notebook.interrupt()
    error = pair.notebook.wait(30).failed("KeyboardInterrupt")
    assert time.monotonic() - begin < 5
    assert "rank 0: interrupted in backward at" in error.evalue
    pair.run(f"train()\n{_SAME}").ok()
    pair.assert_whole()
