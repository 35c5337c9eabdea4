"""What is known of every rank: a pure reducer of events. No clock, no thread, no I/O; times are given in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from nbsync.errors import describe_ranks
from nbsync.protocol.messages import BarrierEvent


class Phase(Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DEAD = "dead"


@dataclass(frozen=True)
class RankState:
    """One rank. `since` is when it entered its phase; `barrier` is set while it waits in one."""

    rank: int
    pid: int
    phase: Phase
    since: float
    note: str = ""
    barrier: BarrierEvent | None = None


@dataclass(frozen=True)
class Snapshot:
    """The whole world at one moment."""

    ranks: tuple[RankState, ...]
    backend: str
    now: float

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
            arrived = [s.rank for s in self.ranks if s.barrier and s.barrier.name == state.barrier.name]
            missing = [s.rank for s in self.ranks if s.rank not in arrived]
            text += f", in barrier {state.barrier.name!r} at {state.barrier.call_site}"
            text += f", waiting for {describe_ranks(missing)}" if missing else ""
        return text


@dataclass
class WorldState:
    """Reduces events to the state of a world."""

    backend: str = ""
    _ranks: dict[int, RankState] = field(default_factory=dict)

    def started(self, rank: int, pid: int, now: float) -> None:
        self._ranks[rank] = RankState(rank, pid, Phase.STARTING, now)

    def idle(self, rank: int, now: float) -> None:
        self._change(rank, phase=Phase.IDLE, since=now, note="", barrier=None)

    def busy(self, rank: int, note: str, now: float) -> None:
        self._change(rank, phase=Phase.BUSY, since=now, note=note, barrier=None)

    def exited(self, rank: int, how: str, now: float) -> None:
        self._change(rank, phase=Phase.DEAD, since=now, note=how, barrier=None)

    def barrier(self, rank: int, event: BarrierEvent) -> None:
        self._change(rank, barrier=event if event.entered else None)

    def snapshot(self, now: float) -> Snapshot:
        return Snapshot(tuple(self._ranks[rank] for rank in sorted(self._ranks)), self.backend, now)

    def phase(self, rank: int) -> Phase:
        return self._ranks[rank].phase

    def note(self, rank: int) -> str:
        return self._ranks[rank].note

    def in_phase(self, phase: Phase) -> tuple[int, ...]:
        return tuple(rank for rank, state in sorted(self._ranks.items()) if state.phase is phase)

    def _change(self, rank: int, **changes: object) -> None:
        state = self._ranks.get(rank)
        if state is not None and state.phase is not Phase.DEAD:  # only `started` brings a rank back
            self._ranks[rank] = replace(self._ranks[rank], **changes)  # type: ignore[arg-type]
