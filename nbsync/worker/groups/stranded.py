"""Wakes threads that gloo has forgotten.

When a connection ends, gloo tells those who wait for messages that have not begun, and forgets the one whose message
was on its way: that thread waits until the group's timeout, half an hour, while everybody else is free. It makes no
difference whether the connection was cut here or the peer's process died; any large message can be hit.

A message whose operation has ended meanwhile is the other way round: nobody waits for it, and gloo neither reads it nor
closes its connection, of which its event loop is told again and again, and takes a whole processor.

The forgotten thread is inside `UnboundBuffer::waitRecv` or `waitSend`: the futex that it sleeps on is a part of the
buffer. What gloo does for the others is done for it from here: the buffer gets an exception to raise.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Set
from contextlib import suppress
from pathlib import Path

from nbsync.worker.groups.buffers import gloo_buffers
from nbsync.worker.groups.events import is_event_loop, tell_once
from nbsync.worker.groups.native import WORD, own_memory, words
from nbsync.worker.groups.sockets import Socket
from nbsync.worker.groups.tasks import LOOP, RUNNER, is_named, sleeps_in, tasks

_BEFORE = 256  # bytes from a buffer's beginning to what is waited on in it, at most
_SAYS = b"Connection closed by peer in the middle of a message"
_SOON, _LATE = 0.008, 0.25  # seconds until the next look: after the first one, and at most


class Stranded:
    """Finds and wakes them.

    A buffer ends with its operation, so nobody else may be about to end that: the connections have been shut down,
    gloo's event loops have been told and sleep, and the buffer's thread sleeps in it, as at the look before.

    Args:
        sockets: the connections.
        threads: only these, by number; None for the main thread and all of gloo's.
    """

    def __init__(self, sockets: Set[Socket], threads: frozenset[int] | None = None) -> None:
        self._sockets, self._threads = sockets, threads
        self._seen: set[tuple[int, int]] = set()
        self._looked, self._pause = 0.0, _SOON / 2  # doubled by each look

    def wake(self) -> bool:
        """To be called again and again, when the connections were shut down. Returns whether somebody still waits.

        Most are found at once, so looks become rarer.
        """
        now = time.monotonic()
        if now - self._looked < self._pause:
            return True
        self._looked = now
        try:
            if not all(map(_is_idle, tasks(LOOP))):
                tell_once(self._sockets)  # gloo may have changed what they want to be told
                return True
            self._pause = min(2 * self._pause, _LATE)
            table, tell = gloo_buffers()
            found = set(_awaited(table, self._threads))
        except (OSError, AttributeError, ValueError):  # another build of torch, or a system that does not let us look
            return False
        for _, buffer in found & self._seen:
            tell(buffer, _SAYS)
        self._seen = found - self._seen
        return bool(found)

    def wake_all(self, seconds: float) -> None:
        """Look for so long, or until nobody waits."""
        end = time.monotonic() + seconds
        while self.wake() and time.monotonic() < end:
            time.sleep(self._pause)


def _is_idle(loop: Path) -> bool:
    """Whether the thread of an event loop waits for events."""
    return (call := sleeps_in(loop)) is not None and is_event_loop(call)


def _awaited(table: int, threads: frozenset[int] | None) -> Iterator[tuple[int, int]]:
    """The threads that sleep in a buffer, with its address."""
    with own_memory() as memory:
        for thread, futex in _sleepers(threads):
            begin = (futex & ~(WORD - 1)) - _BEFORE
            with suppress(OSError, OverflowError):  # no futex, but some other argument of a system call
                found = enumerate(words(memory, begin, _BEFORE))
                yield from [(thread, begin + WORD * i) for i, word in found if word == table][-1:]


def _sleepers(threads: frozenset[int] | None) -> Iterator[tuple[int, int]]:
    """The threads that sleep, each with the first argument of the system call that it sleeps in."""
    for task in tasks():
        number = int(task.name)
        is_wanted = number in threads if threads is not None else number == os.getpid() or is_named(task, RUNNER)
        if is_wanted and (argument := sleeps_in(task)) is not None:
            yield number, argument
