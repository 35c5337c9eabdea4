"""Simulated ranks: what many of them would tell the kernel, without processes.

    crowd = Crowd(512, seed=1)
    state = WorldState("gloo", crowd.devices)
    crowd.enter(state, now=0.0)
    for tick in range(1, 100):
        for rank, message in crowd.messages(tick / 10):
            crowd.tell(state, rank, message, tick / 10)
    snapshot = state.snapshot(10.0, "Cell In[1]", range(512), began=0.0)

Each rank trains: it has a bar of epochs, and one of batches that goes with its epoch. At the end of an epoch it waits
in a barrier for the others. How fast it is, and how much memory it holds, is drawn from the seed; the same seed and the
same times give the same messages. They have the form and, asked for ten times a second, the rate of those of
real workers: up to 51 ranks tell of their bars each time, more of them share 512 messages a second; and each rank tells
its place every 0.4 s.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbsync.protocol.reports import Bar, BarrierEvent, Memory, Progress, Where

if TYPE_CHECKING:
    from nbsync.kernel.state import WorldState

STEPS = 500  # of an epoch
EPOCHS = 100
PLACE_EVERY = 4  # calls of `messages`
_SITE = "Cell In[1], line 9"


@dataclass
class _Rank:
    """One of them: `speed` in steps a second, `arrived` at the end of its epoch at that time."""

    speed: float
    resident: int
    bar: int = 1
    arrived: float | None = None
    events: list[BarrierEvent] = field(default_factory=list)


class Crowd:
    """Simulated ranks.

    Args:
        size: how many.
        seed: of everything that is drawn.
        spread: standard deviation of the ranks' speeds, as a share of their mean.

    Raises:
        ValueError: there would be no rank.
    """

    def __init__(self, size: int, seed: int = 0, spread: float = 0.05) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        draw = random.Random(seed)
        self._ranks = [
            _Rank(100 * max(0.1, draw.gauss(1, spread)), int(draw.uniform(0.4e9, 0.6e9))) for _ in range(size)
        ]
        self._epoch, self._began, self._calls = 0, 0.0, 0
        self._every = max(1, round(10 * size / 512))

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self._ranks)

    @property
    def devices(self) -> list[str]:
        """The name of each rank's device."""
        return [f"cuda:{rank % 8}" for rank in range(self.size)]

    def enter(self, state: WorldState, now: float) -> None:
        """The ranks are started, and begin to work."""
        self._began = now
        for rank in range(self.size):
            state.started(rank, 1000 + rank, now)
            state.busy(rank, "runs a cell", now)

    def messages(self, now: float) -> list[tuple[int, Progress | Where]]:
        """What the ranks send at this time, in an order in which it may arrive. Times must not go back."""
        self._calls += 1
        for one in self._ranks:
            end = self._began + STEPS / one.speed
            if one.arrived is None and now >= end:
                one.arrived = end
                one.events.append(BarrierEvent("epoch", _SITE, True, end))
        ends = [one.arrived for one in self._ranks if one.arrived is not None]
        if len(ends) == self.size:
            self._begin_epoch(max(ends))
        found: list[tuple[int, Progress | Where]] = []
        for rank, one in enumerate(self._ranks):
            if (self._calls + rank) % self._every == 0:
                found.append((rank, self._progress(one, now)))
            if (self._calls + rank) % PLACE_EVERY == 0:
                found.append((rank, self._where(one, now)))
        return found

    def tell(self, state: WorldState, rank: int, message: Progress | Where, now: float) -> None:
        """Let `state` take in a message, as the kernel does."""
        if isinstance(message, Progress):
            state.progress(rank, message)
        else:
            state.seen(rank, message, now)

    def _begin_epoch(self, now: float) -> None:
        self._epoch, self._began = self._epoch + 1, now
        for one in self._ranks:
            one.arrived, one.bar = None, one.bar + 1
            one.events.append(BarrierEvent("epoch", _SITE, False, now, passed=True))

    def _progress(self, one: _Rank, now: float) -> Progress:
        events, one.events = tuple(one.events), []
        since = max(0.0, now - self._began)
        done = min(float(STEPS), one.speed * since)
        epochs = Bar(0, "epoch", self._epoch, EPOCHS, now, 0.2, now)
        batches = Bar(one.bar, "train", int(done), STEPS, since, one.speed, now, postfix=f"loss={1 / (1 + done):.4f}")
        gone = tuple(range(max(1, one.bar - 2), one.bar))
        return Progress((epochs, batches), gone, 2, events)

    def _where(self, one: _Rank, now: float) -> Where:
        waits = one.arrived is not None
        line = _SITE if waits else "Cell In[1], line 7"
        return Where(1, 1, line, "wait_for_everyone" if waits else None, memory=Memory(one.resident, 10**9, 2 * 10**9))
