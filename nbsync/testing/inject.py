"""Faults on purpose: one function for each kind of trouble that a rank can get into.

Call them in a cell, on the rank that is to be hit:

    from nbsync.testing import inject
    if rank == 1:
        inject.segfault()
    dist.barrier()

`Schedule` draws a seeded sequence of them, for a soak. Only the standard library is imported here; torch is imported by
the functions that speak with other ranks.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from itertools import repeat
from typing import Any, NoReturn

from nbsync.testing.objects import Crashing as Crashing
from nbsync.testing.objects import FailingRepr as FailingRepr
from nbsync.testing.objects import HangingRepr as HangingRepr
from nbsync.testing.objects import HugeRepr as HugeRepr
from nbsync.testing.objects import SlowData as SlowData
from nbsync.testing.objects import Unpicklable as Unpicklable
from nbsync.testing.schedule import FAULTS as FAULTS
from nbsync.testing.schedule import Fault as Fault
from nbsync.testing.schedule import Planned as Planned
from nbsync.testing.schedule import Schedule as Schedule
from nbsync.testing.surroundings import change_surroundings as change_surroundings
from nbsync.testing.surroundings import close_stdio as close_stdio
from nbsync.testing.surroundings import exhaust_descriptors as exhaust_descriptors
from nbsync.testing.surroundings import fork_child as fork_child
from nbsync.testing.surroundings import ignore_termination as ignore_termination
from nbsync.testing.surroundings import leak_memory as leak_memory

_FOREVER = 1_000_000.0  # seconds


# ---- errors ----


def raise_error(message: str = "injected", kind: type[BaseException] = ValueError) -> NoReturn:
    """Raise an ordinary exception."""
    raise kind(message)


def python_out_of_memory() -> None:
    """Ask Python for more than any machine has: a MemoryError without a message."""
    bytearray(sys.maxsize // 2)


def torch_out_of_memory() -> None:
    """Ask torch for more than any machine has: its allocator's own error, which names the size."""
    import torch

    torch.empty(1 << 50, dtype=torch.uint8)


# ---- the end of the process ----


def sys_exit(code: int | str = 3) -> NoReturn:
    """Leave by `sys.exit`, which is an exception."""
    sys.exit(code)


def exit_process(code: int = 3) -> NoReturn:
    """End the process at once, unseen by Python."""
    os._exit(code)


def c_exit(code: int = 3) -> None:
    """End the process as a C library does: C's exit handlers run, Python's do not."""
    ctypes.CDLL(None).exit(code)


def kill(sig: int = signal.SIGKILL) -> None:
    """Send this process a signal that ends it. SIGKILL is what the kernel's out-of-memory killer sends."""
    os.kill(os.getpid(), sig)
    time.sleep(_FOREVER)  # it need not be handled by this thread, but nothing more is to happen


def segfault() -> None:
    """Read from address 0."""
    ctypes.string_at(0)


def abort(text: str = "") -> NoReturn:
    """Abort as C++ does on a failed assertion: its text goes to descriptor 2, past Python."""
    if text:
        os.write(2, text.encode() + b"\n")
    os.abort()


# ---- no progress ----


