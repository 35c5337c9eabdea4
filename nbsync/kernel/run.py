"""What is known of one request to some ranks: what has come and was not handled yet, and how it went so far."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nbsync.kernel.hub import Exited
from nbsync.kernel.supervision.evidence import End, oom_kills
from nbsync.protocol.messages import Done

Inbox = queue.SimpleQueue[tuple[int, str, Any]]

_WAKE_UP = (-1, "wake-up", None)


@dataclass(eq=False)
class Run:
    """The state of one request.

    Attributes:
        done: the answer of each rank that gave one.
        raised: the ranks whose code has ended with an error of its own; which, they tell in their answer.
        ends: how the processes ended that did not.
        oom_kills: how many processes had been ended for want of memory when the run began.
        stuck: why no rank could go on, when they were released for that; stuck_at: when.
        interrupts: how often the user interrupted it.
    """

    number: int
    ranks: tuple[int, ...]
    inbox: Inbox = field(default_factory=queue.SimpleQueue)
    done: dict[int, Done] = field(default_factory=dict)
    raised: set[int] = field(default_factory=set)
    ends: dict[int, End] = field(default_factory=dict)
    oom_kills: int | None = field(default_factory=oom_kills)
    stuck: str | None = None
    stuck_at: float = 0.0
    interrupts: int = 0
    timed_out: tuple[int, ...] = ()
    abandoned: bool = False
    _is_asked: bool = False

    def interrupt(self) -> None:
        """Ask for the run's interruption, from any thread or a signal handler."""
        self._is_asked = True  # no item: it would have to wait for all that has come before it
        self.inbox.put(_WAKE_UP)

    def takes_interrupt(self) -> bool:
        """Whether its interruption was asked for since the last look."""
        was_asked = self._is_asked
        if was_asked:  # else one that comes in this moment would be forgotten
            self._is_asked = False
        return was_asked

    def drain(self) -> list[tuple[int, str, Any]]:
        """What nobody has taken in yet."""
        return [self.inbox.get() for _ in range(self.inbox.qsize())]

    def note_exit(self, rank: int, exited: Exited, line: str = "", last_words: Sequence[str] = ()) -> None:
        """The process of `rank` has ended; `line` is where it was then, `last_words` the end of its stderr."""
        self.ends[rank] = End(exited.status, exited.time, line, tuple(last_words))

    def forget_values(self) -> None:
        """Nobody will use what the ranks have sent; the traceback of an error would keep it."""
        self.done = {rank: done.without_objects() for rank, done in self.done.items()}

    @property
    def pending(self) -> tuple[int, ...]:
        return tuple(rank for rank in self.ranks if rank not in self.done and rank not in self.ends)

    @property
    def has_outlived_interrupts(self) -> bool:
        """The code of a rank has caught them, and every rank has come to a value, as a call does."""
        answers = [self.done[rank] for rank in self.ranks if rank in self.done]
        if len(answers) < len(self.ranks) or any(done.failure or done.value is None for done in answers):
            return False
        return any(done.caught_interrupt for done in answers)

    @property
    def ended_well(self) -> bool:
        """Nobody raised, ended, was interrupted or released."""
        failed = self.ends or any(done.failure for done in self.done.values())
        return not (failed or self.interrupts or self.timed_out or self.stuck)

    @property
    def left_groups_broken(self) -> bool:
        """Whether a rank was cut, or the ranks are out of step after a failure, and so must heal together."""
        if any(done.group_broken for done in self.done.values()):
            return True
        seen: dict[str, int] = {}
        counts = [count for done in self.done.values() for count in done.sequence]
        return not self.ended_well and any(seen.setdefault(name, count) != count for name, count in counts)
