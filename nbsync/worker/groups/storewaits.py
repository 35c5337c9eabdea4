"""Waits for a key of a store, in Python: in C++ they look at no signal, for as long as the store's timeout.

A key is asked for in turns. So a wait for any kind of store (the group's, one of the user's, a file) ends with an
interrupt, or when the cell has failed elsewhere, and takes no connection along.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store
from torch.distributed import DistStoreError, QueueEmptyError

from nbsync.errors import StoreWaitEnded
from nbsync.protocol.reports import STORE_WAITS
from nbsync.worker.pauses import pauses
from nbsync.worker.replacing import replace_function

_NOT_YET = object()


class StoreWaits:
    """Replaces the methods of `Store` that wait, in the main thread.

    Args:
        is_over: what the main thread works on has failed on another rank, and no collective of it can end any more.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over
        self._main = threading.get_ident()

    def install(self) -> None:
        """Also for stores that exist already."""
        for name in STORE_WAITS:
            replace_function(Store, name, functools.partial(self._in_turns, _ATTEMPTS[name]))

    def _in_turns(self, attempt: Callable[..., Any], original: Any) -> Any:
        def ask(store: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._main:
                return original(store, *args, **kwargs)
            began = time.monotonic()
            for pause in pauses():
                found = attempt(original, store, *args, **kwargs)
                if found is not _NOT_YET:
                    return found
                self._check(store, time.monotonic() - began, *args, *kwargs.values())
                time.sleep(pause)

        ask.__code__ = ask.__code__.replace(co_name=original.__name__)  # by which it is told where a rank waits
        return ask

    def _check(self, store: Any, waited: float, keys: str | Sequence[str], timeout: Any = None) -> None:
        """Raise if this is to be waited for no more.

        Raises:
            DistStoreError: it took longer than `timeout`, by default the store's.
            StoreWaitEnded: the cell has failed on another rank.
        """
        named = keys if isinstance(keys, str) else ", ".join(keys)
        limit = timeout if isinstance(timeout, timedelta) else store.timeout
        if self._is_over():
            raise StoreWaitEnded(f"the wait for {named} in the store was ended: another rank failed")
        if waited > limit.total_seconds():
            raise DistStoreError(f"wait timeout after {limit // timedelta(milliseconds=1)}ms, keys: {named}")


def _get(original: Any, store: Store, key: str) -> Any:
    return original(store, key) if store.check([key]) else _NOT_YET


def _multi_get(original: Any, store: Store, keys: list[str]) -> Any:
    return original(store, keys) if store.check(keys) else _NOT_YET


def _wait(original: Any, store: Store, keys: list[str], timeout: timedelta | None = None) -> Any:
    return None if store.check(keys) else _NOT_YET


def _queue_pop(original: Any, store: Store, key: str, block: bool = True) -> Any:
    try:
        return original(store, key, False)
    except QueueEmptyError:
        if block:
            return _NOT_YET
        raise


_ATTEMPTS: dict[str, Callable[..., Any]] = {
    "get": _get,
    "multi_get": _multi_get,
    "wait": _wait,
    "queue_pop": _queue_pop,
}
