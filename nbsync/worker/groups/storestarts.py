"""Makes a `TCPStore` so that an interrupt ends that too: in C++ it waits for the others, and looks at no signal.

A client waits for its server, a server for its clients, each for as long as the store's timeout (300 s by default).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from socket import create_connection
from typing import Any

from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistNetworkError

from nbsync.errors import StoreWaitEnded
from nbsync.protocol.reports import STORE_START
from nbsync.worker.pauses import pauses

_NAMES = ("host_name", "port", "world_size", "is_master", "timeout", "wait_for_workers")
_DEFAULTS = {"world_size": None, "is_master": False, "timeout": timedelta(seconds=300), "wait_for_workers": True}
_ANSWER = 1.0  # seconds that an address has to accept a connection
_COUNTED = 0.03  # seconds in which a server, which looks every 10 ms, has seen that it has its clients
_PATIENCE = timedelta(seconds=0.2)


class StoreStarts:
    """Replaces the constructor of `TCPStore`, in the main thread.

    Args:
        is_over: what the main thread works on has failed on another rank.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over
        self._main = threading.get_ident()

    def install(self) -> None:
        """Also for whoever has imported the class already."""
        kind: Any = TCPStore
        original = kind.__init__

        def start(store: Any, *args: Any, **kwargs: Any) -> None:
            given = _DEFAULTS | dict(zip(_NAMES, args, strict=False)) | kwargs
            try:
                if threading.get_ident() != self._main or not _is_sound(given):
                    original(store, *args, **kwargs)
                    return
                if not given["is_master"]:
                    self._await_server(given)
                self._make(given, lambda: original(store, *args, **kwargs))
            except BaseException:
                del store  # the traceback would keep it, and its port
                raise

        start.__code__ = start.__code__.replace(co_name=STORE_START)  # by which it is told where a rank waits
        start.__doc__ = original.__doc__
        kind.__init__ = start

    def _await_server(self, given: dict[str, Any]) -> None:
        """Return when there is somebody to connect to.

        Raises:
            DistNetworkError: there was nobody within the store's timeout; in torch's words.
        """
        for pause in self._turns(given):
            with suppress(OSError):
                create_connection((given["host_name"], given["port"]), _ANSWER).close()
                return
            time.sleep(pause)

    def _make(self, given: dict[str, Any], make: Callable[[], None]) -> None:
        """Make the store in another thread, which is left to itself if this one is interrupted.

        A client may wait there for ever, whatever its timeout: where something else listens that says nothing.
        """
        errors: list[Exception] = []
        # The thread is not joined: an interrupt in that lets CPython 3.11 take it for dead.
        ended = threading.Event()

        def attempt() -> None:
            try:
                make()
            except Exception as error:  # torch's, for whoever wanted the store
                errors.append(error)
            ended.set()

        threading.Thread(target=attempt, daemon=True).start()
        with _freed(given, ended):
            for pause in self._turns(given):
                if ended.wait(pause):
                    break
        if errors:
            raise errors[0]

    def _turns(self, given: dict[str, Any]) -> Iterator[float]:
        """How long to wait for the next look, until the time of a client is up."""
        place, limit = f"({given['host_name']}, {given['port']})", given["timeout"]
        deadline = time.monotonic() + limit.total_seconds()
        for pause in pauses():
            if self._is_over():
                raise StoreWaitEnded(f"the start of a store at {place} was ended: another rank failed")
            if time.monotonic() >= deadline and not given["is_master"]:  # a server's own limit holds
                raise DistNetworkError(
                    f"The client socket has timed out after {limit // timedelta(milliseconds=1)}ms "
                    f"while trying to connect to {place}."
                )
            yield pause


def _is_sound(given: dict[str, Any]) -> bool:
    """Whether torch would take these arguments; if not, it says so better."""
    kinds = {"host_name": str, "port": int, "timeout": timedelta}
    return all(isinstance(given.get(name), kind) for name, kind in kinds.items())


@contextmanager
def _freed(given: dict[str, Any], ended: threading.Event) -> Iterator[None]:
    """If what is done here is cut off, let a server have its clients: it ends, and lets its port go."""
    try:
        yield
    except BaseException:
        if given["is_master"] and given["wait_for_workers"] and given["world_size"] and given["port"]:
            address = given["host_name"], given["port"]
            threading.Thread(target=_join, args=(address, given["world_size"], ended), daemon=True).start()
            ended.wait(_ANSWER)
        raise


def _join(address: tuple[str, int], size: int, ended: threading.Event) -> None:
    """Be the clients that a server waits for, which counts itself; not one too many: it might join a later server."""
    joined, deadline = 0, time.monotonic() + _ANSWER
    while joined < size - 1 and time.monotonic() < deadline:
        with suppress(RuntimeError):  # the machine is busy, or the server has its clients by now
            TCPStore(*address, size, timeout=_PATIENCE)
            joined += 1
        if ended.wait(_COUNTED):
            break
