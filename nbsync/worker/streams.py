"""stdout and stderr of a worker: file descriptors 1 and 2 are pipes that the kernel reads.

The kernel must show output in the order in which the worker made it, across two pipes and the message channel.
So wherever the order matters (the stream changes, a figure is shown, a cell ends) a *fence* with the next number is
written into both pipes; the kernel waits at it until all sources have come that far.
"""

from __future__ import annotations

import functools
import io
import os
import select
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TextIO

from nbsync.protocol.channel import Channel
from nbsync.protocol.fence import fence, meeting
from nbsync.protocol.frames import Frame
from nbsync.worker.interrupts import Shield


class Streams:
    """Replaces the process's stdio by the two pipes.

    Args:
        stdout, stderr: write ends of the pipes; they belong to this object.
        shield: a context manager in which the main thread is not interrupted.

    Attributes:
        to_kernel: a descriptor of stderr's pipe that the user's code has no hand on.
    """

    def __init__(self, stdout: int, stderr: int, shield: Shield) -> None:
        # The fences go through descriptors of their own: the user may redirect or close 1 and 2.
        self._fds = (_move_high(stdout), _move_high(stderr))
        self.to_kernel = self._fds[1]
        self._shield = shield
        self._lock = threading.RLock()
        self._count = 0
        self._forked = False
        self._last: _RankStream | None = None
        self._closed: set[int] = set()
        self._inherited = inherited = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (self._fds[0], 1), (self._fds[1], 2)):
            os.dup2(source, target)
        os.close(null)
        self._keep_numbers()
        self.out, self.err = _RankStream(1, self), _RankStream(2, self)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # stays open as long as the process
        sys.stdout = sys.__stdout__ = self.out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.err  # type: ignore[misc]
        _forward(zip(inherited, (self.out, self.err) * 2, strict=True))
        os.register_at_fork(after_in_child=self._after_fork)

    def post(self, make_message: Callable[[int], Any], channel: Channel) -> None:
        """Send a message in its place among the output.

        It is packed before the mark is written: a mark that promises a message which never comes would hold back
        everything after it.

        Args:
            make_message: gets the number of the mark, and returns the message.

        Raises:
            Exception: whatever pickling the message raises; nothing was written then.
        """
        with self._lock, self._shield():
            if self._forked:  # a child of this worker has no say on its channel
                return
            packed = Frame(make_message(self._count + 1))
            self._fence(has_message=True)
            channel.send_packed(packed)

    def _fence(self, has_message: bool = False) -> None:
        """Mark this point in both pipes."""
        with self._lock, self._shield():
            self.flush()
            self._count += 1
            mark = fence(self._count, has_message)
            for fd in self._fds:
                _insist(fd, functools.partial(os.write, fd, mark))  # shorter than PIPE_BUF: atomic

    def meet(self, name: str) -> None:
        """Mark a moment when all ranks have met, in the output of each."""
        self.out.write(meeting(name))

    def owns(self, file: Any) -> bool:
        """Whether what is written to `file` comes to the kernel."""
        return any(file is stream for stream in (self.out, self.err, *self._inherited))

    def flush(self) -> None:
        for stream, fd in zip((self.out, self.err), self._fds, strict=True):
            if stream.closed:
                continue
            number = stream.fileno()
            if number in self._closed and _leads_nowhere(number):  # else the user has given it another meaning since
                os.dup2(fd, number)
            self._closed.discard(number)
            try:
                os.fstat(number)
                _insist(fd, stream.flush)
            except OSError:  # C code closed the descriptor, or the user turned it to what takes no more
                os.dup2(fd, number)
                _insist(fd, stream.flush)

    def _keep_numbers(self) -> None:
        """Let nothing else become descriptor 1 or 2 when the user closes them: what he prints would go there.

        Until the next fence nothing can be written to a closed one, as it should be.
        """
        close = os.close

        def close_but_keep(fd: int) -> None:
            if self._forked or fd not in (1, 2):
                close(fd)
                return
            self._closed.add(fd)
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(null, fd)
            close(null)

        functools.update_wrapper(close_but_keep, close)
        os.close = close_but_keep

    def _turn(self, stream: _RankStream) -> None:
        """`stream` is about to write: keep its place relative to the other one."""
        if self._last is stream or self._forked:
            return
        with self._lock:
            if self._last is not None:
                self._fence()
            self._last = stream

    def _after_fork(self) -> None:
        """In a child of this worker: it writes to the same pipes, but the fences are its parent's."""
        self._forked = True
        self._lock = threading.RLock()


class _RankStream(io.TextIOWrapper):
    """sys.stdout or sys.stderr of a worker: line-buffered UTF-8; what cannot be encoded is shown escaped."""

    def __init__(self, fd: int, streams: Streams) -> None:
        raw = io.FileIO(fd, "w", closefd=False)
        buffered = io.BufferedWriter(raw)
        super().__init__(buffered, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._streams = streams

    def close(self) -> None:
        """Write what is held back. It stays open: the process has no other to say its last words on."""
        self.flush()

    def detach(self) -> NoReturn:
        """Refused, as by the notebook's own streams.

        Raises:
            io.UnsupportedOperation: always.
        """
        raise io.UnsupportedOperation("detach")

    def write(self, text: str) -> int:
        self._streams._turn(self)
        written = super().write(text)
        if not text.endswith("\n"):  # it grows: it is to be seen, and to survive a sudden end
            self.flush()
        return written


def _insist(pipe: int, write: Callable[[], object]) -> None:
    """Write, and wait for room where the user's code (asyncio, a child) has made the pipe one that does not block."""
    while True:
        try:
            write()
            return
        except BlockingIOError:
            room = select.poll()
            room.register(pipe, select.POLLOUT)
            room.poll()


def _leads_nowhere(fd: int) -> bool:
    """Whether it is what we put in the place of a closed one."""
    import fcntl

    is_null = os.fstat(fd).st_rdev == os.stat(os.devnull).st_rdev
    return is_null and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def _move_high(fd: int) -> int:
    """The same pipe under a number that does not collide with 0-2 and that is not inherited by programs."""
    import fcntl

    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return high


def _forward(pairs: Iterable[tuple[TextIO | Any, _RankStream]]) -> None:
    """Whoever kept the notebook's sys.stdout (a logging handler, a default argument) writes to the worker's."""
    for old, new in pairs:
        for method in ("write", "writelines", "flush", "isatty", "fileno"):
            try:
                setattr(old, method, getattr(new, method))
            except AttributeError:  # a C-level stream on descriptor 1 or 2: it already goes to the pipe
                break
