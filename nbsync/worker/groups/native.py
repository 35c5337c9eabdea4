"""The C++ libraries that torch consists of and stands on, and their objects in memory: what Python has no name for."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch

WORD = ctypes.sizeof(ctypes.c_void_p)
Memory: TypeAlias = int  # a descriptor of this process's own


@functools.cache
def cpp_library() -> ctypes.CDLL:
    """The library of C++ itself. A call of one of its functions lets go of the GIL.

    Raises:
        OSError: there is none of this name, so torch was built with another one.
    """
    return ctypes.CDLL("libstdc++.so.6")


@functools.cache
def torch_library(name: str) -> ctypes.CDLL:
    """The library `name`, e.g. "torch_cpu". A call of one of its functions lets go of the GIL.

    Raises:
        OSError: this build of torch has none of that name.
    """
    return ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", f"lib{name}.so"))


def methods_of(library: ctypes.CDLL, table: str) -> int:
    """What objects of a class begin with, whose table of methods has this name.

    Raises:
        ValueError: the library has none of that name.
    """
    return ctypes.addressof(ctypes.c_char.in_dll(library, table)) + 2 * WORD


@contextmanager
def own_memory() -> Iterator[Memory]:
    """To read from without harm, also where there is none."""
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield memory
    finally:
        os.close(memory)


def words(memory: Memory, address: int, size: int) -> tuple[int, ...]:
    """The words in `size` bytes of memory, or in as many as there are.

    Raises:
        OSError, OverflowError: there is no memory at this address.
    """
    found = os.pread(memory, size, address)
    count = len(found) // WORD
    return struct.unpack(f"{count}N", found[: count * WORD])
