"""The programs of new interpreters: a worker (`start_method="spawn"`), and the fork server."""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import NoReturn

from nbsync.protocol.lifeline import die_with


def serve(fd: int, kernel_pid: int) -> NoReturn:
    """Be the fork server. `fd` is its end of the connection with the notebook."""
    die_with(kernel_pid)  # before torch is imported, which takes its time
    os.set_inheritable(fd, False)
    from nbsync.worker import server

    server.start(fd)


def start(luggage: int, index: int, channel: int, stdout: int, stderr: int, kernel_pid: int) -> NoReturn:
    """Be a worker. The numbers are descriptors, but for the index into the specs and the notebook's process id."""
    die_with(kernel_pid)  # before torch is imported, which takes its time
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in (luggage, channel, stdout, stderr):  # not for the programs that the user's code starts
        os.set_inheritable(fd, False)
    from nbsync.protocol.spec import Endpoints
    from nbsync.worker import main as worker
    from nbsync.worker.arrival import look_up, make_main_module, tell_on, unpack_all
    from nbsync.worker.tracebacks import load_tracebacks

    shell = make_main_module()
    load_tracebacks()
    found = look_up(luggage)
    os.close(luggage)
    ends = Endpoints(socket.socket(fileno=channel), stdout, stderr, kernel_pid)
    worker.work_fresh(index, ends, partial(unpack_all, shell, *found, tell_on(ends.channel)))
