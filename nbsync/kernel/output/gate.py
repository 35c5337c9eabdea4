"""How much of a run's text goes to the front end. What does not is in each rank's log, and its end is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nbsync.kernel.output.flood import RESUME, Flood, Hidden, Meter
from nbsync.kernel.output.logs import Log, Logs
from nbsync.kernel.output.sink import Stream

_LIVE_AFTER = 0.3  # seconds of a flood until it is told of while it goes on

Source = tuple[int, Stream]


class Gate:
    """The floods of one run, with the logs of its ranks.

    It stands at two places: before lines are folded, for each stream of a rank, since folding takes time; and behind
    that, for all ranks together, since one front end shows them all.

    Args:
        logs: where the session's logs go; None where the front end takes everything.
        warn: tells the user something, in one line.
    """

    def __init__(self, logs: Logs | None, warn: Callable[[str], None]) -> None:
        self._files, self._warn = logs, warn
        self._floods: dict[Source, Flood] = {}
        self._logs: dict[int, Log] = {}
        self._since: dict[Source, float] = {}  # those that hide something, and since when
        self._meters: dict[Stream, Meter] = {"stdout": Meter(), "stderr": Meter()}

    @property
    def is_hiding(self) -> bool:
        """Whether some of the output is hidden now."""
        return bool(self._since)

    def take(self, rank: int, stream: Stream, data: bytes, now: float) -> bytes:
        """What of `data` goes on to be folded."""
        if self._files is None:
            return data
        log = self._logs.get(rank)
        if log is None:
            log = self._logs[rank] = Log(self._files, rank, self._warn)
        log.write(data)
        flood = self._floods.setdefault((rank, stream), Flood())
        shown = flood.take(data, now)
        if flood.is_hiding:
            self._begin((rank, stream), now)
        return shown

    def room(self, stream: Stream, now: float) -> float:
        """How many characters the front end takes now."""
        return float("inf") if self._files is None else self._meters[stream].room(now)

    def spend(self, stream: Stream, size: int) -> None:
        """So many characters went to the front end."""
        self._meters[stream].spend(size)

    def hide(self, rank: int, stream: Stream, line: str, now: float) -> None:
        """A line that was let in cannot be shown after all."""
        self._floods.setdefault((rank, stream), Flood()).hide(line.encode() + b"\n")
        self._begin((rank, stream), now)

    def is_over(self, now: float) -> bool:
        """Whether one of the floods is over."""
        return any(self._is_over(source, now) for source in self._since)

    def over(self, now: float) -> Iterator[tuple[Source, Hidden]]:
        """End the floods that are over, and tell what was hidden of each."""
        for source in sorted(self._since):
            if self._is_over(source, now):
                yield source, self._end(source)

    def finish(self, rank: int) -> Iterator[tuple[Source, Hidden]]:
        """Nothing more comes from `rank`: its floods are over."""
        for source in sorted(self._since):
            if source[0] == rank:
                yield source, self._end(source)

    def live(self, now: float) -> Iterator[tuple[int, str]]:
        """What is to be said of the floods that go on: rank and text."""
        for source, since in sorted(self._since.items()):
            if now - since >= _LIVE_AFTER:
                yield source[0], f"{self._floods[source].so_far()} so far; {self.place((source[0],))}"

    def place(self, ranks: tuple[int, ...]) -> str:
        """Where the logs of `ranks` are."""
        log, others = self._logs[ranks[0]], len(ranks) - 1
        if log.path is None:
            return "there is no log"
        if not log.is_whole:
            return f"the log {log.path} ends early"
        return f"the full logs are {log.path} and {others} beside it" if others else f"the full log is {log.path}"

    def close(self) -> None:
        """The run is over: let go of the files. Idempotent."""
        for log in self._logs.values():
            log.close()

    def _is_over(self, source: Source, now: float) -> bool:
        return self._floods[source].is_over(now) and self._meters[source[1]].room(now) >= RESUME

    def _begin(self, source: Source, now: float) -> None:
        if source not in self._since:
            self._since[source] = now
            self._logs[source[0]].keep()

    def _end(self, source: Source) -> Hidden:
        del self._since[source]
        return self._floods[source].end(whole_ring=not self._logs[source[0]].is_whole)
