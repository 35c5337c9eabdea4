"""One thread receives from all workers and sends to them; what it receives goes on to a handler, in order."""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nbsync.kernel.descriptors import close_kernel_only
from nbsync.kernel.engines.base import Process
from nbsync.kernel.output.sequence import Item, Sequencer, StreamName
from nbsync.kernel.transfers import Moving
from nbsync.protocol.channel import Channel, ChannelClosed

_log = logging.getLogger(__name__)

NOTICEABLE = 32 << 20  # bytes of a message whose way takes a noticeable time
MOST_UNREAD = 8 << 20  # bytes of one rank's output, and those of one of its pipes that wait at a fence
_READ = 1 << 16
_READS_AT_ONCE = 16  # then the other workers have their turn


@dataclass(frozen=True)
class Exited:
    """A worker's process has ended; `status` is what `waitpid` gave, `time` when it was noticed."""

    pid: int
    status: int
    time: float


#: (rank, kind, what): kind is "stdout" or "stderr" with bytes, or "message".
Handler = Callable[[int, str, Any], None]


@dataclass(eq=False)
class _Line:
    """One worker's connections."""

    process: Process
    channel: Channel
    handler: Handler
    sequencer: Sequencer = field(default_factory=Sequencer)
    received: int = 0  # bytes of output passed on, counted by the hub
    taken: int = 0  # bytes that were taken in, counted by whoever shows them
    paused: set[StreamName] = field(default_factory=set)  # the pipes that are not read

    @property
    def unread(self) -> int:
        return self.received - self.taken

    def is_full(self, stream: StreamName) -> bool:
        """Whether no more of a pipe is to be read now.

        One that waits at a fence must not keep the other one, which has yet to come there, from being read.
        """
        most = MOST_UNREAD // 2 if stream in self.paused else MOST_UNREAD
        return self.unread > most or self.sequencer.held(stream) > most

    def pipes(self) -> list[tuple[StreamName, int]]:
        return [("stdout", self.process.stdout), ("stderr", self.process.stderr)]

    def sources(self) -> list[int]:
        """stdout, stderr, the process, the channel."""
        return [self.process.stdout, self.process.stderr, self.process.pidfd, self.channel.fileno()]


