"""Ctrl-C and Jupyter's interrupt as an event instead of an exception, for lines that must not be cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigint_to(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback` in place of raising KeyboardInterrupt.

    The handler is borrowed, in the main thread only, and given back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        callback()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def sigint_later() -> Iterator[None]:
    """Raise KeyboardInterrupt, if it was asked for meanwhile, only at the end of the block."""
    asked: list[bool] = []
    with sigint_to(lambda: asked.append(True)):
        yield
    if asked:
        raise KeyboardInterrupt
