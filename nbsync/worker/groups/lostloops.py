"""Keeps this process when an event loop of gloo fails, for which gloo would end it.

Torch frees the memory of a failed `all_gather` before gloo is told to send no more of it. When a peer asks for some in
that moment (a few in a hundred, when a rank dies in large ones), the system refuses to read there, the event loop
throws, nobody catches it, and C++ ends the process. It asks a handler first, which may do anything but return. So the
loop's thread sleeps for ever, with the lock of the one connection that failed, and the process lives on. The loop's
backend can neither be used nor be taken down any more: the group needs a fresh one, as it does in any case, since a
connection has ended.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

from nbsync.worker.groups.native import cpp_library
from nbsync.worker.groups.tasks import LOOP, is_named

_FAILED_IO = b"N4gloo11IoExceptionE"
_NAME = b"lost_gloo_loop"  # by which it is no event loop any more to those that look for them
_PR_SET_NAME = 15
_Handler = ctypes.CFUNCTYPE(None)


class LostLoops:
    """The event loops that have failed in this process.

    Attributes:
        count: how many, since the groups were healed.
        tell: is called when there is another one.
    """

    def __init__(self) -> None:
        self.count = 0
        self.tell: Callable[[], None] = lambda: None
        self._handler: Callable[[], None] | None = None  # C++ holds no reference
        self._before: Callable[[], None] = lambda: None

    def install(self) -> None:
        """From now on, outlive them."""
        try:
            set_terminate = cpp_library()["_ZSt13set_terminatePFvvE"]
            self._handler = _Handler(self._handle)
        except (OSError, AttributeError, MemoryError):  # torch was built with another library, or there is no room
            return
        set_terminate.restype = _Handler
        self._before = set_terminate(self._handler)

    def _handle(self) -> None:
        """In the thread of which C++ says that it must end: sleep for ever, or return, which ends the process."""
        own = Path(f"/proc/self/task/{threading.get_native_id()}")
        if not (is_named(own, LOOP) and _exception_type() == _FAILED_IO):
            self._before()
            return
        ctypes.CDLL(None).prctl(_PR_SET_NAME, _NAME)
        self.count += 1
        self.tell()
        threading.Event().wait()


def _exception_type() -> bytes | None:
    """The name of the type of what was thrown, as C++ mangles it."""
    current_type = cpp_library()["__cxa_current_exception_type"]
    current_type.restype = ctypes.c_void_p
    info = current_type()
    if info is None:
        return None
    return ctypes.c_char_p.from_address(info + ctypes.sizeof(ctypes.c_void_p)).value