class Hub:
    """Serves the connections of all workers of this kernel."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_out, selectors.EVENT_READ, (None, self._drain_wakes))
        self._lines: dict[Process, _Line] = {}
        self._jobs: list[tuple[_Line, Callable[[], None]]] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ensure_running(self) -> None:
        """Have a thread that serves.

        Raises:
            RuntimeError: the system gives no more of them.
        """
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="nbsync-hub", daemon=True)
                self._thread.start()

    def attach(self, process: Process, handler: Handler) -> None:
        """Serve `process` from now on. `handler` is called in the hub's thread."""
        line = _Line(process, Channel(process.channel, self._wake), handler)
        self._lines[process] = line
        self._post(line, lambda: self._register(line))

    def send(self, process: Process, message: Any) -> None:
        """Send a message. Never blocks; to a worker that has ended it does nothing."""
        line = self._lines.get(process)
        if line is not None:
            line.channel.send(message)

    def give_up(self, process: Process, run: int) -> None:
        """Send no more of a large message of this run, but what stands for it."""
        line = self._lines.get(process)
        if line is not None:
            line.channel.give_up(run)

    def moving(self, process: Process) -> Moving | None:
        """The large message that is on its way to or from `process`, if there is one."""
        line = self._lines.get(process)
        if line is None:
            return None
        for (done, total), to_rank in ((line.channel.arriving, False), (line.channel.leaving, True)):
            if done < total and total >= NOTICEABLE:
                return Moving(done, total, to_rank)
        return None

    def acknowledge(self, process: Process, size: int) -> None:
        """So many bytes of the output of `process` were taken in.

        A flood waits in the worker, not in memory here: its pipes are not read while too much is unread.
        """
        line = self._lines.get(process)
        if line is not None:
            line.taken += size
            if line.paused and line.unread < MOST_UNREAD // 2:
                self._post(line, lambda: self._regulate(line))

    # ---- in the hub's thread ----

    def _serve(self) -> None:
        while True:
            for line in list(self._lines.values()):  # other threads attach workers meanwhile
                self._watch_output(line)
            for key, _ in self._selector.select():
                if self._selector.get_map().get(key.fd) == key:  # else an earlier one of these ended its worker
                    self._handle(key)

    def _handle(self, key: selectors.SelectorKey) -> None:
        line, callback = key.data
        if line is None:
            callback()
        else:
            self._guarded(line, callback)

    def _guarded(self, line: _Line, job: Callable[[], None]) -> None:
        """Do it. A defect in that costs the worker, not the thread that all of them need."""
        try:
            job()
        except Exception:
            _log.exception("rank %d is ended: what it sent could not be handled", line.process.rank)
            if line.channel.fileno() in self._selector.get_map():
                self._selector.unregister(line.channel)
            line.process.kill()

    def _watch_output(self, line: _Line) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.channel.has_output else 0)
        key = self._selector.get_map().get(line.channel.fileno())
        if key is not None and key.events != events:
            self._selector.modify(line.channel, events, key.data)

    def _register(self, line: _Line) -> None:
        for _, fd in line.pipes():
            os.set_blocking(fd, False)
        self._selector.register(line.process.pidfd, selectors.EVENT_READ, (line, lambda: self._exited(line)))
        for stream, fd in line.pipes():
            self._watch_pipe(line, stream, fd)
        self._selector.register(line.channel, selectors.EVENT_READ, (line, lambda: self._serve_channel(line)))

    def _regulate(self, line: _Line) -> None:
        """Read the pipes that are not full, and no others."""
        if line.process not in self._lines:
            return
        for stream, fd in line.pipes():
            is_full = line.is_full(stream)
            if is_full and stream not in line.paused:
                line.paused.add(stream)
                if fd in self._selector.get_map():
                    self._selector.unregister(fd)
            elif not is_full and stream in line.paused:
                line.paused.remove(stream)
                self._watch_pipe(line, stream, fd)

    def _watch_pipe(self, line: _Line, stream: StreamName, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ, (line, partial(self._serve_pipe, line, stream, fd)))

    def _serve_pipe(self, line: _Line, stream: StreamName, fd: int) -> None:
        self._read(line, stream, fd, _READS_AT_ONCE)
        self._regulate(line)

    def _read(self, line: _Line, stream: StreamName, fd: int, most: int) -> None:
        for _ in range(most):
            try:
                data = os.read(fd, _READ)
            except BlockingIOError:
                return
            if not data:  # closed by the worker; its exit is still to come
                if fd in self._selector.get_map():
                    self._selector.unregister(fd)
                return
            self._pass_on(line, line.sequencer.feed_bytes(stream, data))

    def _pass_on(self, line: _Line, items: Iterable[Item]) -> None:
        for kind, what in items:
            if isinstance(what, bytes):
                line.received += len(what)
            line.handler(line.process.rank, kind, what)

    def _serve_channel(self, line: _Line) -> None:
        try:
            line.channel.transmit()
            for message in line.channel.receive():
                self._deliver(line, message)
            self._regulate(line)
        except ChannelClosed:  # its exit is still to come
            if line.channel.fileno() in self._selector.get_map():
                self._selector.unregister(line.channel)

    def _deliver(self, line: _Line, message: Any) -> None:
        number = getattr(message, "fence", None)
        if number is None:
            line.handler(line.process.rank, "message", message)
            return
        self._pass_on(line, line.sequencer.feed_message(number, message))

    def _exited(self, line: _Line) -> None:
        """Take what the worker left behind, then tell of its end."""
        noticed = time.monotonic()  # first: what is left behind may be much
        status = line.process.reap()
        if status is None:
            return
        line.process.sweep()
        for fd in line.sources():
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        for stream, fd in line.pipes():
            self._read(line, stream, fd, most=1 << 20)
        try:
            for message in line.channel.receive_rest():
                self._deliver(line, message)
        except ChannelClosed:
            pass
        except Exception:  # what it sent last cannot be handled; its end must be told all the same
            _log.exception("the last messages of rank %d are lost", line.process.rank)
        self._pass_on(line, line.sequencer.finish())
        del self._lines[line.process]
        line.channel.drop()
        line.process.release()
        close_kernel_only(line.process.channel.detach(), line.process.stdout, line.process.stderr)
        line.handler(line.process.rank, "message", Exited(line.process.pid, status, noticed))

    # ---- from any thread ----

    def _post(self, line: _Line, job: Callable[[], None]) -> None:
        self.ensure_running()
        with self._lock:
            self._jobs.append((line, job))
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # enough wake-ups are waiting already
            os.write(self._wake_in, b"\0")

    def _drain_wakes(self) -> None:
        os.read(self._wake_out, 1 << 16)
        with self._lock:
            jobs, self._jobs = self._jobs, []
        for line, job in jobs:
            self._guarded(line, job)
