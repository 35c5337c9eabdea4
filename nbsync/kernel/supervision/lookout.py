"""Looks at the ranks of a run from time to time, and finds out when none of them can go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nbsync.kernel.supervision.stuck import Verdict, diagnose
from nbsync.protocol.messages import Peek
from nbsync.protocol.reports import Where

LOOK_EVERY = 0.4  # seconds


class Lookout:
    """Asks the ranks where they are, and compares two answers.

    Args:
        size: the number of ranks in the world.
        ask: sends a message to every rank that still runs.
        absent: the ranks that do not run, and why; None when that is not known of one of them.
        now: the time at the start; times are given in.
    """

    def __init__(
        self,
        size: int,
        ask: Callable[[Peek], None],
        absent: Callable[[], Mapping[int, str] | None],
        now: float,
    ) -> None:
        self._size, self._ask, self._absent = size, ask, absent
        self._ticket = 0
        self._before: dict[int, Where] = {}
        self._answers: dict[int, Where] = {}
        self._suspicion: Verdict | None = None
        self.next_look = now + LOOK_EVERY

    def last_line(self, rank: int) -> str:
        """The line at which `rank` was seen last; "" when it was not seen yet."""
        seen = self._answers.get(rank) or self._before.get(rank)
        return seen.line if seen else ""

    def take(self, rank: int, where: Where) -> None:
        """An answer has come."""
        if where.ticket == self._ticket:
            self._answers[rank] = where

    def ask(self, now: float) -> int:
        """Ask all ranks where they are; returns the number that their answers will bear."""
        self._before, self._answers = self._answers, {}
        self._ticket += 1
        self.next_look = now + LOOK_EVERY
        self._ask(Peek(self._ticket))
        return self._ticket

    def look(self, now: float) -> Verdict | None:
        """Judge by the answers so far, and ask again. Returns why no rank can go on, if that was so twice in a row."""
        if now < self.next_look:
            return None
        absent = self._absent()
        verdict = None if absent is None else diagnose(self._before, self._answers, absent, self._size)
        self.ask(now)
        confirmed = verdict is not None and verdict == self._suspicion
        self._suspicion = verdict
        return verdict if confirmed else None
