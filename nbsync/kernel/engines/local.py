"""Workers on this machine, forked from the notebook: every variable, import and dataset is there, nothing pickled."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from nbsync.errors import StartError
from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel, release_in_child
from nbsync.kernel.engines.base import Call, Process
from nbsync.kernel.forker import fork, run_in_forker
from nbsync.kernel.guard import Guard
from nbsync.protocol.spec import WorkerSpec
from nbsync.worker import main as worker  # the one arrow across: the entry point of a worker


@dataclass
class _Wires:
    """Both ends of one worker's connections. The worker's ends are closed in the kernel after the fork."""

    kernel_socket: socket.socket
    worker_socket: socket.socket
    stdout: tuple[int, int]
    stderr: tuple[int, int]

    @classmethod
    def make(cls) -> _Wires:
        ours, theirs = socket.socketpair()
        wires = cls(ours, theirs, os.pipe(), os.pipe())
        keep_in_kernel(ours.fileno(), wires.stdout[0], wires.stderr[0])
        return wires

    def close_kernel_ends(self) -> None:
        close_kernel_only(self.kernel_socket.detach(), self.stdout[0], self.stderr[0])

    def close_worker_ends(self) -> None:
        self.worker_socket.close()
        os.close(self.stdout[1])
        os.close(self.stderr[1])


class LocalEngine:
    """Forks workers. One engine serves one session."""

    def __init__(self) -> None:
        self._guard = Guard()
        self._running: list[Process] = []

    def start(self, specs: Sequence[WorkerSpec], inherited: Call | None = None) -> list[Process]:
        """Fork one worker for each spec, all or none. See `Engine.start`."""
        wires: list[_Wires] = []
        started: list[Process] = []
        try:
            wires.extend(_Wires.make() for _ in specs)
            run_in_forker(lambda: self._fork_all(specs, wires, inherited, started))
        except OSError as error:
            for process in started:
                process.kill()
                os.waitpid(process.pid, 0)
                os.close(process.pidfd)
            for wire in wires:
                wire.close_kernel_ends()
                wire.close_worker_ends()
            missing = ", ".join(str(spec.rank) for spec in specs[len(started) :])
            raise StartError(
                f"no process for rank {missing}: {error.strerror}. "
                "Start fewer workers, or raise the limit (ulimit -u, ulimit -n)"
            ) from error
        for wire in wires:
            wire.close_worker_ends()
        self._running += started
        self._guard.watch(process.pid for process in self._running)
        return started

    def stopped(self, processes: Sequence[Process]) -> None:
        self._running = [process for process in self._running if process not in processes]
        self._guard.watch(process.pid for process in self._running)

    def _fork_all(
        self, specs: Sequence[WorkerSpec], wires: list[_Wires], inherited: Call | None, started: list[Process]
    ) -> None:
        kernel_pid = os.getpid()
        gc.freeze()  # the collector in the children then leaves the shared pages alone
        try:
            for spec, wire in zip(specs, wires, strict=True):

                def be_worker(spec: WorkerSpec = spec, mine: _Wires = wire) -> None:
                    release_in_child()
                    for other in wires:
                        if other is not mine:
                            other.close_worker_ends()
                    ends = worker.Endpoints(mine.worker_socket, mine.stdout[1], mine.stderr[1], kernel_pid)
                    worker.work(spec, ends, inherited)

                pid = fork(be_worker)
                pidfd = os.pidfd_open(pid)
                started.append(Process(spec.rank, pid, wire.kernel_socket, wire.stdout[0], wire.stderr[0], pidfd))
        finally:
            gc.unfreeze()
