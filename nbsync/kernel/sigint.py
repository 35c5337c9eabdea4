"""Ctrl-C and Jupyter's interrupt as an event instead of an exception, for lines that must not be cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from types import FrameType

from nbsync.errors import Interrupted


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


class PutOff:
    """An interrupt that waits until it can do no harm. Whatever takes long looks at it now and then.

    Attributes:
        is_asked: whether the user has asked for one.
    """

    def __init__(self) -> None:
        self.is_asked = False

    def ask(self) -> None:
        """The user asks for it."""
        self.is_asked = True

    def check(self, doing: str) -> None:
        """Raise it if it was asked for: nothing is lost by it here.

        Args:
            doing: what is cut off by it, e.g. "forking the workers".

        Raises:
            Interrupted: it says so.
        """
        if self.is_asked:
            raise Interrupted([f"while {doing}"])


@contextmanager
def interrupted_while(doing: str) -> Iterator[None]:
    """Say what an interrupt of the lines inside has cut off, e.g. "a value was unpickled"; what they hold is let go.

    Raises:
        Interrupted: it says so.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        clear_frames(error.__traceback__)  # it would keep a large value until the next error
        raise (error if isinstance(error, Interrupted) else Interrupted([f"while {doing}"])) from None


@contextmanager
def interrupt_costs(what: str) -> Iterator[None]:
    """Say what an interrupt of the lines inside has cost, e.g. "the workers are gone".

    Raises:
        Interrupted: it says so.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        when = error.ranks_in_lines if isinstance(error, Interrupted) else ()
        raise Interrupted([*when, what]) from None


@contextmanager
def sigint_later() -> Iterator[PutOff]:
    """Raise KeyboardInterrupt, if it was asked for meanwhile, only at the end of the block, or where it checks.

    Within another such block the interrupt waits for the end of that.
    """
    interrupt = PutOff()
    with sigint_to(interrupt.ask):
        yield interrupt
    if interrupt.is_asked:
        signal.raise_signal(signal.SIGINT)
