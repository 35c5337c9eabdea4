"""The same bar on several ranks, seen as one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nbsync.kernel.state import Phase, RankState, Snapshot
from nbsync.protocol.reports import Bar


@dataclass(frozen=True)
class FoldedBar:
    """One bar of each of several ranks.

    Attributes:
        name, total: those they have in common.
        bars: by rank.
    """

    name: str
    total: float | None
    bars: Mapping[int, Bar]

    @cached_property
    def steps(self) -> list[float]:
        """How far they are, ascending: the first is the least, the middle one the median."""
        return sorted(bar.n for bar in self.bars.values())

    @cached_property
    def slowest(self) -> int:
        """The rank that is least far; of those that are equally far, the one that took longest."""
        return min(self.bars, key=lambda rank: (self.bars[rank].n, -self.bars[rank].elapsed))

    @property
    def median(self) -> float:
        """Of the steps."""
        return self.steps[len(self.steps) // 2]

    @property
    def closed(self) -> bool:
        """Whether all of them have ended."""
        return all(bar.closed for bar in self.bars.values())


def fold_bars(snapshot: Snapshot) -> list[FoldedBar]:
    """The bars that several ranks have: of each rank the newest with that name and total, in the order of the first."""
    found: dict[tuple[str, float | None], dict[int, Bar]] = {}
    for state in snapshot.ranks:
        for bar in state.bars:
            if bar.text is None:
                found.setdefault((bar.name, bar.total), {})[state.rank] = bar
    return [FoldedBar(name, total, bars) for (name, total), bars in found.items() if len(bars) > 1]


def elapsed(bar: Bar, state: RankState, now: float) -> float:
    """Seconds that a bar has run: its own count, which stands still while its rank takes long for a step, goes on."""
    works = state.phase is Phase.BUSY and state.ending is None
    return bar.elapsed + (max(0.0, now - bar.time) if works and not bar.closed else 0.0)
