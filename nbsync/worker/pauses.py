"""How long to pause between two looks at something that others do."""

from __future__ import annotations

from collections.abc import Iterator

_FIRST = 0.001
_LONGEST = 0.02


def pauses() -> Iterator[float]:
    """Seconds, without end: short at first, for what comes at once, then as long as nobody notices."""
    pause = _FIRST
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST)
