"""Ranks with GPUs, in a real kernel. `make test-gpu` runs these alone; on a machine without a GPU they are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from notebooks import Notebook, Outcome

GPUS = torch.cuda.device_count()  # asks the driver, and initialises nothing
GUARD = 90.0  # seconds: NCCL takes its time at the first collective
SPAN = "0" if GPUS == 1 else f"0-{GPUS - 1}"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS == 0, reason="needs a CUDA device, and this machine has none"),
]
several = pytest.mark.skipif(GPUS < 2, reason=f"needs two CUDA devices, and this machine has {GPUS}")


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Notebook]:
    """A kernel of this test's own, with one rank for each GPU."""
    notebook = Notebook(tmp_path, {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    try:
        notebook.run("%load_ext nbsync\nimport torch, nbsync").ok()
        notebook.run("%nbsync start", GUARD).ok()
        yield notebook
    finally:
        notebook.shutdown()


def _ranks(kernel: Notebook, code: str) -> Outcome:
    return kernel.run(f"%%distributed\n{code}", GUARD)


def _works(kernel: Notebook) -> bool:
    cell = """
t, c = torch.ones(1, device=device), torch.ones(1)
dist.all_reduce(t)
dist.all_reduce(c)
t.item(), c.item()"""
    return _ranks(kernel, cell).ok().texts == [f"[{SPAN}] ({GPUS}.0, {GPUS}.0)"]


def test_one_rank_for_each_gpu(kernel: Notebook) -> None:
    """Each rank has its own GPU before user code runs, NCCL for CUDA tensors and gloo for the others."""
    cell = "torch.cuda.current_device() == local_rank == device.index, dist.get_backend_config(), world_size"
    assert _ranks(kernel, cell).ok().texts[0].endswith(f"(True, 'cpu:gloo,cuda:nccl', {GPUS})")
    assert _works(kernel)
    bound = _ranks(kernel, "dist.distributed_c10d._get_default_group().bound_device_id == device").ok().texts
    assert bound == [f"[{SPAN}] True"]


def test_the_kernel_stays_without_cuda(kernel: Notebook) -> None:
    """Values, models and results of cells come to the notebook as CPU tensors, which then has no CUDA context."""
    _ranks(kernel, "big = torch.arange(5, device=device); net = torch.nn.Linear(2, 2).to(device)").ok()
    kernel.run("%nbsync pull big net --ranks 0").ok()
    cell = "big.device.type, type(net.weight).__name__, net.weight.device.type, torch.cuda.is_initialized()"
    assert kernel.run(cell).ok().texts == ["('cpu', 'Parameter', 'cpu', False)"]
    assert kernel.run("%nbsync restart", GUARD).ok().stderr == ""


def test_cuda_in_the_notebook(kernel: Notebook) -> None:
    """With CUDA in use in the notebook the workers come from the fork server, and can use it."""
    kernel.run("%nbsync stop").ok()
    number = kernel.run("x = torch.ones(3, device='cuda')").ok().number
    said = kernel.run("%nbsync start", GUARD).ok().stderr
    assert f"fork server: CUDA is already initialised in this kernel (in Cell In[{number}], line 1)" in said
    assert _ranks(kernel, "x.device.type, x.to(device).sum().item()").ok().texts == [f"[{SPAN}] ('cpu', 3.0)"]
    assert _works(kernel)


def test_visible_devices(tmp_path: Path) -> None:
    """CUDA_VISIBLE_DEVICES decides how many ranks there are; more ranks than GPUs share them over gloo, with a line."""
    notebook = Notebook(tmp_path, {"CUDA_VISIBLE_DEVICES": "0"})
    try:
        notebook.run("%load_ext nbsync").ok()
        assert "1 worker" in notebook.run("%nbsync start", GUARD).ok().stdout
        notebook.run("%nbsync stop").ok()
        assert "2 ranks share 1 GPU: the backend is gloo" in notebook.run("%nbsync start -n 2", GUARD).ok().stderr
    finally:
        notebook.shutdown()


def test_ranks_that_share_gpus(kernel: Notebook) -> None:
    """With more ranks than GPUs gloo moves CUDA tensors too, also after a heal."""
    kernel.run("%nbsync stop").ok()
    kernel.run(f"%nbsync start -n {GPUS + 1}", GUARD).ok()
    cell = "t = torch.ones(1, device='cuda')\ndist.all_reduce(t)\ndevice.type, t.item()"
    works = [f"[0-{GPUS}] ('cpu', {GPUS + 1}.0)"]
    assert _ranks(kernel, cell).ok().texts == works
    _ranks(kernel, f"if rank == 0: raise ValueError('on purpose')\n{cell}").failed("ValueError")
    assert _ranks(kernel, cell).ok().texts == works


def test_out_of_memory(kernel: Notebook) -> None:
    """A rank without GPU memory has an ordinary error; all state is kept, and what was cached is given back."""
    _ranks(kernel, "kept = rank").ok()
    cell = "if rank == 0:\n    hoard = []\n    while True: hoard.append(torch.empty(1 << 30, device=device))"
    error = _ranks(kernel, cell).failed("OutOfMemoryError")
    assert error.evalue.startswith("rank 0: ")
    _ranks(kernel, "globals().pop('hoard', None); assert kept == rank").ok()
    assert _works(kernel)


@several
def test_a_failed_rank_frees_the_others(kernel: Notebook) -> None:
    """Ranks that wait in NCCL for one that has raised are aborted; the group works again, and state is kept."""
    _ranks(kernel, "kept = rank").ok()
    outcome = _ranks(kernel, "if rank == 1: raise ValueError('on purpose')\nt = torch.ones(1, device=device)\n"
                     "dist.all_reduce(t); t.item()")  # fmt: skip
    assert outcome.failed("ValueError").evalue.startswith("rank 1: ValueError: on purpose")
    assert outcome.seconds < 5.0
    assert _works(kernel)
    assert _ranks(kernel, "kept == rank").ok().texts == [f"[{SPAN}] True"]


@several
def test_interrupt_in_a_collective(kernel: Notebook) -> None:
    """The stop button ends a wait in NCCL within two seconds, and the next collective works."""
    assert _works(kernel)
    kernel.start("%%distributed\nprint('begun')\nif rank == 0:\n    t = torch.ones(1, device=device)\n"
                 "    dist.all_reduce(t); t.item()\nelse:\n    import time; time.sleep(60)")  # fmt: skip
    kernel.wait_for_output("begun", GUARD)
    kernel.interrupt()
    assert kernel.wait(20.0).failed("KeyboardInterrupt")
    assert _works(kernel)
