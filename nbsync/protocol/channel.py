"""A socket that carries messages in pieces, so that small ones overtake large ones, and a large one can be given up.

`Channel` does no I/O by itself except in `receive` and `transmit`, which one thread calls when the socket is ready;
any thread may `send`. So a sender never blocks, and an interrupt cannot leave half a message behind.

Each piece has a head that says how long it is, and which of two lanes it belongs to. Each lane is in order by itself.
A third kind of head stands for the end of a large message whose rest is not sent: what came of it is dropped.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

from nbsync.protocol.frames import LARGE, Assembler, Frame, split

_HEAD = struct.Struct("!cI")
_SMALL, _PIECE, _GIVEN_UP = b"s", b"l", b"g"
_PIECE_SIZE = 1 << 18  # bytes of a large message that nothing overtakes
_PARTS_AT_ONCE = 64
_CALLS_AT_ONCE = 64  # then the others have their turn: reading, for a sender


class ChannelClosed(Exception):
    """The other end is gone."""


class Channel:
    """One end of a message channel.

    Args:
        sock: a connected stream socket; it becomes non-blocking and belongs to the channel.
        wake: called when there is something to do for the I/O thread, to make it call `transmit`.
    """

    def __init__(self, sock: socket.socket, wake: Callable[[], None] = lambda: None) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.wake = wake
        self._small: deque[Frame] = deque()
        self._large: deque[Frame] = deque()
        self._piece: list[memoryview] = []  # what is being sent
        self._run_given_up = 0
        self._arriving, self._is_empty = Assembler(), False
        self._reader = self._pieces()
        self._wanted = self._advance([])

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Any) -> None:
        """Queue a message. Never blocks. It is packed first: if that fails, nothing was sent."""
        self.send_packed(Frame(message))

    def send_packed(self, frame: Frame) -> None:
        """Queue a message that is packed."""
        (self._large if frame.total >= LARGE else self._small).append(frame)
        self.wake()

    def give_up(self, run: int) -> None:
        """Send no more of a large message of this run that has not left yet, or comes later, but what stands for it."""
        self._run_given_up = run
        self.wake()

    @property
    def has_output(self) -> bool:
        return bool(self._piece or self._small or self._large)

    @property
    def leaving(self) -> tuple[int, int]:
        """Of the large message that leaves: how many bytes have left, and how many it has. (0, 0) if there is none."""
        try:
            frame = self._large[0]
        except IndexError:
            return 0, 0
        return frame.total - frame.left, frame.total

    @property
    def arriving(self) -> tuple[int, int]:
        """Of the large message that comes in: how many bytes are there, and how many it has. (0, 0) if none does."""
        arriving = self._arriving
        return arriving.arrived, arriving.total

    def transmit(self) -> None:
        """Write some of what the socket takes. Only the I/O thread calls it.

        Raises:
            ChannelClosed: the other end is gone.
        """
        for _ in range(_CALLS_AT_ONCE):
            if not self._piece:
                self._piece = self._next_piece()
            if not self._piece:
                return
            try:
                sent = self.socket.sendmsg(self._piece[:_PARTS_AT_ONCE])
            except BlockingIOError:
                return
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            _, self._piece = split(self._piece, sent)

    def _next_piece(self) -> list[memoryview]:
        """What is to be sent next. Only at its end something else can be."""
        large = self._large[0] if self._large else None
        instead = large.given_up(self._run_given_up) if large is not None else None
        if large is not None and instead is not None:
            self._large.popleft()
            self._small.append(instead)
            if large.left < large.total:
                return [_head(_GIVEN_UP)]
        if self._small:
            small = self._small.popleft()
            return [_head(_SMALL, small.total), *small.take(small.total)]
        if large is None:
            return []
        size = min(_PIECE_SIZE, large.left)
        piece = [_head(_PIECE, size), *large.take(size)]
        if not large.left:
            self._large.popleft()
        return piece

    def receive(self) -> list[Any]:
        """The messages that have come in so far. Only the I/O thread calls it.

        Raises:
            ChannelClosed: the other end is gone and everything it sent was returned before.
        """
        messages: list[Any] = []
        for _ in range(_CALLS_AT_ONCE):
            try:
                got = self.socket.recv_into(self._wanted)
            except BlockingIOError:
                self._is_empty = True
                break
            except OSError as error:
                if messages:
                    break  # the next call finds the end again
                raise ChannelClosed(str(error)) from error
            if not got:
                if messages:
                    break
                raise ChannelClosed("end of file")
            self._wanted = self._wanted[got:]
            if not self._wanted:
                self._wanted = self._advance(messages)
        return messages

    def receive_rest(self) -> Iterator[Any]:
        """What the other end, which is gone, has left. It may end with `ChannelClosed`.

        A process that holds the other end too keeps the socket open; then it ends where nothing more is there.
        """
        self._is_empty = False
        while not self._is_empty:
            yield from self.receive()

    def drop(self) -> None:
        """The other end is gone: forget what has come of a large message."""
        self._wanted = memoryview(b"")
        self._reader.close()
        self._arriving.drop()

    def _advance(self, messages: list[Any]) -> memoryview:
        """The buffer to fill next. What the last one has completed goes to `messages`."""
        item = next(self._reader)
        while isinstance(item, list):
            messages += item
            item = next(self._reader)
        return item

    def _pieces(self) -> Generator[memoryview | list[Any], None, None]:
        """Yields the buffer to fill next, or the messages that were completed."""
        small = Assembler()
        head = bytearray(_HEAD.size)
        while True:
            yield memoryview(head)
            kind, size = _HEAD.unpack(head)
            if kind == _GIVEN_UP:
                self._arriving.drop()
            else:
                yield from _fill(small if kind == _SMALL else self._arriving, size)


def _fill(assembler: Assembler, size: int) -> Iterator[memoryview | list[Any]]:
    """Take `size` bytes in."""
    while size:
        count = min(size, len(assembler.wanted))
        yield assembler.wanted[:count]
        yield assembler.fill(count)
        size -= count


def _head(kind: bytes, size: int = 0) -> memoryview:
    return memoryview(_HEAD.pack(kind, size))


def piece_of(message: Any) -> bytes:
    """A small message as it goes over the socket, for a sender that has no channel yet."""
    frame = Frame(message)
    return b"".join([_head(_SMALL, frame.total), *frame.take(frame.total)])
