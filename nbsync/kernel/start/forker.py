"""The thread that forks.

A child of a thread that used OpenMP hangs at its first parallel operation, and Linux's parent-death signal fires
when the forking *thread* ends. So all forks come from one thread that lives as long as the kernel and never computes.
"""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# Python 3.12+ warns of forks in a process with threads: that is what this thread exists to make safe.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning, module=__name__)

_jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
_thread: threading.Thread | None = None
_lock = threading.Lock()


def run_in_forker(job: Callable[[], Any]) -> Any:
    """Run `job` in the forker thread and return what it returns."""
    _ensure_running()
    future: Future[Any] = Future()
    _jobs.put((job, future))
    return future.result()


def fork(child: Callable[[], None]) -> int:
    """Fork; `child` runs in the new process, which ends when it returns. To be called in the forker thread.

    Returns:
        The child's process id.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        child()
    finally:
        os._exit(70)


def _ensure_running() -> None:
    global _thread
    with _lock:
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(target=_serve, name="nbsync-forker", daemon=True)
            _thread.start()


def _serve() -> None:
    while True:
        job, future = _jobs.get()
        try:
            future.set_result(job())
        except BaseException as error:  # it belongs to the caller
            future.set_exception(error)
        del job, future


def _after_fork() -> None:
    """A worker has no forker, and takes over none of its locks and queued jobs."""
    global _thread, _lock, _jobs
    _thread, _lock, _jobs = None, threading.Lock(), queue.SimpleQueue()


os.register_at_fork(after_in_child=_after_fork)
