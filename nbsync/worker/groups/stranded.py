"""Wakes threads that gloo has forgotten.

When a connection ends, gloo tells those who wait for messages that have not begun, and forgets the one whose message
was on its way: that thread waits until the group's timeout, half an hour, while everybody else is free. It makes no
difference whether the connection was cut here or the peer's process died; any large message can be hit.

Such a thread is inside `UnboundBuffer::waitRecv` or `waitSend`, so the buffer's address stands in the topmost frames of
its stack. What gloo does for the others is done for it from here: the buffer gets an exception to raise.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from nbsync.worker.groups.native import torch_library

_TABLE = "_ZTVN4gloo9transport3tcp13UnboundBufferE"  # what objects of that class begin with, 16 bytes into it
_TELL = "_ZN4gloo9transport3tcp13UnboundBuffer15signalExceptionENSt15__exception_ptr13exception_ptrE"
_TOP = 4096  # bytes of a stack: the frames of a wait take much less
_SAYS = b"Connection closed by peer in the middle of a message"
_ERROR_SIZE = 16  # of a std::runtime_error
BETWEEN = 0.04  # seconds between two looks

Tell = Callable[[int], None]


class Stranded:
    """Finds and wakes them.

    A buffer ends with its operation, so the operation may not be about to end: it was given the time to, and its thread
    sleeps where it slept at the look before.

    Args:
        threads: only these, by number; None for the main thread and all of gloo's.
    """

    def __init__(self, threads: frozenset[int] | None = None) -> None:
        self._threads = threads
        self._seen: set[tuple[int, int]] = set()
        self._looked = 0.0

    def wake(self) -> bool:
        """To be called again and again, when the connections have ended. Returns whether somebody still waits."""
        now = time.monotonic()
        if now - self._looked < BETWEEN:
            return True
        self._looked = now
        try:
            table, tell = _gloo()
            found = set(_awaited(table, self._threads))
        except (OSError, AttributeError, ValueError):  # another build of torch, or a system that does not let us look
            return False
        for _, buffer in found & self._seen:
            tell(buffer)
        self._seen = found - self._seen
        return bool(found)


def gloo_threads() -> frozenset[int]:
    """The threads, by number, in which gloo's collectives run."""
    return frozenset(int(task.name) for task in _tasks() if _is_gloos(task))


def _awaited(table: int, threads: frozenset[int] | None) -> Iterator[tuple[int, int]]:
    """The stacks at whose top there is a buffer, with its address."""
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for top in _stacks(threads):
            for (word,) in struct.iter_unpack("N", os.pread(memory, _TOP, top)):
                with suppress(OSError):  # no address, which most words are not
                    if word % 8 == 0 and word >> 63 == 0 and os.pread(memory, 8, word) == struct.pack("N", table):
                        yield top, word
    finally:
        os.close(memory)


def _stacks(threads: frozenset[int] | None) -> Iterator[int]:
    """The tops of the stacks of threads that sleep."""
    for task in _tasks():
        with suppress(OSError):  # the thread has ended
            number = int(task.name)
            if number in threads if threads is not None else number == os.getpid() or _is_gloos(task):
                state = (task / "syscall").read_text().split()
                if len(state) > 2 and (task / "stat").read_text().rpartition(")")[2].split()[0] == "S":
                    yield int(state[-2], 16)


def _tasks() -> Iterator[Path]:
    return Path("/proc/self/task").iterdir()


def _is_gloos(task: Path) -> bool:
    try:
        return (task / "comm").read_text().startswith("pt_gloo")
    except OSError:  # the thread has ended
        return False


@cache
def _gloo() -> tuple[int, Tell]:
    """What a buffer of gloo's begins with, and a function that gives one an exception to raise.

    Raises:
        OSError, AttributeError, ValueError: this torch or its C++ library has not what is needed.
    """
    torch, cpp = torch_library("torch_cpu"), ctypes.CDLL("libstdc++.so.6")
    signal_exception = torch[_TELL]
    signal_exception.argtypes, signal_exception.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    make_exception = _exceptions(cpp)

    def tell(buffer: int) -> None:
        signal_exception(buffer, ctypes.byref(make_exception()))  # which takes it over

    return ctypes.addressof(ctypes.c_char.in_dll(torch, _TABLE)) + 16, tell


def _exceptions(cpp: ctypes.CDLL) -> Callable[[], ctypes.c_void_p]:
    """A function that makes a pointer to an exception, as `std::make_exception_ptr` does."""
    allocate, begin, construct, point = (
        cpp["__cxa_allocate_exception"],
        cpp["__cxa_init_primary_exception"],
        cpp["_ZNSt13runtime_errorC1EPKc"],
        cpp["_ZNSt15__exception_ptr13exception_ptrC1EPv"],
    )
    kind = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.in_dll(cpp, "_ZTISt13runtime_error")))
    destroy = ctypes.cast(cpp["_ZNSt13runtime_errorD1Ev"], ctypes.c_void_p)
    allocate.argtypes, allocate.restype = [ctypes.c_size_t], ctypes.c_void_p

    def make() -> ctypes.c_void_p:
        thrown = ctypes.c_void_p(allocate(_ERROR_SIZE))
        begin(thrown, kind, destroy)
        construct(thrown, _SAYS)
        pointer = ctypes.c_void_p()
        point(ctypes.byref(pointer), thrown)
        return pointer

    return make
