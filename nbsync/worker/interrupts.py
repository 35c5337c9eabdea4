"""KeyboardInterrupt reaches the user's code, and nothing else.

SIGINT raises only while a run is open, and only the run it was meant for; a shield holds it back for the few lines
that must not be cut in two.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeAlias

from nbsync.protocol.spec import INSIST_SIGNAL
from nbsync.worker.places import users_line, walk_stack

SAME = 0.7  # seconds between the kernel's own signal and the helper thread's in which they are one interrupt
FIRST_MOMENTS = 0.5  # seconds in which a run gets to the user's code

Shield: TypeAlias = Callable[[], AbstractContextManager[None]]  # `Interrupts.shield`


class Interrupts:
    """The SIGINT handler of a worker's main thread."""

    def __init__(self) -> None:
        self.run: int | None = None
        self.over = 0  # the last run that was closed: orders for a later one may come before it is opened
        self.asked: int | None = None
        self.too_early = False  # it came where it was lost, as before the user's code ran
        self.was_noticed = False  # the handler ran since the last ask: the main thread is in Python
        self._shields = self._puts_off = 0
        self._opened = 0.0
        self._raised_at = self._insisted_at = float("-inf")
        self._raised_in: int | None = None
        self._pending = False
        self._main = threading.main_thread().ident

    def install(self) -> None:
        self._listen()
        os.register_at_fork(after_in_child=self._after_fork)
        self._guard_starts()
        self._guard_finalizers()

    def _listen(self) -> None:
        for number in (signal.SIGINT, INSIST_SIGNAL):
            signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, INSIST_SIGNAL))

    def _after_fork(self) -> None:
        self._shields = self._puts_off = 0

    def _guard_starts(self) -> None:
        """A process is started and noted, or neither."""
        kind: Any = BaseProcess
        original = kind.start

        def start(process: BaseProcess) -> None:
            with self.shield():
                original(process)

        kind.start = start

    def _guard_finalizers(self) -> None:
        original = sys.unraisablehook

        def unraisablehook(unraisable: sys.UnraisableHookArgs, /) -> None:
            """What is raised in a `__del__` goes no further: then the interrupt is to come once more."""
            if issubclass(unraisable.exc_type, KeyboardInterrupt) and self.run is not None and self.asked == self.run:
                self.too_early = True
            else:
                original(unraisable)

        sys.unraisablehook = unraisablehook

    def ask(self, run: int) -> bool:
        """Interrupt `run`, if the main thread still works on it. Called by the helper thread."""
        if run <= self.over or self._main is None:
            return False
        self.asked, self.was_noticed = run, False
        if self.run == run:  # else the main thread is about to open it, and will see that it was asked
            signal.pthread_kill(self._main, signal.SIGINT)
        return True

    def ask_again(self) -> None:
        """Interrupt once more what came too early. Called by the helper thread."""
        if self.too_early and self.run is not None and self.run == self.asked:
            self.too_early = False
            self.ask(self.run)

    def was_asked(self, run: int) -> bool:
        """Whether `run` was interrupted."""
        return self.asked == run

    @property
    def is_in_effect(self) -> bool:
        """Whether the run at work, or else the last one, was interrupted."""
        return self.asked == (self.over if self.run is None else self.run)

    @property
    def was_missed(self) -> bool:
        """Whether the last run has ended before its code could notice that it was interrupted."""
        return self.run is None and self.asked == self.over and not self.was_raised(self.over)

    def was_raised(self, run: int) -> bool:
        """Whether the code of `run` got a KeyboardInterrupt."""
        return self._raised_in == run

    def begin(self, run: int) -> None:
        """From here on it may be interrupted, whatever an earlier cell has made of SIGINT: as in the notebook.

        It ends when `run` is None again, and `over` this run: no call, in which an interrupt could come.

        Raises:
            KeyboardInterrupt: it was interrupted before it began.
        """
        self._listen()
        self.run, self._pending, self._opened = run, False, time.monotonic()
        self._raised_at = self._insisted_at = float("-inf")
        if self.asked == run:
            raise KeyboardInterrupt

    @contextmanager
    def shield(self) -> Iterator[None]:
        """The lines inside are not cut in two: an interrupt waits for their end."""
        if threading.get_ident() != self._main:
            yield
            return
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            if self._pending and not self._shields:
                self._pending = False
                if self.run is not None:
                    raise KeyboardInterrupt

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """An interrupt comes again until it comes after these lines: raised at their end, it would undo an import."""
        if threading.get_ident() != self._main:
            yield
            return
        self._puts_off += 1
        try:
            yield
        finally:
            self._puts_off -= 1

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.was_noticed = True
        if self.run is None:
            return
        now = time.monotonic()
        if now - (self._raised_at if signum == INSIST_SIGNAL else self._insisted_at) < SAME:
            return
        if self._puts_off or (now - self._opened < FIRST_MOMENTS and not users_line(walk_stack(frame))):
            self.too_early = True
            return
        self._raised_at, self._raised_in = now, self.run
        if signum == INSIST_SIGNAL:
            self._insisted_at = now
        if self._shields:
            self._pending = True
            return
        raise KeyboardInterrupt
