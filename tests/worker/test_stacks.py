"""Looks at the stacks of threads: what is told, and that the one who looks holds nothing of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

from nbsync.worker.stacks import running_threads, stack_of, variable_in


@pytest.fixture
def fine_turns() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class _Told:
    """Tells who ends it."""

    by: ClassVar[set[int]] = set()

    def __del__(self) -> None:
        self.by.add(threading.get_ident())


def _short() -> None:
    thing = _Told()  # noqa: F841
    for _ in range(20):
        pass


def test_a_thread_that_waits() -> None:
    """Its code and lines, outermost first, and its variables by their depth."""
    begun, over = threading.Event(), threading.Event()

    def outer(size: int) -> None:
        inner()

    def inner() -> None:
        begun.set()
        over.wait(10)

    thread = threading.Thread(target=outer, args=(3,))
    thread.start()
    try:
        assert begun.wait(10)
        time.sleep(0.05)
        stack = stack_of(thread.ident)
        names = [code.co_name for code, _ in stack]
        assert [name for name in names if name in ("outer", "inner")] == ["outer", "inner"]
        assert (outer.__code__, outer.__code__.co_firstlineno + 1) in stack
        assert variable_in(thread.ident, names[::-1].index("outer"), "size") == 3
        assert variable_in(thread.ident, names[::-1].index("outer"), "none") is None
        assert variable_in(thread.ident, len(names), "size") is None
        assert thread.ident in running_threads()
    finally:
        over.set()
        thread.join()
    assert (stack_of(thread.ident), stack_of(None), variable_in(thread.ident, 0, "size")) == ([], [], None)


@pytest.mark.parametrize("look", [stack_of, lambda thread: variable_in(thread, 0, "none"), lambda _: running_threads()])
@pytest.mark.usefixtures("fine_turns")
def test_a_function_that_returns_meanwhile(look: Callable[[int], Any]) -> None:
    """Its variables end in its own thread."""
    here, is_over = threading.get_ident(), threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            look(here)

    _Told.by.clear()
    watcher = threading.Thread(target=watch)
    watcher.start()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        _short()
    is_over.set()
    watcher.join()
    assert _Told.by == {here}