def loop_forever(seconds: float = _FOREVER) -> None:
    """Compute in Python."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def sleep_forever(seconds: float = _FOREVER) -> None:
    """Sleep, as code that waits for something outside does."""
    time.sleep(seconds)


def hold_gil(seconds: float = 10.0) -> None:
    """Compute in C code for about so long: it neither lets other threads run nor looks at signals."""
    trial = 20_000_000
    begin = time.perf_counter()
    deque(repeat(None, trial), maxlen=0)
    deque(repeat(None, int(trial * seconds / (time.perf_counter() - begin))), maxlen=0)


def backtrack(length: int = 28) -> None:
    """Match a pattern that backtracks for ages in C: it holds the GIL, but looks at signals now and then."""
    re.match(r"(a+)+$", "a" * length + "b")


def stop(seconds: float | None = None) -> None:
    """Stop this process as SIGSTOP or a dead disk does; with `seconds`, another process resumes it."""
    if seconds is not None:
        resume = f"sleep {seconds:g}; kill -CONT {os.getpid()}"
        subprocess.Popen(["/bin/sh", "-c", resume], start_new_session=True)
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_uninterruptibly(seconds: float) -> None:
    """Wait in the state D, as for a file server that does not answer: no signal is looked at, and the GIL is held.

    A process that spawns another is in it until that one has begun; here its beginning waits for a FIFO.
    """
    with tempfile.TemporaryDirectory() as folder:
        fifo = os.path.join(folder, "fifo")
        os.mkfifo(fifo)
        subprocess.Popen(["/bin/sh", "-c", f"sleep {seconds:g}; : > {fifo}"])
        opens = [(os.POSIX_SPAWN_OPEN, 0, fifo, os.O_RDONLY, 0)]
        os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ, file_actions=opens), 0)


def read_forever() -> None:
    """Read from a pipe to which nobody writes."""
    out, into = os.pipe()
    try:
        os.read(out, 1)
    finally:
        os.close(out)
        os.close(into)


def wait_for_program(seconds: float = _FOREVER) -> None:
    """Wait for another program."""
    subprocess.run(["sleep", f"{seconds:g}"], check=False)


def load_data_forever(num_workers: int = 2, seconds: float = 0.05) -> None:
    """Iterate a DataLoader with workers of its own, which takes `seconds` for each item."""
    from torch.utils.data import DataLoader

    for _ in DataLoader(SlowData(seconds), num_workers=num_workers):  # type: ignore[arg-type]
        pass


def swallow_interrupts(seconds: float = _FOREVER, times: int = 1_000_000) -> int:
    """Sleep, and ignore KeyboardInterrupt `times` times; returns how many came."""
    end, came = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        try:
            while time.monotonic() < end:
                time.sleep(0.02)
        except KeyboardInterrupt:
            came += 1
            if came > times:
                raise
    return came


# ---- ranks that do not fit together; to be called on all ranks ----


def deadlock_in_recv() -> None:
    """Every rank waits for a message of the next one, and none sends."""
    dist, torch = _torch()
    dist.recv(torch.empty(1), src=(dist.get_rank() + 1) % dist.get_world_size())


def miss_collective(rank: int = 1) -> None:
    """All ranks but `rank` wait in an all_reduce."""
    dist, torch = _torch()
    if dist.get_rank() != rank:
        dist.all_reduce(torch.ones(1))


def die_in_a_message(rank: int = 1, megabytes: float = 80.0, after: float = 0.2) -> None:
    """`rank` is killed `after` seconds, while it broadcasts one tensor of `megabytes` after the other."""
    dist, torch = _torch()
    if dist.get_rank() == rank:
        threading.Timer(after, kill).start()
    tensor = torch.ones(int(megabytes * (1 << 18)))
    while True:
        dist.broadcast(tensor, src=rank)


def mismatched_shapes(rank: int = 1) -> None:
    """`rank` brings a tensor of another size to an all_reduce."""
    dist, torch = _torch()
    dist.all_reduce(torch.ones(3 if dist.get_rank() == rank else 2))


def mismatched_types(rank: int = 1) -> None:
    """`rank` brings a tensor of another type to an all_reduce."""
    dist, torch = _torch()
    dist.all_reduce(torch.ones(2, dtype=torch.float64 if dist.get_rank() == rank else torch.float32))


def mismatched_reductions(rank: int = 1) -> None:
    """`rank` takes the maximum where the others sum: unchecked, wrong numbers on all ranks."""
    dist, torch = _torch()
    dist.all_reduce(torch.ones(2), op=dist.ReduceOp.MAX if dist.get_rank() == rank else dist.ReduceOp.SUM)


def mismatched_operations(rank: int = 1) -> None:
    """`rank` is in a broadcast where the others are in an all_reduce."""
    dist, torch = _torch()
    if dist.get_rank() == rank:
        dist.broadcast(torch.ones(2), src=rank)
    else:
        dist.all_reduce(torch.ones(2))


def _torch() -> tuple[Any, Any]:
    import torch
    import torch.distributed as dist

    return dist, torch


# ---- output ----


def flood_stdout(megabytes: float = 64.0, line: bytes = b"x" * 79, fd: int = 1) -> None:
    """Write lines past Python, as C code does, as fast as the pipe takes them."""
    one = line + b"\n"
    block = one * max(1, (1 << 16) // len(one))
    for _ in range(math.ceil(megabytes * (1 << 20) / len(block))):
        _write_all(fd, block)


def flood_lines(count: int = 1_000_000) -> None:
    """Print very many very short lines."""
    for number in range(count):
        print(number)


def write_garbage(fd: int = 1) -> None:
    """Write bytes that are no UTF-8, without a newline."""
    _write_all(fd, b"bad \xff\xfe bytes")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
