"""A socket that carries messages: length-prefixed pickles with their large buffers beside them.

`Channel` does no I/O by itself except in `receive` and `transmit`, which one thread calls when the socket is ready;
any thread may `send`. So a sender never blocks, and an interrupt cannot leave half a frame behind.
Pickle is safe here: both ends are the same user's processes, joined by a socketpair made before the fork.
"""

from __future__ import annotations

import mmap
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

_COUNT = struct.Struct("!I")
_LARGE = 1 << 20


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel:
    """One end of a message channel.

    Args:
        sock: a connected stream socket; it becomes non-blocking and belongs to the channel.
        wake: called after `send` queued something, to make the I/O thread call `transmit`.
    """

    def __init__(self, sock: socket.socket, wake: Callable[[], None] = lambda: None) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.wake = wake
        self._outgoing: deque[list[memoryview]] = deque()
        self._current: list[memoryview] = []
        self._reader = self._frames()
        self._wanted = next(self._reader)
        self.arriving = 0  # bytes of the message that comes in, and how many of them are there
        self.arrived = 0
        self.sent = 0  # bytes, since the beginning

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Any) -> None:
        """Queue a message. Never blocks. It is packed first: if that fails, nothing was sent."""
        self.send_packed(pack_message(message))

    def send_packed(self, frame: list[memoryview]) -> None:
        """Queue what `pack_message` made."""
        self._outgoing.append(frame)
        self.wake()

    @property
    def has_output(self) -> bool:
        return bool(self._current or self._outgoing)

    def transmit(self) -> None:
        """Write as much as the socket takes. Only the I/O thread calls it."""
        while self._current or self._outgoing:
            if not self._current:
                self._current = self._outgoing.popleft()
            try:
                sent = self.socket.sendmsg(self._current[:64])
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            self.sent += sent
            self._drop(sent)

    def _drop(self, sent: int) -> None:
        while sent:
            head = self._current[0]
            if sent < head.nbytes:
                self._current[0] = head[sent:]
                return
            sent -= head.nbytes
            self._current.pop(0)

    def receive(self) -> list[Any]:
        """The messages that have come in so far. Only the I/O thread calls it.

        Raises:
            ChannelClosed: the other end is gone and everything it sent was returned before.
        """
        messages: list[Any] = []
        for _ in range(64):  # then let others have their turn
            try:
                got = self.socket.recv_into(self._wanted)
            except BlockingIOError:
                break
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not got:
                if messages:
                    break  # the next call finds the end again
                raise ChannelClosed("end of file")
            self.arrived += got
            self._wanted = self._wanted[got:]
            while not self._wanted:
                self._wanted = self._advance(messages)
        return messages

    def _advance(self, messages: list[Any]) -> memoryview:
        item = next(self._reader)
        while not isinstance(item, memoryview):
            messages.append(item[0])
            item = next(self._reader)
        return item

    def _frames(self) -> Iterator[Any]:
        """Yields the buffer to fill next, or a finished message in a 1-tuple."""
        while True:
            count = bytearray(_COUNT.size)
            yield memoryview(count)
            lengths = bytearray(8 * _COUNT.unpack(count)[0])
            yield memoryview(lengths)
            sizes = [n for (n,) in struct.iter_unpack("!Q", lengths)]
            self.arriving, self.arrived = sum(sizes), 0
            parts = [_room(n) for n in sizes]
            for part in parts:
                if len(part):
                    yield memoryview(part)
            yield (pickle.loads(parts[0], buffers=parts[1:]),)


def _room(size: int) -> bytearray | mmap.mmap:
    """A buffer. A large one is only mapped: to fill it with zeros would hold the GIL, and all threads, for seconds."""
    if size < _LARGE:
        return bytearray(size)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a child's copy must be its own
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # not a kernel that has them
            room.madvise(mmap.MADV_HUGEPAGE)
    return room


def pack_message(message: Any) -> list[memoryview]:
    """A message as the bytes that carry it.

    Raises:
        Exception: whatever pickling one of its parts raises.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(pickled), *(b.raw() for b in buffers)]
    head = _COUNT.pack(len(parts)) + b"".join(struct.pack("!Q", p.nbytes) for p in parts)
    return [memoryview(head), *(p for p in parts if p.nbytes)]
