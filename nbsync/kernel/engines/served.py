"""The notebook's side of the fork server: a process with torch loaded and nothing else that forks workers for it."""

from __future__ import annotations

import atexit
import ctypes
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nbsync.errors import StartError
from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel
from nbsync.kernel.engines.base import Process
from nbsync.kernel.engines.fresh import run_interpreter
from nbsync.kernel.engines.wires import Wires, refused
from nbsync.kernel.reaping import kill_and_reap
from nbsync.kernel.start.forker import run_in_forker
from nbsync.protocol.forking import APART, COUNT, Answer, receive
from nbsync.protocol.spec import WorkerSpec

LIMIT = 120.0  # seconds for torch to be loaded, and for the notebook's variables to be rebuilt
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


class ForkServer:
    """One fork server's process."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # what it writes before it can speak
        self._socket, theirs = socket.socketpair()
        keep_in_kernel(self._socket.fileno())
        self._is_ready = self._has_ended = False
        with theirs:
            arguments, fds, said = (theirs.fileno(), os.getpid()), (theirs.fileno(),), self._said.fileno()
            self._pid = run_in_forker(
                lambda: run_interpreter("nbsync.worker.fresh.serve", arguments, fds, stderr=said),
            )
        self._socket.settimeout(LIMIT)

    def start(self, specs: Sequence[WorkerSpec], wires: Sequence[Wires], luggage: int, started: list[Process]) -> None:
        """Have one worker forked for each spec. They become children of this process; `started` grows with each.

        Raises:
            StartError: the system refused, the server failed, or what was sent cannot be rebuilt.
        """
        try:
            with _adopting_orphans():
                self._wait_until_ready()
                answer = self._request(wires, luggage, 0)
                if answer.spoiled:
                    answer = self._request(wires, luggage, APART)
        except (EOFError, OSError) as error:
            said = self._last_words()
            self.close()
            raise StartError(f"the fork server failed: {error}" + (f". It said:\n{said}" if said else "")) from error
        if answer.problem:
            self.close()  # what the helper has not read is still on its way
        if answer.errno:
            raise refused(specs, len(answer.pids), OSError(answer.errno, answer.problem))
        if answer.problem:
            raise StartError(f"the fork server could not start the workers:\n{answer.problem}")
        self._take_over(specs, wires, answer.pids, started)

    def _take_over(
        self, specs: Sequence[WorkerSpec], wires: Sequence[Wires], pids: Sequence[int], started: list[Process]
    ) -> None:
        try:
            for spec, wire, pid in zip(specs, wires, pids, strict=True):
                started.append(wire.process(spec.rank, pid))
        except OSError:  # the one that failed has been ended
            for pid in pids[len(started) + 1 :]:
                kill_and_reap(pid)
            raise

    def _request(self, wires: Sequence[Wires], luggage: int, flags: int) -> Answer:
        self._socket.sendall(COUNT.pack(len(wires) | flags))
        socket.send_fds(self._socket, [b"l"], [luggage])
        for wire in wires:
            socket.send_fds(self._socket, [b"w"], wire.worker_ends)
        answer = receive(self._socket)
        if not isinstance(answer, Answer):  # the status of a helper that said nothing
            raise EOFError(f"its helper ended with status {answer} while it rebuilt the notebook's variables")
        receive(self._socket)  # the helper has ended: its children are adopted
        return answer

    def _wait_until_ready(self) -> None:
        if not self._is_ready:
            receive(self._socket)
            self._is_ready = True

    def _last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-2000:]

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        if not self._has_ended:
            try:
                self._has_ended = os.waitpid(self._pid, os.WNOHANG) != (0, 0)
            except ChildProcessError:  # somebody else in the notebook waited for all children
                self._has_ended = True
        return not self._has_ended

    def close(self) -> None:
        """End it. The workers that it has forked live on. Idempotent."""
        if self.is_alive:
            kill_and_reap(self._pid)
            self._has_ended = True
        if not self._said.closed:
            self._said.close()
            close_kernel_only(self._socket.detach())


_server: ForkServer | None = None
_lock = threading.Lock()


def preload() -> None:
    """Start the fork server, if it does not run, without waiting until it is ready."""
    global _server
    with _lock:
        if _server is None or not _server.is_alive:
            close()
            _server = ForkServer()


def serve_all(specs: Sequence[WorkerSpec], wires: Sequence[Wires], luggage: int, started: list[Process]) -> None:
    """Have the fork server start the workers. See `ForkServer.start`."""
    preload()
    with _lock:
        if _server is None:
            raise StartError("the fork server was ended meanwhile")
        _server.start(specs, wires, luggage, started)


def close() -> None:
    """End the fork server, if there is one."""
    global _server
    if _server is not None:
        _server.close()
    _server = None


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Workers whose parent, the server's helper, ends become this process's children, here only."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int()
    libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before))
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the system does not let this process adopt the workers")
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def _after_fork() -> None:
    """A worker has no fork server."""
    global _server, _lock
    _kept.append(_server)
    _server, _lock = None, threading.Lock()


_kept: list[ForkServer | None] = []  # in a worker: the kernel's, whose files are not for it to close
atexit.register(close)
os.register_at_fork(after_in_child=_after_fork)
