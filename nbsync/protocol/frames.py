"""Messages as the bytes that carry them: length-prefixed pickles with their large buffers beside them.

Pickle is safe here: both ends are the same user's processes, joined by a socketpair made before the fork.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from nbsync.protocol.given_up import for_lack_of_memory, instead_of

LARGE = 1 << 20  # bytes of a message that others may overtake

_COUNT = struct.Struct("!I")
_NOWHERE = 1 << 18  # bytes that are read at once of what is not kept


class Frame:
    """A message that leaves. It is packed at once.

    Args:
        message: it stays as it is until it has left: its buffers are not copied.

    Attributes:
        total: bytes; left: how many of them were not taken yet.

    Raises:
        Exception: whatever pickling one of its parts raises.
    """

    def __init__(self, message: Any) -> None:
        self.message = message
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(pickled), *(b.raw() for b in buffers)]
        head = _COUNT.pack(len(parts)) + b"".join(struct.pack("!Q", p.nbytes) for p in parts)
        self._parts = [memoryview(head), *(p for p in parts if p.nbytes)]
        self.total = self.left = sum(part.nbytes for part in self._parts)

    def take(self, size: int) -> list[memoryview]:
        """The next `size` bytes, or all that are left."""
        size = min(size, self.left)
        taken, self._parts = split(self._parts, size)
        self.left -= size
        return taken

    def given_up(self, run: int) -> Frame | None:
        """What is sent in its place if it is of `run`, which the user has given up; None if it is to be sent."""
        if getattr(self.message, "run", None) != run:
            return None
        instead = instead_of(self.message, self.total)
        return Frame(instead) if instead is not None else None


def split(parts: list[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `size` bytes of `parts`, and the rest."""
    for index, part in enumerate(parts):
        if size < part.nbytes:
            head = [*parts[:index], part[:size]] if size else parts[:index]
            return head, [part[size:], *parts[index + 1 :]]
        size -= part.nbytes
    return parts, []


class Assembler:
    """Makes messages of the bytes that come in.

    Attributes:
        wanted: the buffer to fill next; it is never empty.
        total: bytes of the message that comes in; arrived: how many of them are there.
    """

    def __init__(self) -> None:
        self._finished: list[Any] = []
        self._begin()

    def _begin(self) -> None:
        self.total = self.arrived = 0
        self._steps = self._frames()
        self.wanted = next(self._steps)

    def drop(self) -> None:
        """Forget what has come of a message whose rest will not come."""
        self._steps.close()  # it holds the buffers
        self._begin()

    def fill(self, size: int) -> list[Any]:
        """So many bytes of `wanted` are there now. Returns the message that they complete, if they do, in a list."""
        self.arrived += size
        self.wanted = self.wanted[size:]
        if not self.wanted:
            self.wanted = next(self._steps)
        finished, self._finished = self._finished, []
        return finished

    def _frames(self) -> Generator[memoryview, None, None]:
        while True:
            sizes = yield from _read_sizes()
            self.total, self.arrived = sum(sizes), 0
            try:
                parts = [_room(size) for size in sizes]
            except (MemoryError, OSError):
                instead = yield from _without_buffers(sizes)
                self._finished.append(instead)
                continue
            yield from (memoryview(part) for part in parts if len(part))
            self._finished.append(pickle.loads(parts[0], buffers=parts[1:]))
            del parts  # they belong to the message, and go with it


def _read_sizes() -> Generator[memoryview, None, list[int]]:
    """Of a message's parts."""
    count = bytearray(_COUNT.size)
    yield memoryview(count)
    sizes = bytearray(8 * _COUNT.unpack(count)[0])
    yield memoryview(sizes)
    return [size for (size,) in struct.iter_unpack("!Q", sizes)]


def _without_buffers(sizes: list[int]) -> Generator[memoryview, None, Any]:
    """What stands for a message for whose buffers there is no memory. They are let go by.

    Raises:
        MemoryError: nothing can stand for it.
    """
    pickled = _room(sizes[0])
    yield memoryview(pickled)
    nowhere = memoryview(bytearray(_NOWHERE))
    for size in sizes[1:]:
        while size:
            yield nowhere[:size]
            size -= min(size, _NOWHERE)
    instead = for_lack_of_memory(pickle.loads(pickled, buffers=[b""] * (len(sizes) - 1)), sum(sizes))
    if instead is None:
        raise MemoryError
    return instead


def _room(size: int) -> bytearray | mmap.mmap:
    """A buffer. A large one is only mapped: to fill it with zeros would hold the GIL, and all threads, for seconds."""
    if size < LARGE:
        return bytearray(size)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # a child's copy must be its own
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # not a kernel that has them
            room.madvise(mmap.MADV_HUGEPAGE)
    return room
