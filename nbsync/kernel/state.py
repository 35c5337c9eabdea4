"""What is known of every rank: a pure reducer of events. No clock, no thread, no I/O; times are given in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from nbsync.kernel.view.bounds import bounded
from nbsync.kernel.view.gathering import Barriers, Gathering, Passed, collectives
from nbsync.protocol.messages import Done
from nbsync.protocol.reports import Bar, BarrierEvent, Memory, Progress, Where
from nbsync.protocol.words import describe_ranks

OPEN_BARS = 16  # of one rank that are kept, beside its first
CLOSED_BARS = 8


class Phase(Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DEAD = "dead"


class Ending(Enum):
    """How a rank has answered."""

    DONE = "done"
    FAILED = "failed"
    RELEASED = "released"  # it waited for a rank that failed
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Place:
    """Where a rank was seen, and since when.

    Attributes:
        line: of the user's code.
        operation: the collective that it is in, with its number where known; "" when it is in none.
        group: the ranks that take part in that.
        since: when it was first seen there; `in_operation`: when it was first seen in that operation.
    """

    line: str
    operation: str
    group: tuple[int, ...]
    since: float
    in_operation: float


@dataclass(frozen=True)
class RankState:
    """One rank.

    Attributes:
        since: when it entered its phase.
        note: what it does, or how its process ended.
        barrier: set while it waits in one.
        bars: its progress bars of this run, in the order they were made; count: how many there are, shown or not.
        slots: the most bars that it had at one time: a view keeps the room.
        ending: how it answered in this run, and when; None while it works. `error`: what it raised, in a line.
    """

    rank: int
    pid: int
    phase: Phase
    since: float
    note: str = ""
    barrier: BarrierEvent | None = None
    bars: tuple[Bar, ...] = ()
    count: int = 0
    slots: int = 0
    place: Place | None = None
    memory: Memory | None = None
    ending: Ending | None = None
    error: str = ""
    answered: float = 0.0
    device: str = ""

    @property
    def hidden(self) -> int:
        """How many bars there are beside those in `bars`."""
        return max(0, self.count - len(self.bars))


@dataclass(frozen=True)
class Snapshot:
    """The whole world at one moment.

    Attributes:
        waiting: the barriers, and the collectives that block for long, that somebody waits in.
        passed: the last barrier that all ranks have passed in this run.
        title: of the run, e.g. "Cell In[3]"; in_run: the ranks that take part in it; began: its start.
        shared: the most moving bars that ranks had in common at one time: a view keeps the room.
    """

    ranks: tuple[RankState, ...]
    backend: str
    now: float
    waiting: tuple[Gathering, ...] = ()
    passed: Passed | None = None
    title: str = ""
    in_run: frozenset[int] = frozenset()
    began: float = 0.0
    shared: int = 0

    def describe(self) -> str:
        """The snapshot as plain text, equal ranks in one line."""
        head = f"{len(self.ranks)} rank{'s' * (len(self.ranks) != 1)}, {self.backend}"
        lines: dict[str, list[int]] = {}
        for state in self.ranks:
            lines.setdefault(self._line(state), []).append(state.rank)
        pids = ", ".join(str(state.pid) for state in self.ranks)
        return "\n".join([head, *(f"  {describe_ranks(r)}: {text}" for text, r in lines.items()), f"  pids {pids}"])

    def _line(self, state: RankState) -> str:
        text = state.phase.value + (f", {state.note}" if state.note else "")
        if state.phase is Phase.BUSY:
            text += f" for {self.now - state.since:.0f} s"
        if state.barrier is not None:
            missing = next((each.missing for each in self.waiting if state.rank in each.arrived), ())
            text += f", in barrier {state.barrier.name!r} at {state.barrier.call_site}"
            text += f", waiting for {describe_ranks(missing)}" if missing else ""
        return text


@dataclass
class WorldState:
    """Reduces events to the state of a world."""

    backend: str = ""
    devices: Sequence[str] = ()
    _ranks: dict[int, RankState] = field(default_factory=dict)
    _barriers: Barriers = field(default_factory=Barriers)
    _shared: int = 0

    # ---- phases ----

    def started(self, rank: int, pid: int, now: float) -> None:
        device = self.devices[rank] if rank < len(self.devices) else ""
        self._ranks[rank] = RankState(rank, pid, Phase.STARTING, now, device=device)
        self._barriers.forget([rank])

    def idle(self, rank: int, now: float) -> None:
        self._change(rank, phase=Phase.IDLE, since=now, note="", barrier=None)
        self._barriers.forget([rank])

    def busy(self, rank: int, note: str, now: float) -> None:
        fresh: dict[str, object] = {"bars": (), "count": 0, "slots": 0, "place": None, "ending": None, "error": ""}
        self._change(rank, phase=Phase.BUSY, since=now, note=note, barrier=None, **fresh)
        self._barriers.forget([rank])
        self._barriers.passed = None
        self._shared = 0

    def exited(self, rank: int, how: str, now: float) -> None:
        self._change(rank, phase=Phase.DEAD, since=now, note=how, barrier=None)
        self._barriers.forget([rank])

    # ---- what a busy rank tells ----

    def progress(self, rank: int, progress: Progress) -> None:
        """A rank's bars have moved, or it has entered or left barriers."""
        if rank not in self._ranks:
            return
        for event in progress.barriers:
            self._barriers.take(rank, event, len(self._ranks))
            self._change(rank, barrier=event if event.entered else None)
        state = self._ranks[rank]
        bars = {bar.number: bar for bar in (*state.bars, *map(bounded, progress.bars))}
        kept = _kept([bar for number, bar in sorted(bars.items()) if number not in progress.gone])
        self._change(rank, bars=kept, count=progress.count, slots=max(state.slots, len(kept)))

    def seen(self, rank: int, where: Where, now: float) -> None:
        """A rank has told where it is."""
        self._barriers.settle(now)
        state = self._ranks.get(rank)
        if state is None:
            return
        number = f" #{where.number}" if where.number is not None else ""
        operation = f"{where.waiting_in}{number}" if where.waiting_in else ""
        before = state.place
        same_line = before is not None and before.line == where.line
        same_operation = before is not None and before.operation == operation and before.group == where.group
        place = Place(
            where.line,
            operation,
            where.group,
            before.since if before and same_line else now,
            before.in_operation if before and same_operation else now,
        )
        self._change(rank, place=place, memory=where.memory or state.memory)

    def answered(self, rank: int, done: Done, now: float) -> None:
        """A rank has finished what it was asked for."""
        failure = done.failure
        if failure is None:
            self._change(rank, ending=Ending.DONE, answered=now)
            return
        at = failure.place
        if failure.interrupted:
            ending, error = Ending.INTERRUPTED, at
        elif failure.is_consequence:  # its own words are of a closed connection
            ending, error = Ending.RELEASED, f"waited in {failure.waiting_in or 'a collective'} {at}"
        else:
            ending, error = Ending.FAILED, f"{failure.in_one_line} {at}"
        self._change(rank, ending=ending, answered=now, error=error.strip())

    # ---- what is known ----

    def snapshot(self, now: float, title: str = "", in_run: Sequence[int] = (), began: float = 0.0) -> Snapshot:
        """All ranks as they are now; the bars only of those that take part in the run, when there is one."""
        chosen = frozenset(in_run)
        ranks = tuple(self._ranks[rank] for rank in sorted(self._ranks))
        if in_run:
            ranks = tuple(state if state.rank in chosen else _without_bars(state) for state in ranks)
            self._shared = max(self._shared, _count_shared(ranks))
        everyone = tuple(state.rank for state in ranks)
        barriers = self._barriers.waiting(everyone)
        inside = {rank for barrier in barriers for rank in barrier.arrived}
        waits = {
            state.rank: (
                state.place.operation,
                state.place.line,
                state.place.group or everyone,
                state.place.in_operation,
            )
            for state in ranks
            if state.place and state.place.operation and _works(state) and state.rank not in inside
        }
        waiting = (*barriers, *collectives(waits, now))
        return Snapshot(ranks, self.backend, now, waiting, self._barriers.passed, title, chosen, began, self._shared)

    def phase(self, rank: int) -> Phase:
        return self._ranks[rank].phase

    def note(self, rank: int) -> str:
        return self._ranks[rank].note

    def end(self, rank: int) -> str:
        """How a rank that is dead has ended: `is not running (ended by SIGKILL)`."""
        return f"is not running ({self.note(rank).removeprefix('was ')})"

    def in_phase(self, phase: Phase) -> tuple[int, ...]:
        return tuple(rank for rank, state in sorted(self._ranks.items()) if state.phase is phase)

    def _change(self, rank: int, **changes: object) -> None:
        state = self._ranks.get(rank)
        if state is not None and state.phase is not Phase.DEAD:  # only `started` brings a rank back
            self._ranks[rank] = replace(self._ranks[rank], **changes)  # type: ignore[arg-type]


