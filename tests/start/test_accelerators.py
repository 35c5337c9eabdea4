"""An accelerator that is initialised in the kernel forbids the fork: who did it is told, and the fork server starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from started import GUARD

from notebooks import Notebook, family

#: torch's own initialisation on a machine without a GPU: the driver's part is replaced, what torch does is its own.
FAKE_GPU = """
import torch
torch._C._cuda_getDeviceCount = lambda: 1
torch._C._cuda_init = lambda: None
torch.cuda._cudart = object()
torch.cuda._queued_calls[:] = [call for call in torch.cuda._queued_calls if "_note" in repr(call[0])]
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Notebook]:
    """A kernel of this test's own."""
    notebook = Notebook(tmp_path, {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    try:
        yield notebook
    finally:
        notebook.shutdown()


def test_the_line_is_named(kernel: Notebook) -> None:
    """The cell and line that initialised CUDA are named; auto takes the fork server, and the notebook goes along."""
    kernel.run("%load_ext nbsync").ok()
    kernel.run(FAKE_GPU).ok()
    kernel.run("import nbsync; assert nbsync.check_fork()").ok()
    number = kernel.run("kept = [1, 2]\ndef make():\n    torch.cuda.init()\nmake()").ok().number
    place = f"in Cell In[{number}], line 3"
    report = kernel.run("nbsync.check_fork()").ok().texts[0]
    assert report.startswith("A fork of this kernel could not work")
    assert f"NO CUDA is initialised, {place}: a forked process cannot use it" in report
    error = kernel.run("%nbsync start -n 2 --start-method fork").failed("UsageError")
    assert f"CUDA is already initialised in this kernel ({place})" in error.evalue
    said = kernel.run("%nbsync start -n 2", GUARD).ok().stderr
    assert (
        said == f"nbsync: the workers come from a fork server: CUDA is already initialised in this kernel ({place})\n"
    )
    assert kernel.run("%%distributed\nkept, torch.cuda.is_initialized()").ok().texts == ["[0-1] ([1, 2], False)"]
    assert kernel.run("%nbsync restart", GUARD).ok().stderr.count("fork server") == 1
    launched = kernel.run("nbsync.notebook_launcher(lambda: sum(kept), num_processes=2)", GUARD).ok()
    assert "[3, 3]" in launched.stdout
    assert place in launched.stderr


def test_the_import_is_named(kernel: Notebook) -> None:
    """When an import did it, the import is named, with the cell that made it."""
    (kernel.folder / "work" / "eager_library.py").write_text("import inner_library\n")
    (kernel.folder / "work" / "inner_library.py").write_text("import torch\ntorch.cuda.init()\n")
    kernel.run("%load_ext nbsync").ok()
    kernel.run(FAKE_GPU).ok()
    number = kernel.run("x = 1\nimport eager_library").ok().number
    place = kernel.run("import nbsync; print(nbsync.check_fork())").ok().stdout
    assert "inner_library.py, line 2" in place or f"eager_library in Cell In[{number}], line 2" in place


def test_earlier_than_nbsync(kernel: Notebook) -> None:
    """CUDA that was initialised before nbsync was loaded is found too; then it is told when that was noticed."""
    kernel.run(FAKE_GPU).ok()
    kernel.run("torch.cuda.init()").ok()
    number = kernel.run("%load_ext nbsync").ok().number
    said = kernel.run("import nbsync; print(nbsync.check_fork())").ok().stdout
    assert f"earlier than nbsync looked; it was noticed in Cell In[{number}], line 1" in said


def test_looking_initialises_nothing(kernel: Notebook) -> None:
    """Neither the report, nor a start, nor counting devices initialises CUDA; without torch the report loads none."""
    kernel.run("%load_ext nbsync").ok()
    kernel.run("import nbsync, sys; assert nbsync.check_fork(); assert 'torch' not in sys.modules").ok()
    kernel.run(FAKE_GPU + "\ndef refuse(): raise AssertionError('initialised')\ntorch._C._cuda_init = refuse").ok()
    kernel.run("torch.cuda.device_count = lambda: 0").ok()
    kernel.run("%nbsync start -n 2", GUARD).ok()
    assert kernel.run("torch.cuda.is_initialized()").ok().texts == ["False"]


def test_report_of_a_notebook(kernel: Notebook) -> None:
    """Native pools, the user's threads and open connections are told; they do not forbid the fork."""
    kernel.run("%load_ext nbsync").ok()
    kernel.run(
        "import sqlite3, threading, time, torch, nbsync\n"
        "database = sqlite3.connect(':memory:')\n"
        "torch.set_num_threads(2); torch.ones(1 << 20).sum()\n"
        "threading.Thread(target=time.sleep, args=(60,), name='fetcher', daemon=True).start()"
    ).ok()
    report = kernel.run("print(nbsync.check_fork())").ok().stdout
    assert report.startswith("This kernel may fork.\n")
    assert "OpenMP" in report
    assert "threads of Python: fetcher: " in report
    assert "1 open sqlite3.Connection: " in report


HOOK = """
import os, signal, threading
held = threading.Lock()
held.acquire()
os.register_at_fork(after_in_child={hook})
"""


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("held.acquire", "hung right after the fork"),
        ("lambda: os.kill(os.getpid(), signal.SIGSEGV)", "were ended by SIGSEGV during the start"),
    ],
)
def test_self_test(kernel: Notebook, hook: str, told: str) -> None:
    """A library whose fork handler hangs or crashes the child: auto notices, and takes the fork server."""
    kernel.run("%load_ext nbsync").ok()
    kernel.run(HOOK.format(hook=hook)).ok()
    outcome = kernel.run("%nbsync start -n 2", GUARD).ok()
    assert "the workers come from a fork server: ranks 0-1 " in outcome.stderr
    assert told in outcome.stderr
    assert kernel.run("%%distributed\nrank").ok().texts == ["[0] 0", "[1] 1"]
    kernel.run("%nbsync stop").ok()
    error = kernel.run("%nbsync start -n 2 --start-method fork", GUARD).failed("UsageError")
    assert told in error.evalue


def test_the_server_is_preloaded_where_that_is_asked_for(tmp_path: Path) -> None:
    """With NBSYNC_FORKSERVER=preload, `%load_ext nbsync` starts the fork server and does not wait for it."""
    notebook = Notebook(tmp_path, {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "NBSYNC_FORKSERVER": "preload"})
    try:
        notebook.run("%load_ext nbsync").ok()
        assert len(family(notebook.pid)) == 1
        notebook.run("import sys; assert 'torch' not in sys.modules").ok()
        notebook.run("%nbsync start -n 2 --start-method forkserver", GUARD).ok()
        assert notebook.run("%%distributed\nrank").ok().texts == ["[0] 0", "[1] 1"]
    finally:
        notebook.shutdown()


def test_a_server_that_still_loads_dies_with_the_kernel(tmp_path: Path) -> None:
    """A kernel that is killed while its fork server loads torch takes it along."""
    notebook = Notebook(tmp_path, {"NBSYNC_FORKSERVER": "preload"})
    try:
        notebook.run("%load_ext nbsync").ok()
        mine = notebook.belongings()
        assert len(mine.processes) == 2
        notebook.kill()
        mine.assert_gone()
    finally:
        notebook.kill()
        notebook.shutdown()
