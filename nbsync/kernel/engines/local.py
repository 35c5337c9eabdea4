"""Workers on this machine, forked from the notebook: every variable, import and dataset is there, nothing pickled."""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from nbsync.errors import StartError, describe_ranks
from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel
from nbsync.kernel.engines.base import Process
from nbsync.kernel.forker import fork, run_in_forker
from nbsync.protocol.serial import Common
from nbsync.protocol.spec import Call, WorkerSpec
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

    def process(self, rank: int, pid: int) -> Process:
        """The kernel's side of a worker that was just forked."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        return Process(rank, pid, self.kernel_socket, self.stdout[0], self.stderr[0], pidfd)

    def close_kernel_ends(self) -> None:
        close_kernel_only(self.kernel_socket.detach(), self.stdout[0], self.stderr[0])

    def close_worker_ends(self) -> None:
        self.worker_socket.close()
        os.close(self.stdout[1])
        os.close(self.stderr[1])


class LocalEngine:
    """Forks workers."""

    def start(self, specs: Sequence[WorkerSpec], inherited: Call | None, common: Common) -> list[Process]:
        """Fork one worker for each spec, all or none. See `Engine.start`."""
        wires: list[_Wires] = []
        started: list[Process] = []
        try:
            wires.extend(_Wires.make() for _ in specs)
            run_in_forker(lambda: self._fork_all(specs, wires, inherited, common, started))
        except OSError as error:
            self._undo(wires, started)
            missing = describe_ranks([spec.rank for spec in specs[len(started) :]] or [specs[-1].rank])
            raise StartError(
                f"no process for {missing}: {error.strerror}. "
                "Start fewer workers, or raise the limit (ulimit -u, ulimit -n)"
            ) from error
        for wire in wires:
            wire.close_worker_ends()
        return started

    def _undo(self, wires: Sequence[_Wires], started: Sequence[Process]) -> None:
        for process in started:
            process.kill()
            os.waitpid(process.pid, 0)
            process.release()
        for wire in wires:
            wire.close_kernel_ends()
            wire.close_worker_ends()

    def _fork_all(
        self,
        specs: Sequence[WorkerSpec],
        wires: list[_Wires],
        inherited: Call | None,
        common: Common,
        started: list[Process],
    ) -> None:
        kernel_pid = os.getpid()
        gc.freeze()  # the collector in the children then leaves the shared pages alone
        try:
            for spec, wire in zip(specs, wires, strict=True):

                def be_worker(spec: WorkerSpec = spec, mine: _Wires = wire) -> None:
                    for other in wires:
                        if other is not mine:
                            other.close_worker_ends()
                    ends = worker.Endpoints(mine.worker_socket, mine.stdout[1], mine.stderr[1], kernel_pid)
                    worker.work(spec, ends, inherited, common)

                started.append(wire.process(spec.rank, fork(be_worker)))
        finally:
            gc.unfreeze()
