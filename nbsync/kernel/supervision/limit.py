"""When a run has had its time: at its limit, or a moment after a failure that ends it on all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence

GRACE_AFTER_FAILURE = 1.0  # seconds that the other ranks of a launch have to report errors of their own
TELL_LIMIT = 10.0  # seconds in which a rank that has raised an error tells which; many ranks may share few processors
EVERY = 1.0  # seconds between two interrupts of what still runs
TRIES = 3  # how often it is interrupted before it is given up


class Limit:
    """Tells which ranks are late.

    Args:
        timeout: seconds that the run may take, or None.

    Attributes:
        deadline: when to ask next, or None.
        has_failed: whether it is a failure that ends the run.
    """

    def __init__(self, timeout: float | None, now: float) -> None:
        self.deadline = None if timeout is None else now + timeout
        self.has_failed = False
        self._tell_by = 0.0
        self._tries: Counter[int] = Counter()  # of each rank

    def is_exhausted(self, pending: Sequence[int]) -> bool:
        """Whether those that have not answered were all interrupted often enough."""
        return all(self._tries[rank] > TRIES for rank in pending)

    def fail(self, now: float) -> None:
        """A rank has failed, and nobody will use what the others have."""
        if not self.has_failed:
            self.has_failed = True
            self.deadline, self._tell_by = now + GRACE_AFTER_FAILURE, now + TELL_LIMIT

    def late(self, pending: Sequence[int], raised: Container[int], now: float) -> tuple[int, ...]:
        """The ranks to be interrupted now.

        Args:
            pending: those that have not answered.
            raised: those of which it is known that their own code has ended with an error.
        """
        if self.deadline is None or now < self.deadline:
            return ()
        self.deadline = now + EVERY
        tells = raised if self.has_failed and now < self._tell_by else ()
        late = tuple(rank for rank in pending if rank not in tells)
        self._tries.update(late)
        return late
