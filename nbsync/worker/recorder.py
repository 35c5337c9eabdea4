"""Notes what the user's code runs, for an end that nobody sees coming (see `nbsync.protocol.blackbox`)."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import CodeType
from typing import Any, NoReturn

from nbsync.protocol.blackbox import BlackBox, Statement
from nbsync.protocol.cells import describe_file
from nbsync.protocol.userlines import is_users
from nbsync.worker.interrupts import Interrupts
from nbsync.worker.places import first_line, walk_stack


class Recorder:
    """Writes the black box of this rank.

    Attributes:
        doing: what was begun with a value and did not end well: "pickled x, of type Net".
    """

    def __init__(self, folder: str, rank: int, interrupts: Interrupts) -> None:
        self._box = BlackBox(folder, rank)
        self._interrupts = interrupts
        self.doing = ""

    def install(self) -> None:
        """`os._exit` in the user's code ends the process unseen: note at which line."""
        original = os._exit

        def _exit(status: int) -> NoReturn:
            mine = [(code, line) for code, line in walk_stack(sys._getframe(1)) if is_users(code)]
            if mine and threading.current_thread() is threading.main_thread():
                self.note(*mine[-1])
            original(status)

        os._exit = _exit

    def note(self, code: CodeType, line: int | None = None) -> None:
        """The main thread is at `line` of this code, or at the beginning of this statement."""
        run = self._interrupts.run
        if run is not None:
            file = code.co_filename
            self._box.note(Statement(run, file, describe_file(file), line or first_line(code)))

    def note_function(self, function: Callable[..., Any]) -> None:
        """The main thread is about to call it; where it has the user's lines, a crash in them is told with its line."""
        code = getattr(inspect.unwrap(getattr(function, "func", function)), "__code__", None)
        if code is not None and is_users(code):
            self.note(code)

    @contextmanager
    def handling(self, what: str) -> Iterator[None]:
        """The lines inside do `what`, e.g. "unpickled the function": the user's code may end this process in it."""
        run, self.doing = self._interrupts.run, what
        if run is not None:
            self._box.note(Statement(run, "", what, 0))
        yield
        self.doing = ""
        if run is not None:
            self._box.note(Statement(run, "", f"had {what}", 0))

    def pickling(self, name: str, values: Sequence[Any]) -> AbstractContextManager[None]:
        """The lines inside pickle `values`, which the user knows as `name`."""
        types = ", ".join(dict.fromkeys(type(value).__qualname__ for value in values))
        return self.handling(f"pickled {name}, of type {types}"[:500])
