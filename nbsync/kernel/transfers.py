"""Large messages on their way: how far they are, and how fast. Times are given in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Moving:
    """A large message to or from a rank, in bytes."""

    done: int
    total: int
    to_rank: bool

    def __str__(self) -> str:
        """`sends 0.9 of 2.1 GB`."""
        return f"{'receives' if self.to_rank else 'sends'} {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB"


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

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that send or receive."""
        return tuple(sorted(self._now))


def _text(moving: Moving, rate: float) -> str:
    return f"{moving}, {rate / 1e6:,.0f} MB/s" if rate else str(moving)
