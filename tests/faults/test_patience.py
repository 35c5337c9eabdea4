"""Rows 11, 15: programs that are right, and slow: nothing is told of them, and nothing is broken."""

from __future__ import annotations

import pytest
from worlds import GUARD, Ranks

from notebooks import Notebook, poll

_SLOW = """
import ctypes, functools, os, shutil, tempfile
from torch.nn.parallel import DistributedDataParallel as DDP
def slow(*args):
    if rank == 1: time.sleep(2.5)
    return args[0] if args else None
def made(): return DDP(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
x, w = torch.ones(2, 4), torch.ones(3, requires_grad=True)
"""
_PROGRAMS = {
    "a hook in DDP's backward pass": "model = made()\nmodel.module[0].weight.register_hook(slow)\n"
    "model(x).sum().backward()",
    "saved tensors": "with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), slow):\n"
    "    loss = made()(x).sin().sum()\nloss.backward()",
    "a backward pass of one rank": "w.register_hook(slow)\nif rank == 1: w.sum().backward()",
    "a backward pass that a library makes slow": "import torch.nn.parallel as library\n"
    "exec(compile('def wait(grad): time.sleep(2.5)', library.__file__, 'exec'), globals())\n"
    "if rank == 1:\n    w.register_hook(wait)\n    w.sum().backward()",
    "a hook of FSDP2": "from torch.distributed.fsdp import fully_shard\nmodel = torch.nn.Linear(4, 4)\n"
    "fully_shard(model)\nout = model(x.requires_grad_())\nout.register_hook(slow)\nout.sum().backward()",
    "a disk": "import torch.distributed.checkpoint as dcp\n"
    "folder = [tempfile.mkdtemp() if rank == 0 else None]\ndist.broadcast_object_list(folder)\nwhole = os.fsync\n"
    "if rank == 1: os.fsync = functools.partial(ctypes.CDLL(None).poll, None, 0, 2500)\n"
    "dcp.save({'w': w.detach()}, checkpoint_id=folder[0] + '/a')\nos.fsync = whole\n"
    "if rank == 0: shutil.rmtree(folder[0])",
    "an object that is pickled": "class Slow:\n    def __reduce__(self): return slow((Slow, ()))\n"
    "dist.all_gather_object([None] * 2, Slow())",
    "outputs of other sizes": "out = torch.zeros(2 + rank)\n"
    "dist.reduce_scatter(out, [torch.ones(2), torch.ones(3)])\nassert (out == 2).all()",
}


@pytest.mark.parametrize("program", _PROGRAMS)
def test_row_11_a_slow_rank(pair: Ranks, program: str) -> None:
    """Where torch runs Python, or a library works, within an operation, the rank does not wait."""
    outcome = pair.run(f"{_SLOW}{_PROGRAMS[program]}\ndist.barrier()").ok()
    assert outcome.stderr == ""
    pair.assert_whole()


def test_row_15_a_cell_in_the_background(fresh_notebook: Notebook) -> None:
    """What it waits for may come in the next cell, on the rank that is idle now."""
    fresh_notebook.run("%load_ext nbsync\n%nbsync start -n 2").ok()
    fresh_notebook.run("%%distributed --ranks 0 --background\nt = torch.zeros(1)\ndist.recv(t, 1)").ok()
    fresh_notebook.run("import time; time.sleep(2.5)").ok()
    fresh_notebook.run("%%on_rank 1\ndist.send(torch.ones(1), 0)").ok()
    is_idle = "ranks 0-1: idle"
    assert poll(lambda: is_idle in fresh_notebook.run("%nbsync status").stdout, GUARD, interval=0.2)
    assert fresh_notebook.run("%%on_rank 0\nt.item()").ok().texts == ["[0] 1.0"]


def test_row_11_two_groups_of_the_same_ranks(pair: Ranks) -> None:
    """Ranks that wait in different ones are told so."""
    pair.run("training, saving = dist.new_group(), dist.new_group()").ok()
    for operation in ("dist.barrier(group={})", "dist.all_reduce(torch.ones(3), group={})"):
        for other in ("saving", "None"):
            cell = operation.format(f"training if rank == 0 else {other}")
            told = pair.fail(cell, "Deadlock").evalue
            assert len(set(part.split()[0] for part in told.split("of process group ")[1:])) == 2, told
    pair.assert_whole()


def test_row_02_an_error_of_the_users_own_that_reads_as_a_lost_peer(pair: Ranks) -> None:
    """It is shown, though the others wait in the same operation."""
    cell = (
        "def reset(grad):\n    if rank == 1: raise ConnectionResetError(104, 'Connection reset by peer')\n"
        "model = made()\nmodel.module[0].weight.register_hook(reset)\nmodel(x).sum().backward()"
    )
    error = pair.fail(_SLOW + cell, "ConnectionResetError")
    assert "Connection reset by peer" in error.evalue
    assert "Deadlock" not in error.evalue
    pair.assert_whole()


@pytest.mark.parametrize("options", ["", ", persistent_workers=True"])
def test_row_19_a_sample_that_cannot_be_loaded(pair: Ranks, options: str) -> None:
    """The ranks are whole again without waiting for the processes of the loader, one after the other."""
    cell = (
        "class Broken(torch.utils.data.Dataset):\n    def __len__(self): return 64\n"
        "    def __getitem__(self, index):\n        if rank == 1 and index > 8: raise OSError('truncated')\n"
        "        return torch.ones(4)\n"
        "model = made(); model(x).sum().backward()\n"
        f"for batch in torch.utils.data.DataLoader(Broken(), 4, num_workers=2{options}): model(batch).sum().backward()"
    )
    outcome = pair.run(_SLOW + cell, GUARD)
    assert "truncated" in outcome.failed("OSError").traceback
    assert "could not be healed" not in outcome.stderr
    pair.run("model(x).sum().backward()").ok()
    pair.assert_whole()
