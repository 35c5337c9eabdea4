"""Long pickles and bytes, piece by piece: between two pieces other threads run, and interrupts come."""

from __future__ import annotations

import io
from typing import Any

LONG = 1 << 20  # bytes


class Reader:
    """A pickle as a file. It is in Python for what happens between two of its calls."""

    def __init__(self, pickled: bytes | memoryview) -> None:
        self._left = memoryview(pickled)

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        return bytes(self._take(size))

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; returns how many bytes that were."""
        taken = self._take(len(buffer))
        buffer[: len(taken)] = taken
        return len(taken)

    def readline(self) -> bytes:
        """The next line, with its end."""
        line = bytearray()
        while self._left and not line.endswith(b"\n"):
            line += self._take(1)
        return bytes(line)

    def _take(self, size: int) -> memoryview:
        taken, self._left = self._left[:size], self._left[size:]
        return taken


def rebuild_bytes(buffer: Any) -> bytes:
    """The bytes that are in `buffer`. Pickles name this function."""
    view = memoryview(buffer)
    file = io.BytesIO()
    for start in range(0, len(view), LONG):
        file.write(view[start : start + LONG])
    return file.getvalue()
