"""What a process has, and others expect it to leave alone: descriptors, children, memory, signals, surroundings."""

from __future__ import annotations

import os
import resource
import signal
import time

_FOREVER = 1_000_000.0  # seconds


def close_stdio() -> None:
    """Close descriptors 1 and 2, as daemons do."""
    os.close(1)
    os.close(2)


def change_surroundings(folder: str) -> None:
    """Change the working directory, the environment and the umask."""
    os.chdir(folder)
    os.environ.clear()
    os.umask(0o777)


def fork_child(seconds: float = _FOREVER) -> int:
    """Fork a child that sleeps in a copy of this rank; returns its process id."""
    pid = os.fork()
    if not pid:
        try:
            time.sleep(seconds)
        finally:
            os._exit(0)
    return pid


def ignore_termination() -> None:
    """Ignore SIGTERM and SIGHUP."""
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)


def exhaust_descriptors() -> list[int]:
    """Open files until the process may open no more; returns their descriptors."""
    opened: list[int] = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return opened


def leak_memory(megabytes: float) -> bytearray:
    """Take memory and touch it; it is given back when the returned object goes."""
    taken = bytearray(int(megabytes * (1 << 20)))
    taken[::4096] = b"\1" * len(taken[::4096])
    return taken
