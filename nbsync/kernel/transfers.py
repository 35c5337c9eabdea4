"""Large messages on their way: how far they are, how fast, and how long they will still take. Times are given in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Moving:
    """A large message to or from a rank, in bytes."""

    done: int
    total: int
    to_rank: bool


class Transfers:
    """What moves between the kernel and the ranks of a run.

    Args:
        moving: the large message that is on its way to or from a rank, if there is one.
    """

    def __init__(self, moving: Callable[[int], Moving | None]) -> None:
        self._moving = moving
        self._first: dict[tuple[int, int, bool], tuple[float, int]] = {}
        self._now: dict[int, tuple[Moving, float]] = {}  # with its rate

    def look(self, ranks: Iterable[int], now: float) -> None:
        """See how far they are."""
        self._now = {}
        for rank in ranks:
            moving = self._moving(rank)
            if moving is None:
                continue
            key = rank, moving.total, moving.to_rank
            begin, done = self._first.setdefault(key, (now, moving.done))
            self._now[rank] = moving, (moving.done - done) / max(now - begin, 0.01)
        self._first = {key: first for key, first in self._first.items() if key[0] in self._now}

    def lines(self) -> list[tuple[int, str]]:
        """Rank and text: `sends 0.9 of 2.1 GB, 850 MB/s`."""
        return [(rank, _text(moving, rate)) for rank, (moving, rate) in sorted(self._now.items())]

    def longest(self) -> float:
        """Seconds until all have arrived, by their rates so far."""
        waits = [(moving.total - moving.done) / max(rate, _MEGABYTE) for moving, rate in self._now.values()]
        return max(waits, default=0.0)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that send or receive."""
        return tuple(sorted(self._now))


def _text(moving: Moving, rate: float) -> str:
    verb = "receives" if moving.to_rank else "sends"
    speed = f", {rate / 1e6:,.0f} MB/s" if rate else ""
    return f"{verb} {moving.done / 1e9:.1f} of {moving.total / 1e9:.1f} GB{speed}"
