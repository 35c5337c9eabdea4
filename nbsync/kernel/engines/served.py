"""The notebook's side of the fork server: a process with torch loaded and nothing else that forks workers for it."""

from __future__ import annotations

import atexit
import ctypes
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from nbsync.errors import StartError
from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel
from nbsync.kernel.engines.base import Process
from nbsync.kernel.engines.fresh import run_interpreter
from nbsync.kernel.engines.wires import Wires, refused
from nbsync.kernel.reaping import kill_and_reap, kill_and_reap_group
from nbsync.kernel.sigint import PutOff, sigint_later
from nbsync.kernel.start.forker import run_in_forker
from nbsync.kernel.supervision.verdict import describe_exit
from nbsync.protocol.forking import APART, COUNT, Answer, receive
from nbsync.protocol.messages import Arriving
from nbsync.protocol.spec import WorkerSpec

LIMIT = 120.0  # seconds for each step: until torch is loaded, or one of the notebook's variables rebuilt
_GLANCE = 0.05  # seconds between two looks whether the user has interrupted
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37


class ForkServer:
    """One fork server's process."""

    def __init__(self) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # what it writes before it can speak
        self._socket, theirs = socket.socketpair()
        keep_in_kernel(self._socket.fileno())
        self._step = "loading torch in the fork server"
        self._is_ready = self._has_ended = self._has_helper = False
        self._announced: tuple[int, ...] = ()  # workers of the request that is under way
        try:
            arguments, fds, said = (theirs.fileno(), os.getpid()), (theirs.fileno(),), self._said.fileno()
            self._pid = run_in_forker(
                lambda: run_interpreter("nbsync.worker.fresh.serve", arguments, fds, stderr=said),
            )
        except BaseException:
            self._close_files()
            raise
        finally:
            theirs.close()
        self._socket.settimeout(LIMIT)

    def start(
        self,
        specs: Sequence[WorkerSpec],
        wires: Sequence[Wires],
        luggage: int,
        started: list[Process],
        interrupt: PutOff,
    ) -> None:
        """Have one worker forked for each spec. They become children of this process; `started` grows with each.

        Raises:
            StartError: the system refused, the server failed, or what was sent cannot be rebuilt.
            Interrupted: the user gave it up. Nothing of the server is left.
        """
        try:
            if not self._is_ready:
                self._next(interrupt)
                self._is_ready = True
            with _adopting_orphans():
                answer = self._ask(wires, luggage, interrupt)
        except (EOFError, OSError) as error:
            said = self._last_words()
            self.close()
            raise StartError(f"the fork server failed: {error}" + (f". It said:\n{said}" if said else "")) from error
        except BaseException:  # also an interrupt
            self.close()
            raise
        if answer.problem:
            self.close()
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

    def _ask(self, wires: Sequence[Wires], luggage: int, interrupt: PutOff) -> Answer:
        """Make the request, in this process which adopts orphans. If it fails, nothing that came of it is left."""
        try:
            answer = self._request(wires, luggage, 0, interrupt)
            if answer.spoiled:
                answer = self._request(wires, luggage, APART, interrupt)
            if answer.problem:
                self._end()  # what the helper has not read is still on its way
        except BaseException:
            self._end()
            raise
        return answer

    def _request(self, wires: Sequence[Wires], luggage: int, flags: int, interrupt: PutOff) -> Answer:
        self._has_helper, self._step = True, "rebuilding the notebook's variables"
        self._socket.sendall(COUNT.pack(len(wires) | flags))
        socket.send_fds(self._socket, [b"l"], [luggage])
        for wire in wires:
            socket.send_fds(self._socket, [b"w"], wire.worker_ends)
        answer = self._next(interrupt)
        if not isinstance(answer, Answer):  # the status of a helper that said nothing
            raise EOFError(f"its helper {describe_exit(answer)} while {self._step}")
        if not answer.problem:
            self._next(interrupt)  # the helper has ended: its children are adopted
            self._has_helper, self._announced = False, ()
        return answer

    def _next(self, interrupt: PutOff) -> Any:
        """What it sends next, apart from the steps that it tells.

        Raises:
            EOFError: it has ended. TimeoutError: a step took too long. Interrupted: the user gave it up.
        """
        deadline = time.monotonic() + LIMIT
        ready = select.poll()
        ready.register(self._socket, select.POLLIN)
        while True:
            while not ready.poll(1000 * _GLANCE):
                interrupt.check(self._step)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"nothing came of it for {LIMIT:.0f} s, while {self._step}")
            message = receive(self._socket)
            if not isinstance(message, Arriving):
                self._announced = getattr(message, "pids", self._announced)
                return message
            self._step, deadline = message.step, time.monotonic() + LIMIT

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
        self._end()
        if not self._said.closed:
            self._close_files()

    def _end(self) -> None:
        """End its process, and all that has come of the request that is under way, if there is one."""
        if self._has_ended:
            return
        if self._has_helper:
            kill_and_reap_group(self._pid)
            self._socket.setblocking(False)
            with suppress(EOFError, OSError):  # an answer that nobody has read yet
                while True:
                    self._announced = getattr(receive(self._socket), "pids", self._announced)
            for pid in self._announced:
                kill_and_reap(pid)
        else:
            kill_and_reap(self._pid)
        self._has_ended = True

    def _close_files(self) -> None:
        self._said.close()
        close_kernel_only(self._socket.detach())


_server: ForkServer | None = None
_lock = threading.Lock()


def preload() -> None:
    """Start the fork server, if it does not run, without waiting until it is ready."""
    with sigint_later(), _lock:
        _running()


def serve_all(
    specs: Sequence[WorkerSpec], wires: Sequence[Wires], luggage: int, started: list[Process], interrupt: PutOff
) -> None:
    """Have the fork server start the workers. See `ForkServer.start`."""
    while not _lock.acquire(timeout=_GLANCE):
        interrupt.check("waiting for the fork server, which starts other workers")
    try:
        _running().start(specs, wires, luggage, started, interrupt)
    finally:
        _lock.release()


def _running() -> ForkServer:
    """The fork server, started anew if there is none that runs. To be called with the lock held."""
    global _server
    if _server is None or not _server.is_alive:
        close()
        _server = ForkServer()
    return _server


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