def _works(state: RankState) -> bool:
    return state.phase is Phase.BUSY and state.ending is None


def _without_bars(state: RankState) -> RankState:
    return replace(state, bars=(), count=0, slots=0) if state.bars or state.slots else state


def _count_shared(ranks: Sequence[RankState]) -> int:
    """How many bars, by name and total, move on some rank and are there on several."""
    ranks_with: Counter[tuple[str, float | None]] = Counter()
    moving: set[tuple[str, float | None]] = set()
    for state in ranks:
        ranks_with.update({(bar.name, bar.total) for bar in state.bars if bar.text is None})
        moving.update((bar.name, bar.total) for bar in state.bars if not bar.closed)
    return sum(count > 1 and key in moving for key, count in ranks_with.items())


def _kept(bars: list[Bar]) -> tuple[Bar, ...]:
    """The first, in which the others may be nested; the open ones, and of the closed ones the newest of each name."""
    newest = {bar.name or bar.number: bar.number for bar in bars}
    told = [bar for bar in bars if not bar.closed or newest[bar.name or bar.number] == bar.number]
    opened, closed = ([bar for bar in told[1:] if bar.closed is over] for over in (False, True))
    return tuple(told[:1] + sorted(opened[-OPEN_BARS:] + closed[-CLOSED_BARS:], key=lambda bar: bar.number))
