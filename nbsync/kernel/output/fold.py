"""Folds equal output: what several ranks say alike is shown once, with the ranks that said it.

Pure: entries and times in, groups out; the clock is injected, so the hold can be tested without waiting.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple, TypeAlias


class Entry(NamedTuple):
    """A piece of output; entries with equal keys are the same output, whatever their payloads.

    Attributes:
        continues: it belongs to the one before it, as an indented line does: they stay together where ranks differ.
    """

    key: Hashable
    payload: object
    continues: bool = False


Group: TypeAlias = tuple[tuple[int, ...], Entry]

#: When an entry came: its time, then a running number, so that equal times keep the order of arrival.
_Stamp: TypeAlias = tuple[float, int]


@dataclass(eq=False, slots=True)
class _Head:
    """An output that stands first in the queues of `ranks`; `stamp` is the oldest of their stamps."""

    key: Hashable
    stamp: _Stamp
    ranks: set[int] = field(default_factory=set)


_by_age = attrgetter("stamp")


@dataclass(slots=True)
class _Queue:
    """What one rank said and was not shown yet, with how often each key is in it."""

    entries: deque[tuple[_Stamp, Entry]] = field(default_factory=deque)
    counts: dict[Hashable, int] = field(default_factory=dict)


class Folder:
    """Groups equal entries of several ranks, keeping each rank's own order.

    The head of a queue is shown, as one group of all ranks that have it at their head, when no rank can join
    it any more: every other one has finished or has gone on with other output. It is shown after `hold`
    seconds in any case, so a slow rank delays nobody for longer.
    """

    def __init__(self, ranks: Iterable[int], hold: float = 0.1) -> None:
        self._hold = hold
        self._queues = {rank: _Queue() for rank in sorted(ranks)}
        self._open = set(self._queues)
        # Open ranks with nothing queued: they may still say anything, so meanwhile only time releases a head.
        self._silent = set(self._queues)
        self._heads: dict[Hashable, _Head] = {}
        self._holders: dict[Hashable, int] = {}  # in how many ranks' queues a key is, at whatever place
        self._arrivals = 0
        self._turns: Counter[int] = Counter()  # how much of each rank the present call of `ready` has taken out
        self._shown: tuple[int, ...] = ()  # the ranks of the last group

    def add(self, rank: int, item: Entry, now: float) -> None:
        """Take the next entry of `rank`."""
        queue = self._queues[rank]
        self._arrivals += 1
        queue.entries.append(((now, self._arrivals), item))
        count = queue.counts.get(item.key, 0)
        queue.counts[item.key] = count + 1
        if not count:
            self._holders[item.key] = self._holders.get(item.key, 0) + 1
        if len(queue.entries) == 1:
            self._silent.discard(rank)
            self._register_head(rank)

    def close(self, rank: int) -> None:
        """`rank` finished its cell: nothing more comes from it, so nobody waits for it."""
        self._open.discard(rank)
        self._silent.discard(rank)

    def ready(self, now: float) -> list[Group]:
        """Take out the groups that are to be shown by `now`, in order."""
        groups: list[Group] = []
        self._turns.clear()
        while (head := self._choose(now)) is not None:
            groups.append(self._emit(head))
        return groups

    def flush(self) -> list[Group]:
        """Take out everything left, folding what matches."""
        return self.ready(math.inf)

    def next_deadline(self) -> float | None:
        """When `ready` has to be called again although nothing new came; None if nothing is held."""
        oldest = self._oldest(self._heads.values())
        return None if oldest is None else oldest.stamp[0] + self._hold

    def _choose(self, now: float) -> _Head | None:
        """Pick the next head to show, the oldest first."""
        if not self._silent:
            settled = (head for head in self._heads.values() if self._is_settled(head))
            first = min(settled, key=self._turn, default=None)
            if first is not None:
                return first
        oldest = self._oldest(self._heads.values())
        if oldest is None or now < oldest.stamp[0] + self._hold:
            return None
        return self._before(oldest)

    def _turn(self, head: _Head) -> tuple[bool, int, int]:
        """Ranks take turns: who has gone on to its next output may still say the same there as the others will."""
        first = min(head.ranks)
        goes_on = self._queues[first].entries[0][1].continues and tuple(sorted(head.ranks)) == self._shown
        return not goes_on, max(self._turns[rank] for rank in head.ranks), first

    def _is_settled(self, head: _Head) -> bool:
        """Whether every rank that has this key queued has it at its head."""
        return self._holders[head.key] == len(head.ranks)

    def _before(self, head: _Head) -> _Head:
        """Pick what to show so that the ranks that have an overdue `head` further down can join it."""
        path: list[_Head] = []
        while head not in path:
            if self._is_settled(head):
                return head
            path.append(head)
            head = self._heads[self._first_key(self._late_rank(head))]
        # The heads from here on wait for each other in a circle: only showing one apart opens it.
        return min(path[path.index(head) :], key=_by_age)

    def _late_rank(self, head: _Head) -> int:
        return next(rank for rank, queue in self._queues.items() if head.key in queue.counts and rank not in head.ranks)

    def _emit(self, head: _Head) -> Group:
        """Take `head` out of its ranks' queues; their next entries become heads."""
        del self._heads[head.key]
        self._shown = ranks = tuple(sorted(head.ranks))
        entry = self._queues[ranks[0]].entries[0][1]
        for rank in ranks:
            self._turns[rank] += 1
            self._drop_first(rank, head.key)
        return ranks, entry

    def _drop_first(self, rank: int, key: Hashable) -> None:
        queue = self._queues[rank]
        queue.entries.popleft()
        queue.counts[key] -= 1
        if not queue.counts[key]:
            del queue.counts[key]
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
        if queue.entries:
            self._register_head(rank)
        elif rank in self._open:
            self._silent.add(rank)

    def _register_head(self, rank: int) -> None:
        stamp, entry = self._queues[rank].entries[0]
        head = self._heads.setdefault(entry.key, _Head(entry.key, stamp))
        head.stamp = min(head.stamp, stamp)
        head.ranks.add(rank)

    def _first_key(self, rank: int) -> Hashable:
        return self._queues[rank].entries[0][1].key

    @staticmethod
    def _oldest(heads: Iterable[_Head]) -> _Head | None:
        return min(heads, key=_by_age, default=None)
