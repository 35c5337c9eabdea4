"""Gloo's buffers: each is what an operation waits in for its messages. One can be given an exception to raise."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

from nbsync.worker.groups.native import cpp_library, methods_of, torch_library

_TABLE = "_ZTVN4gloo9transport3tcp13UnboundBufferE"
_TELL = "_ZN4gloo9transport3tcp13UnboundBuffer15signalExceptionENSt15__exception_ptr13exception_ptrE"
_ERROR_SIZE = 16  # of a std::runtime_error

Tell: TypeAlias = Callable[[int, bytes], None]


@cache
def gloo_buffers() -> tuple[int, Tell]:
    """What a buffer of gloo begins with, and a function that lets the one at an address raise an error with this text.

    Raises:
        OSError, AttributeError, ValueError: this torch or its C++ library has not what is needed.
    """
    torch, cpp = torch_library("torch_cpu"), cpp_library()
    signal_exception = torch[_TELL]
    signal_exception.argtypes, signal_exception.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    make_exception = _exceptions(cpp)

    def tell(buffer: int, says: bytes) -> None:
        signal_exception(buffer, ctypes.byref(make_exception(says)))  # which takes it over

    return methods_of(torch, _TABLE), tell


def _exceptions(cpp: ctypes.CDLL) -> Callable[[bytes], ctypes.c_void_p]:
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

    def make(says: bytes) -> ctypes.c_void_p:
        thrown = ctypes.c_void_p(allocate(_ERROR_SIZE))
        begin(thrown, kind, destroy)
        construct(thrown, says)
        pointer = ctypes.c_void_p()
        point(ctypes.byref(pointer), thrown)
        return pointer

    return make
