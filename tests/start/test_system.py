"""Where nbsync's workers can run, and what is told where they cannot."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from started import GUARD

import nbsync
from nbsync.kernel.start import system
from notebooks import Notebook

NEED_LINUX = "nbsync's workers need Linux, and this kernel runs on {name}: run the kernel on Linux"


@pytest.mark.parametrize(("platform", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("freebsd14", "freebsd14")])
def test_another_system(platform: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every start fails at once and says what to do; the report of `check_fork` says the same."""
    monkeypatch.setattr(sys, "platform", platform)
    for method in ("auto", "fork", "forkserver", "spawn"):
        with pytest.raises(nbsync.StartError, match=NEED_LINUX.format(name=name)):
            nbsync.Session(2, start_method=method)
        with pytest.raises(nbsync.StartError, match=NEED_LINUX.format(name=name)):
            nbsync.notebook_launcher(print, start_method=method)
    report = nbsync.check_fork()
    assert not report
    assert str(report).startswith("A fork of this kernel could not work.\nNO the system is ")
    assert NEED_LINUX.format(name=name) in str(report)


def test_the_magics_say_it_in_one_line(fresh_notebook: Notebook) -> None:
    fresh_notebook.run("import sys\nsys.platform = 'darwin'").ok()
    for cell in ("%nbsync start -n 2", "%%distributed\npass"):
        error = fresh_notebook.run(cell).failed("UsageError")
        assert error.evalue.startswith(NEED_LINUX.format(name="macOS"))
        assert "Traceback" not in error.traceback


#: What Windows does not have, as far as nbsync and the modules that it imports ask for it.
WINDOWS = """
import os, sys
sys.platform = "win32"
for name in ("fork", "register_at_fork", "sched_getaffinity", "getuid", "killpg", "pipe2"): delattr(os, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
"""


@pytest.mark.parametrize(
    "statement",
    [
        "from nbsync import Session",
        "from nbsync import notebook_launcher",
        "import nbsync; nbsync.load_ipython_extension(None)",
    ],
)
def test_windows_has_not_even_the_modules(statement: str) -> None:
    """There it fails as it is imported, with the same words."""
    done = subprocess.run([sys.executable, "-c", WINDOWS + statement], capture_output=True, text=True, timeout=GUARD)
    assert done.stderr.splitlines()[-1].startswith(f"nbsync.errors.StartError: {NEED_LINUX.format(name='Windows')}")


def test_a_world_of_one_works_elsewhere() -> None:
    """`World` in a plain process needs no Linux."""
    program = """
import sys, sysconfig, torch
sysconfig.get_config_vars()
sys.platform = "darwin"
from nbsync import World
world = World()
world.wait_for_everyone()
print(world.size, world.reduce(torch.ones(1)).item())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=GUARD)
    assert done.stdout == "1 1.0\n", done.stderr


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EPERM])
def test_a_linux_without_pidfds(refusal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux before 5.3, or a container that forbids the call."""

    def refuse(pid: int) -> int:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(system, "open_pidfd", refuse)
    with pytest.raises(nbsync.StartError, match=rf"need Linux 5.3 or newer.*\({os.strerror(refusal)}\)"):
        nbsync.Session(2)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_python_that_was_built_against_an_old_c_library(tmp_path: Path, method: str) -> None:
    """conda's Python has no functions for pidfds, and none for files in memory."""
    hook = "import os, signal\ndel os.pidfd_open, signal.pidfd_send_signal, os.memfd_create\n"
    (tmp_path / "sitecustomize.py").write_text(hook)
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    notebook = Notebook(tmp_path / "kernel", {"PYTHONPATH": path})
    try:
        notebook.run("%load_ext nbsync\nimport os\nassert not hasattr(os, 'pidfd_open')").ok()
        notebook.run(f"%nbsync start -n 2 --start-method {method}", GUARD).ok()
        notebook.run("%%on_rank 1\nimport os; os.kill(os.getpid(), 9)").failed("WorkerDied")
        notebook.run("%nbsync restart --ranks 1", GUARD).ok()
        assert notebook.run("%%distributed\nworld.reduce(torch.ones(1))").ok().texts == ["[0-1] tensor([2.])"]
        notebook.run("%nbsync stop").ok()
    finally:
        notebook.shutdown()
