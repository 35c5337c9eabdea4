"""Functions on the live workers of the cells, and programs that make and destroy the process group themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from notebooks import Notebook

PIDS = "session().pull('__import__(\"os\").getpid()')"
SETUP = """
from nbsync import World, notebook_launcher, session
from torch.distributed import destroy_process_group, init_process_group
import torch
from torch import nn

def train(steps, lr=0.1):
    global model, losses
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr)
    x = torch.linspace(-1, 1, 64)[World().rank :: 2, None]
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), 3 * x + 1)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1]
"""


@pytest.fixture
def ready(notebook: Notebook) -> Iterator[Notebook]:
    """A kernel with two workers; they are ended after the test."""
    notebook.run(SETUP).ok()
    notebook.run("%%distributed -n 2\nbefore = 'kept'").ok()
    yield notebook
    notebook.run("%nbsync stop").ok()


def test_a_model_trained_by_a_function_is_there_in_the_next_cell(ready: Notebook) -> None:
    """The launcher runs it on the cells' workers, with its return values; its globals are the cells' variables."""
    pids = ready.run(PIDS)
    cell = ready.run(
        "results = notebook_launcher(train, args=(100,), session=session())\nlen(results), max(results) < 0.01"
    )
    assert cell.ok().texts[-1:] == ["(2, True)"]
    found = ready.run(
        "%%distributed\nround(model.module.weight.item(), 1), round(model.module.bias.item(), 1), len(losses), before"
    )
    assert found.ok().texts[-1:] == ["[0-1] (3.0, 1.0, 100, 'kept')"]
    again = ready.run("session().call(train, 10, lr=0.2) == session().pull('losses[-1]')").ok()
    assert again.texts[-1:] == ["True"]
    on_one = ready.run("session().call(lambda: World().rank, ranks='last')").ok()
    assert on_one.texts[-1:] == ["[1]"]
    assert ready.run(PIDS).texts[-1:] == pids.ok().texts[-1:]


def test_a_function_defined_after_the_start_sees_the_cells_variables(ready: Notebook) -> None:
    """It is sent, with what it closes over; the globals it uses and sets are those of the workers."""
    ready.run(
        "def outer(n):\n    def inner(m):\n        global found\n        found = (n, m, before)\n    return inner"
    ).ok()
    ready.run("notebook_launcher(outer(1), (2,), session=session(), num_processes=2)").ok()
    assert ready.run("%%distributed\nfound").texts[-1:] == ["[0-1] (1, 2, 'kept')"]


def test_its_errors_are_a_launchs(ready: Notebook) -> None:
    """A rank's error is raised with the function's own line, and the workers live on."""
    ready.run(
        "def fail():\n"
        "    if World().rank == 1:\n"
        "        raise ValueError('boom')\n"
        "    World().wait_for_everyone(before)"
    ).ok()
    error = ready.run("notebook_launcher(fail, session=session())").failed("ValueError")
    assert "raise ValueError('boom')" in error.traceback
    assert "rank 1" in error.traceback
    late = ready.run("notebook_launcher(__import__('time').sleep, (60,), session=session(), timeout=0.3)")
    assert "RunTimeout" in late.failed("RunTimeout").traceback
    assert ready.run("%%distributed\nworld.reduce(torch.ones(1)), before").texts[-1:] == [
        "[0-1] (tensor([2.]), 'kept')"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("num_processes=3", "num_processes is 3, but the session has 2 ranks"),
        ("env={'A': 'b'}, max_restarts=1", "max_restarts, env would have no effect on the workers of a session"),
        ("mixed_precision='bf16'", "mixed_precision would have no effect"),
    ],
)
def test_what_workers_that_run_cannot_take_is_refused(ready: Notebook, arguments: str, message: str) -> None:
    """Instead of being without effect."""
    error = ready.run(f"notebook_launcher(train, (1,), session=session(), {arguments})").failed("UsageError")
    assert message in error.evalue


def test_something_else_than_a_session_is_refused(notebook: Notebook) -> None:
    """With the name of what gives one."""
    notebook.run(SETUP).ok()
    error = notebook.run("notebook_launcher(train, (1,), session=True)").failed("UsageError")
    assert "got True: `nbsync.session()` is the current one" in error.evalue


@pytest.mark.parametrize("line", ["dist.init_process_group('gloo')", "init_process_group(backend='gloo')"])
def test_making_the_group_in_a_cell_says_that_it_is_there(ready: Notebook, line: str) -> None:
    """And what to write instead, below the line itself; whichever way the function was imported."""
    error = ready.run(f"%%distributed\n{line}").failed("UsageError")
    assert "the process group exists already" in error.evalue
    assert "if not dist.is_initialized(): dist.init_process_group(...)" in error.evalue
    assert f"----> 2 {line}" in error.traceback
    assert "distributed_c10d.py" not in error.traceback
    written = (
        "%%distributed\nif not dist.is_initialized(): dist.init_process_group('gloo')\nworld.reduce(torch.ones(1))"
    )
    assert ready.run(written).ok().texts[-1:] == ["[0-1] tensor([2.])"]


@pytest.mark.parametrize(
    "line",
    [
        "dist.destroy_process_group()",
        "destroy_process_group(dist.group.WORLD)",
        "from accelerate import Accelerator; Accelerator().end_training()",
    ],
)
def test_destroying_the_group_in_a_cell_leaves_it(ready: Notebook, line: str) -> None:
    """The last line of many a program says so and does nothing; models wrapped before go on."""
    ready.run("session().call(train, 1)").ok()
    cell = ready.run(f"%%distributed\n{line}").ok()
    assert cell.stderr.startswith("[0-1] the process group belongs to the session and stays")
    assert ready.run("%%distributed\nmodel(torch.ones(1, 1)).sum().backward()\nworld.reduce(torch.ones(1))").texts[
        -1:
    ] == ["[0-1] tensor([2.])"]


def test_groups_of_the_users_own_come_and_go(ready: Notebook) -> None:
    """Only the default group is kept."""
    code = """%%distributed
pair = dist.new_group([0, 1])
dist.all_reduce(both := torch.ones(1), group=pair)
dist.destroy_process_group(pair)
both, pair in dist.distributed_c10d._world.pg_map"""
    assert ready.run(code).ok().texts[-1:] == ["[0-1] (tensor([2.]), False)"]


def test_a_launched_function_makes_and_destroys_the_group_itself(notebook: Notebook) -> None:
    """As in a torchrun script, unchanged; and again, where a rank is early and the store has the others' old group."""
    code = """
import os, time
import torch
import torch.distributed as dist
from nbsync import notebook_launcher
def main():
    found = []
    for turn in range(4):
        if int(os.environ["RANK"]) == turn % 2:
            time.sleep(0.1)  # the other one is at the store by then
        dist.init_process_group("gloo")
        dist.all_reduce(tensor := torch.ones(1))
        dist.destroy_process_group()
        found.append(tensor.item())
    return found, dist.is_initialized()
notebook_launcher(main, num_processes=2)"""
    assert notebook.run(code).ok().stdout == "[([2.0, 2.0, 2.0, 2.0], False), ([2.0, 2.0, 2.0, 2.0], False)]\n"
