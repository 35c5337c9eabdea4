"""What the kernel does against being killed, and against the user's own code beside it."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

from nbsync.errors import StartError
from nbsync.kernel import scratch
from nbsync.kernel.engines.local import LocalEngine
from nbsync.kernel.guard import Guard
from nbsync.kernel.hub import Exited
from nbsync.kernel.reaping import UNKNOWN, kill_and_reap
from nbsync.kernel.run import Run
from nbsync.kernel.start import startup
from nbsync.protocol.serial import Common

pytestmark = pytest.mark.usefixtures("nothing_left")

HOUR_AGO = time.time() - 3600


def _age(path: Path) -> None:
    os.utime(path, (HOUR_AGO, HOUR_AGO))


def test_sweep_removes_what_a_gone_kernel_left_and_nothing_of_the_users(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path_factory.mktemp("tmp")  # short: else it would not be used
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, used = scratch.Scratch(), scratch.Scratch()
    left.make()
    used.make()
    users = [tmp_path / "nbsync-anything", tmp_path / "nbsync-01234567", tmp_path / f"{left.path.name}-copy"]
    for path in users:
        path.mkdir()
        (path / "checkpoint.pt").touch()
    scratch.close_kernel_only(left._lock)  # as when its kernel is gone
    for path in (left.path, used.path, *users):
        _age(path)
    scratch.sweep.__wrapped__()
    assert not left.path.exists()
    assert used.path.exists()
    assert all((path / "checkpoint.pt").exists() for path in users)
    used.remove()
    assert not used.path.exists()


def test_sockets_fit_into_the_folder_wherever_temporary_files_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("short", "l" * 50, "l" * 150):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        with socket.socket(socket.AF_UNIX) as listener:
            folder = scratch.Scratch()
            folder.path.parent.mkdir(exist_ok=True)
            folder.make()
            listener.bind(str(folder.path / "listener-01234567"))
            folder.remove()


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_killed_guard_is_followed_by_another(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    guard = Guard(folder)
    first = guard._shell.pid
    os.kill(first, signal.SIGKILL)
    guard._shell.wait()
    guard.watch([])
    second = guard._shell.pid
    assert second != first
    assert not _is_gone(second)
    guard.dismiss()
    guard.dismiss()
    guard.watch([])
    assert _is_gone(second)
    assert folder.exists()


def test_a_guard_that_cannot_be_replaced_is_told_of_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard(tmp_path / "folder")
    kill_and_reap(guard._shell.pid)

    def refuse() -> None:
        raise BlockingIOError("no process")

    monkeypatch.setattr(guard, "_start", refuse)
    guard.watch([])
    guard.watch([])
    guard.dismiss()
    assert [record.getMessage() for record in caplog.records] == [
        "if this kernel is killed, processes that the workers started may be left: no process"
    ]


def test_a_child_that_somebody_else_has_reaped_does_no_harm() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)
    assert os.WTERMSIG(kill_and_reap(pid)) == signal.SIGKILL
    assert kill_and_reap(pid) == UNKNOWN


def test_a_known_problem_is_told_also_when_the_time_is_up() -> None:
    """It takes the place of the ranks that are late, which have none."""
    start = Run(1, (0, 1))
    waits = startup.Startup(start, None, "spawn")  # type: ignore[arg-type]
    waits._limit = 0.0
    start.inbox.put((1, "message", Exited(100, signal.SIGKILL, 0.0)))
    with pytest.raises(StartError, match="rank 1 was ended by SIGKILL during the start"):
        waits.wait_until_alive()


def test_a_worker_that_ends_during_the_look_is_not_taken_for_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nobody:
        def pid(self, rank: int) -> int:
            return 0

    monkeypatch.setattr(startup, "_pulse", lambda pid: "")
    waits = startup.Startup(Run(1, (0,)), Nobody(), "fork")  # type: ignore[arg-type]
    waits._look_for_hung({0})
    waits._looked = time.monotonic()
    waits._still = {0: ("", time.monotonic() - 10)}
    waits._look_for_hung({0})


def test_a_notebook_that_cannot_be_packed_is_a_start_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*arguments: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("nbsync.kernel.engines.local.pack_notebook", no_room)
    with pytest.raises(StartError, match=r"could not be packed for the workers.*No space left"):
        LocalEngine("spawn").prepare([], None, Common())
