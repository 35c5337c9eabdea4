"""A forked child becomes a process of its own: group, parent-death signal, and no hold on the kernel's listeners."""

from __future__ import annotations

import inspect
import multiprocessing.util
import os
import signal
import socket
import stat
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from nbsync.errors import UsageError
from nbsync.protocol.lifeline import die_with


def detach_from_kernel(kernel_pid: int) -> None:
    """Leave the kernel's process group and die with the kernel.

    Jupyter's interrupt is a SIGINT to the kernel's whole group, also when it is idle: a worker must not be in it.
    """
    if os.getpgrp() != os.getpid():  # else it leads a session of its own
        os.setpgid(0, 0)
    die_with(kernel_pid)
    _let_trackers_clean_up()
    _prefer_for_oom_kills()
    signal.set_wakeup_fd(-1)  # the kernel's event loop must not be woken by a worker's signals
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _prefer_for_oom_kills() -> None:
    """For want of memory a rank goes before the notebook, where the system allows to say so."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "r+") as file:
        file.write(str(min(1000, int(file.read()) + 500)))


def _let_trackers_clean_up() -> None:
    """Keep multiprocessing's resource tracker out of the rank's process group, which is killed with the rank.

    It removes the shared memory and semaphores of processes that were killed, and ends with the last of them. It leaves
    the group by itself: its parent cannot take it out of it once another program runs in it.
    """
    util: Any = multiprocessing.util
    original = util.spawnv_passfds

    def spawnv_passfds(path: bytes, args: Sequence[str], passfds: Sequence[int]) -> int:
        if "resource_tracker" in args[-1]:
            args = [*args[:-1], f"import os; os.setpgid(0, 0); {args[-1]}"]
        return int(original(path, args, passfds))

    util.spawnv_passfds = spawnv_passfds


def release_listeners() -> None:
    """Let go of every listening socket of the kernel, whose ports a worker must not keep alive.

    The descriptor is not closed but pointed at /dev/null: objects inherited from the kernel still know its number,
    and may close it once more when it would long be somebody else's.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and _is_listener(fd):
            os.dup2(null, fd)
    os.close(null)


def keep_sockets_in(folder: str) -> None:
    """Have multiprocessing make its sockets, which DataLoader workers need, in `folder`, if there is one.

    A process that is killed cannot remove its own folder, as multiprocessing would have it.
    """
    if folder:
        config = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # children inherit it
        config["tempdir"] = folder


def _is_listener(fd: int) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as sock:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # closed meanwhile, or a socket of a family without the option
        return False


def call_as_program(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call it; to exit with code 0 is to return nothing.

    Raises:
        UsageError: it has only made a coroutine or generator, and nothing of its body has run.
    """
    try:
        value = function(*args, **kwargs)
    except SystemExit as end:
        if end.code:
            raise
        return None
    if isinstance(value, types.CoroutineType | types.GeneratorType) and value.__name__ == _name_of(function):
        value.close()
        way = f"asyncio.run({value.__name__}(...))" if isinstance(value, types.CoroutineType) else "list(...)"
        raise UsageError(f"{value.__name__} has not run yet, it gives a {type(value).__name__}: return {way} instead")
    return value


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(inspect.unwrap(getattr(function, "func", function)), "__name__", "")
