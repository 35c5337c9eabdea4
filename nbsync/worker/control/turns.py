"""One rank goes first, the others follow: the order behind `main_process_first`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from nbsync.errors import MainProcessFailed, UsageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How the first rank's block ended; `error` says type and message, `nested` are the turns inside it."""

    rank: int
    error: str | None = None
    nested: tuple[Outcome, ...] = ()


Exchange = Callable[["Outcome | None"], Outcome]
"""Sends the first rank's outcome to the others; a rank that passes None waits for it."""


@dataclass
class _Turn:
    members: Sequence[int]
    outcome: Outcome | None = None  # what the first rank told, on the ranks that follow
    nested: list[Outcome] = field(default_factory=list)  # on the first rank: turns inside this one, so far
    followed: int = 0  # on the ranks that follow: how many of outcome.nested they have come to

    def next_nested(self) -> Outcome:
        """The outcome of the nested turn that this rank enters now."""
        told = self.outcome.nested if self.outcome is not None else ()
        self.followed += 1
        return told[self.followed - 1] if self.followed <= len(told) else Outcome(self.members[0])


# The turns this process is in, outermost first; of the process, not of a World: two Worlds share one group.
_turns: list[_Turn] = []


@contextmanager
def first_goes_first(rank: int, members: Sequence[int], exchange: Exchange) -> Iterator[None]:
    """`members[0]` runs the block, then the others do; they need not come back afterwards.

    A turn inside another one with the same first rank needs no waiting: who follows comes in only after the
    first rank has finished the whole outer block, and was told then how the inner ones ended.

    Raises:
        MainProcessFailed: on the others, when the first rank raised in its block.
        UsageError: the turn is inside one that fewer ranks take part in.
    """
    around = _turns[-1] if _turns else None
    if around is not None and len(around.members) < len(members):
        raise UsageError(
            "main_process_first inside local_main_process_first would deadlock over several nodes: "
            "put main_process_first around it"
        )
    outer = around if around is not None and around.members[0] == members[0] else None
    turn = _Turn(members)
    if rank != members[0]:
        turn.outcome = exchange(None) if outer is None else outer.next_nested()
        _raise_failure(turn.outcome)
    depth = len(_turns)
    error = None
    try:
        _turns.append(turn)
        yield
    except BaseException as raised:  # whatever ends the block, nobody is left waiting
        error = _describe(raised)
        raise
    finally:
        del _turns[depth:]
        if rank == members[0]:
            outcome = Outcome(rank, error, tuple(turn.nested))
            if outer is None:
                _release(outcome, exchange)
            else:
                outer.nested.append(outcome)


def _release(outcome: Outcome, exchange: Exchange) -> None:
    try:
        exchange(outcome)
    except Exception:
        if outcome.error is None:
            raise
        # The block's own error comes first: that the others are gone too must not hide it.
        _log.debug("rank %d could not tell the others that it failed", outcome.rank, exc_info=True)


def _raise_failure(outcome: Outcome) -> None:
    if outcome.error is not None:
        raise MainProcessFailed(
            f"rank {outcome.rank} raised {outcome.error}; the other ranks waited for it to go first"
        )


def _describe(error: BaseException) -> str:
    message = str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
