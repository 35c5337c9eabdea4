"""The fork server: a process with torch loaded that has nothing of the notebook, and forks workers on request.

For each request it forks a *helper*. The helper takes the connections of the new workers off the socket, rebuilds the
notebook's variables once, forks the workers, which share them, and exits. With that the workers become children of
the notebook, which asked the system for its orphans (a "subreaper"): it watches and reaps them as if it had forked
them itself, and they die with it.

The notebook may give a request up at any moment, and then must find all that has come of it: until a worker's number
is told, it is in the server's process group, in which the helper is too.

The helper unpickles in a thread of its own: the thread that forks must never have computed (OpenMP's pools do not
survive a fork), and the workers' main thread is a copy of the one that forked.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import torch

from nbsync.protocol.forking import APART, COUNT, Answer, read, send
from nbsync.protocol.lifeline import die_with
from nbsync.protocol.messages import Arriving
from nbsync.protocol.spec import Endpoints
from nbsync.worker import main as worker
from nbsync.worker.arrival import Arrived, look_up, make_main_module, tell_on, unpack_all

_ADOPTION_LIMIT = 10.0  # seconds until the notebook has taken over an orphan


def serve(fd: int) -> NoReturn:
    """Answer requests until the notebook is gone."""
    sock = socket.socket(fileno=fd)
    shell = make_main_module()
    worker.before_forks()
    send(sock, Answer())
    while True:
        try:
            (count,) = COUNT.unpack(read(sock, COUNT.size))
        except EOFError:
            os._exit(0)
        server = os.getpid()
        try:
            helper = os.fork()
        except OSError as error:
            send(sock, _refusal(error))
            os._exit(0)  # what else was sent for the request is still on its way
        if not helper:
            try:
                _help(shell, sock, count & ~APART, bool(count & APART), server)
            except OSError as error:
                send(sock, _refusal(error))
            except BaseException:
                send(sock, Answer(problem=traceback.format_exc()))
            finally:
                os._exit(0)
        _, status = os.waitpid(helper, 0)
        send(sock, status)


def _refusal(error: OSError, pids: Sequence[int] = ()) -> Answer:
    return Answer(tuple(pids), problem=error.strerror or str(error), errno=error.errno or errno.EIO)


def _help(shell: Any, sock: socket.socket, count: int, apart: bool, server: int) -> None:
    """Fork `count` workers."""
    die_with(server)
    luggage, *ends = [_receive_fds(sock, wanted) for wanted in (1, *[3] * count)]
    stdout, stderr = os.dup(1), os.dup(2)
    for source, target in zip(ends[0][1:], (1, 2), strict=True):
        os.dup2(source, target)  # what importing the notebook's modules prints is the first rank's
    arrived = _Arrival(shell, luggage[0])
    if not apart:
        arrived.run_in_thread(lambda step: send(sock, Arriving(f"{step} for the workers")))
        send(sock, Arriving("forking the workers"))
        if torch.cuda.is_initialized() or torch.xpu.is_initialized():  # type: ignore[no-untyped-call]
            send(sock, Answer(spoiled=True))
            return
    os.dup2(stdout, 1), os.dup2(stderr, 2)
    worker.before_forks()
    gc.freeze()
    pids: list[int] = []
    try:
        for index in range(count):
            pids.append(_fork_worker(index, sock, ends, arrived))
    except OSError as error:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        send(sock, _refusal(error, pids))
        return
    send(sock, Answer(pids=tuple(pids)))
    for pid in pids:  # so that none is in the server's group any more when the helper has ended
        with suppress(ProcessLookupError):
            os.setpgid(pid, pid)


class _Arrival:
    """The luggage, unpacked once: in the helper for all, or in each worker."""

    def __init__(self, shell: Any, fd: int) -> None:
        self._shell = shell
        self._found = look_up(fd)
        os.close(fd)
        self._arrived: Arrived | None = None
        self._problem: BaseException | None = None

    @property
    def kernel_pid(self) -> int:
        return self._found[0].kernel_pid

    def run_in_thread(self, tell: Callable[[str], None]) -> None:
        thread = threading.Thread(target=self._run, args=(tell,))
        thread.start()
        thread.join()
        if self._problem is not None:
            raise self._problem

    def get(self, tell: Callable[[str], None]) -> Arrived:
        if self._arrived is None:
            self._run(tell)
        if self._arrived is None:
            raise self._problem or RuntimeError("nothing arrived")
        return self._arrived

    def _run(self, tell: Callable[[str], None]) -> None:
        try:
            self._arrived = unpack_all(self._shell, *self._found, tell)
        except BaseException as problem:  # raised again where the outcome is asked for
            self._problem = problem


def _fork_worker(index: int, sock: socket.socket, ends: list[list[int]], arrived: _Arrival) -> int:
    helper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        sock.close()
        for other in ends:
            if other is not ends[index]:
                for fd in other:
                    os.close(fd)
        _wait_until_adopted(helper)
        channel, stdout, stderr = ends[index]
        own = Endpoints(socket.socket(fileno=channel), stdout, stderr, arrived.kernel_pid)
        worker.work_fresh(index, own, partial(arrived.get, tell_on(own.channel)))
    finally:
        os._exit(70)


def _wait_until_adopted(helper: int) -> None:
    """The helper exits when all are forked; its children then are the notebook's."""
    deadline = time.monotonic() + _ADOPTION_LIMIT
    while os.getppid() == helper and time.monotonic() < deadline:
        time.sleep(0.0005)


def _receive_fds(sock: socket.socket, wanted: int) -> list[int]:
    _, fds, _, _ = socket.recv_fds(sock, 1, wanted)
    if len(fds) != wanted:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    for fd in fds:  # what comes through a socket would be inherited by every program that the user's code starts
        os.set_inheritable(fd, False)
    return list(fds)


def start(fd: int) -> NoReturn:
    """The program of the fork server's process."""
    try:
        serve(fd)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(70)
