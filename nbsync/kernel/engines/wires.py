"""The connections between the kernel and a worker on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from nbsync.errors import StartError
from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel
from nbsync.kernel.engines.base import Process
from nbsync.kernel.pidfd import open_pidfd
from nbsync.kernel.reaping import kill_and_reap
from nbsync.protocol.spec import WorkerSpec
from nbsync.protocol.words import describe_limit, describe_ranks


@dataclass
class Wires:
    """Both ends of one worker's connections. The worker's ends are closed in the kernel once it has them."""

    kernel_socket: socket.socket
    worker_socket: socket.socket
    stdout: tuple[int, int]
    stderr: tuple[int, int]

    @classmethod
    def make(cls) -> Wires:
        """Make them all, or none.

        Raises:
            OSError: there are no descriptors left.
        """
        with ExitStack() as undo:
            ours, theirs = (undo.enter_context(end) for end in socket.socketpair())
            pipes = []
            for _ in range(2):
                pipes.append(os.pipe())
                for fd in pipes[-1]:
                    undo.callback(os.close, fd)
            undo.pop_all()
        keep_in_kernel(ours.fileno(), pipes[0][0], pipes[1][0])
        return cls(ours, theirs, *pipes)

    @property
    def worker_ends(self) -> tuple[int, int, int]:
        """The descriptors of channel, stdout and stderr."""
        return self.worker_socket.fileno(), self.stdout[1], self.stderr[1]

    def process(self, rank: int, pid: int) -> Process:
        """The kernel's side of a worker that is a child of this process."""
        try:
            pidfd = open_pidfd(pid)
        except OSError:
            kill_and_reap(pid)
            raise
        return Process(rank, pid, self.kernel_socket, self.stdout[0], self.stderr[0], pidfd)

    def close_kernel_ends(self) -> None:
        close_kernel_only(self.kernel_socket.detach(), self.stdout[0], self.stderr[0])

    def close_worker_ends(self) -> None:
        self.worker_socket.close()
        os.close(self.stdout[1])
        os.close(self.stderr[1])


def refused(specs: Sequence[WorkerSpec], started: int, error: OSError) -> StartError:
    """The system refused a process, a descriptor or memory after the first `started` ranks."""
    missing = describe_ranks([spec.rank for spec in specs[started:]] or [specs[-1].rank])
    limit = describe_limit(error)
    return StartError(
        f"no process for {missing}: {error.strerror}{limit and ', ' + limit}. "
        "Start fewer workers, or raise the limit (ulimit -u, ulimit -n)"
    )
