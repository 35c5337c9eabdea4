"""What a front end can bear of a stream: of a flood the head and the end are shown, the rest is only counted.

Pure: bytes and times in, bytes out. A Jupyter server drops output above 1 MB/s over three seconds, and a browser is
slow long before; so more than `BURST` at once, or `RATE` in the long run, is a flood.
"""

from __future__ import annotations

from dataclasses import dataclass

BURST = 1_500_000.0  # what may be shown at once: bytes, and `PER_LINE` for each line
RATE = 200_000.0  # so much of it is given back in a second
RESUME = 300_000.0  # a flood is over when so much may be shown again
PER_LINE = 10  # a line's label, and its share of our own work
SHOWN_LINES = 20  # of a flood's end
SHOWN_BYTES = 8 << 10
RING = 64 << 10  # bytes of a flood's end that are kept, to be shown where there is no log


class Meter:
    """A bucket of `BURST` that fills by `RATE`."""

    def __init__(self) -> None:
        self._level = BURST
        self._at = 0.0

    def room(self, now: float) -> float:
        """What may be shown now."""
        if now > self._at:
            self._level = min(BURST, self._level + RATE * (now - self._at))
            self._at = now
        return self._level

    def spend(self, cost: float) -> None:
        """So much was shown, or would have been: who goes on at this rate has no room."""
        self._level = max(0.0, self._level - cost)


@dataclass(frozen=True)
class Hidden:
    """What was hidden of a flood, and its end, which is to be shown.

    Attributes:
        lines, size: how many lines and bytes were hidden.
    """

    lines: int
    size: int
    end: bytes

    def __str__(self) -> str:
        """`1,234 lines hidden`"""
        if not self.size:
            return ""
        return f"{self.lines:,} lines hidden" if self.lines else f"{self.size:,} bytes hidden"


class Flood:
    """One stream of one rank: lets through what can be shown, and keeps the end of what cannot."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._let_through = self._held_back = b""  # the ends of what is hidden
        self._lines = self._size = 0
        self.is_hiding = False

    def take(self, data: bytes, now: float) -> bytes:
        """What of `data` is to be shown now. It may begin a flood, which goes on until `end`."""
        room, cost = self._meter.room(now), _cost(data)
        self._meter.spend(cost)
        if not self.is_hiding:
            if cost <= room:
                return data
            self.is_hiding = True
            cut = _cut(data, int(len(data) * room / cost))
            self._held_back = self._count(self._held_back, data[cut:])
            return data[:cut]
        self._held_back = self._count(self._held_back, data)
        return b""

    def hide(self, data: bytes) -> None:
        """`data` was let through, but cannot be shown after all: it came before all that `take` hides."""
        self._let_through = self._count(self._let_through, data)

    def _count(self, ring: bytes, data: bytes) -> bytes:
        """Count `data` among what is not shown. Returns the end of `ring` and `data`."""
        self.is_hiding = True
        self._lines += data.count(b"\n")
        self._size += len(data)
        return data[-RING:] if len(data) >= RING else (ring + data)[-RING:]

    def is_over(self, now: float) -> bool:
        """Whether what comes can be shown again."""
        return self.is_hiding and self._meter.room(now) >= RESUME

    def so_far(self) -> Hidden:
        """What is hidden until now."""
        return Hidden(self._lines, self._size, b"")

    def end(self, whole_ring: bool = False) -> Hidden:
        """Hide no more. With `whole_ring`, all that is kept is to be shown."""
        most = (RING, RING) if whole_ring else (SHOWN_LINES, SHOWN_BYTES)
        ring = (self._let_through + self._held_back)[-RING:]
        shown = _last_lines(ring, *most, is_cut=self._size > len(ring))
        hidden = Hidden(self._lines - shown.count(b"\n"), self._size - len(shown), shown)
        self._let_through = self._held_back = b""
        self._lines, self._size, self.is_hiding = 0, 0, False
        return hidden


def _cost(data: bytes) -> int:
    if b"\r" in data:  # what is overwritten is not shown
        data = b"\n".join(line[line.rfind(b"\r", 0, -1) + 1 :] for line in data.split(b"\n"))
    return len(data) + PER_LINE * data.count(b"\n")


def _cut(data: bytes, most: int) -> int:
    """Where to cut `data`: after its last whole line within `most` bytes, or else between two characters."""
    after_line = data.rfind(b"\n", 0, most) + 1
    if after_line:
        return after_line
    while 0 < most < len(data) and data[most] & 0xC0 == 0x80:  # inside a UTF-8 character
        most -= 1
    return most


def _last_lines(data: bytes, most_lines: int, most_bytes: int, is_cut: bool) -> bytes:
    """The last lines, or the last bytes where the lines are long. With `is_cut` the first one is not whole."""
    end = data[-most_bytes:]
    lines = end.split(b"\n")
    if (is_cut or len(data) > len(end)) and len(lines) > 1:
        lines = lines[1:]
    most = most_lines if lines[-1] else most_lines + 1  # the last one is empty when the data ends with a line
    return b"\n".join(lines[-most:])
