"""The seam between the session and whatever starts its workers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from nbsync.kernel.pidfd import send_signal
from nbsync.kernel.reaping import UNKNOWN
from nbsync.kernel.sigint import PutOff
from nbsync.protocol.serial import Common
from nbsync.protocol.spec import Call, WorkerSpec


@dataclass(eq=False)
class Process:
    """A running worker as the kernel holds it: its process and the kernel's ends of its connections."""

    rank: int
    pid: int
    channel: socket.socket
    stdout: int
    stderr: int
    pidfd: int
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def signal(self, number: int) -> None:
        """Send a signal, to this process and no later one of the same number; nothing if it has ended."""
        with self._lock, suppress(ProcessLookupError):
            if self.pidfd >= 0:
                send_signal(self.pidfd, number)

    def release(self) -> None:
        """It has ended and was reaped: let go of its descriptor."""
        with self._lock:
            os.close(self.pidfd)
            self.pidfd = -1

    def kill(self) -> None:
        """End the worker."""
        self.signal(signal.SIGKILL)

    def sweep(self) -> None:
        """End what an ended worker had started: its process group outlives it."""
        with suppress(ProcessLookupError, PermissionError):  # no group was made, or nobody is left in it
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int | None:
        """The exit status as `waitpid` gives it, or `UNKNOWN`; None while it runs."""
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return UNKNOWN
        return status if pid else None


class Engine(Protocol):
    """Starts workers: all of them or none.

    Attributes:
        method: how the last ones were started, e.g. "fork".
    """

    method: str

    def prepare(self, specs: Sequence[WorkerSpec], inherited: Call | None, common: Common) -> None:
        """Do beforehand what may take long, and may be interrupted.

        Args:
            inherited: a function that the workers carry along.
            common: what the notebook and its workers have in common; what cannot go along is taken out.

        Raises:
            StartError: with what there is now, workers cannot be started.
            TransferError: the function cannot be sent.
        """
        ...

    def start(
        self, specs: Sequence[WorkerSpec], inherited: Call | None, common: Common, interrupt: PutOff
    ) -> list[Process]:
        """Start one worker for each spec; the arguments are those of `prepare`.

        Args:
            interrupt: to be looked at wherever this takes long.

        Raises:
            StartError: some could not be started; none is left running.
            Interrupted: the user gave it up; none is left running.
        """
        ...

    def avoid_fork(self, reason: str) -> bool:
        """Forked workers did not live. Returns whether the next start will do without a fork."""
        ...
