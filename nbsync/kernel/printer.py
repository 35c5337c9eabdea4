"""One run's output: from the workers' bytes and displays to labelled, folded output in a sink."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

from nbsync.kernel.fold import Entry, Folder, Group
from nbsync.kernel.lines import LineSplitter
from nbsync.kernel.ranks import format_ranks
from nbsync.kernel.sink import Sink, Stream
from nbsync.protocol.fence import MEETING
from nbsync.protocol.messages import ClearOutput, Display

Label = Callable[[tuple[int, ...]], str]
LIVE_AFTER = 0.3  # seconds that a line must stay unfinished before it is shown live
LIVE_EVERY = 0.1


@lru_cache
def bracket_label(ranks: tuple[int, ...]) -> str:
    """`[0-3]`"""
    return f"[{format_ranks(ranks)}]"


class Printer:
    """Shows the output of the ranks of one run.

    Args:
        label: what stands before a line of the given ranks.
        fold: show equal output of several ranks once.
    """

    def __init__(self, ranks: Iterable[int], sink: Sink, *, label: Label = bracket_label, fold: bool = True) -> None:
        self._ranks = tuple(ranks)
        self._sink, self._label = sink, label
        self._folder = Folder(self._ranks, hold=0.1 if fold else 0.0)
        self._fold = fold
        self._splitters: dict[tuple[int, Stream], LineSplitter] = {}
        self._unfinished_since: dict[tuple[int, Stream], float] = {}
        self._live: tuple[float, list[str]] = (0.0, [])
        self._live_may_change = False
        self._stderr: dict[int, deque[str]] = {}

    def text(self, rank: int, stream: Stream, data: bytes, now: float) -> None:
        splitter = self._splitters.setdefault((rank, stream), LineSplitter())
        for line in splitter.feed(data):
            line, met, meeting = line.partition(MEETING)
            if line or not met:
                self._add(rank, (stream, line), None, now)
            if met:
                self._add(rank, ("meeting", meeting), None, now)
            elif stream == "stderr":
                self._stderr.setdefault(rank, deque(maxlen=60)).append(line)
        self._live_may_change = True
        if splitter.unfinished:
            self._unfinished_since.setdefault((rank, stream), now)
        else:
            self._unfinished_since.pop((rank, stream), None)

    def display(self, rank: int, display: Display, now: float) -> None:
        self._end_lines(rank, now)
        key: Any = ("display", repr(display.data))
        if display.display_id is not None:  # each rank's has an identity of its own, and later updates
            key = ("display", rank, object())
        self._add(rank, key, display, now)

    def clear(self, rank: int, clear: ClearOutput, now: float) -> None:
        """Only the first rank of the run clears, or the ranks would wipe out each other's output."""
        if rank == self._ranks[0]:
            self._add(rank, ("clear", object()), clear, now)

    def last_words(self, rank: int) -> list[str]:
        """The last lines that `rank` wrote to stderr, without the stack that Python writes when it crashes."""
        lines = list(self._stderr.get(rank, ()))
        crash = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
        return (lines if crash is None else lines[: crash + 1])[-4:]

    def finish(self, rank: int, now: float) -> None:
        """Nothing more comes from `rank`."""
        self._end_lines(rank, now)
        self._folder.close(rank)

    def show(self, now: float) -> None:
        """Show what is ready."""
        self._show(self._folder.ready(now))
        self._show_live(now)

    def close(self) -> None:
        """Show everything that is left."""
        for rank in self._ranks:
            self._end_lines(rank, 0.0)
        self._show(self._folder.flush())
        self._show_live(float("inf"))

    def next_deadline(self) -> float | None:
        """When `show` has something to do although nothing new came."""
        times = [held for held in (self._folder.next_deadline(),) if held is not None]
        if self._live_may_change and self._unfinished_since:
            times.append(max(min(self._unfinished_since.values()) + LIVE_AFTER, self._live[0] + LIVE_EVERY))
        return min(times, default=None)

    def _add(self, rank: int, key: Any, payload: object, now: float) -> None:
        has_common_key = self._fold or key[0] == "meeting"
        self._folder.add(rank, Entry(key if has_common_key else (rank, key), payload or key), now)

    def _end_lines(self, rank: int, now: float) -> None:
        streams: tuple[Stream, Stream] = ("stdout", "stderr")
        for stream in streams:
            self._unfinished_since.pop((rank, stream), None)
            splitter = self._splitters.get((rank, stream))
            for line in splitter.finish() if splitter else ():
                self._add(rank, (stream, line), None, now)

    def _show(self, groups: list[Group]) -> None:
        for stream, run in groupby(groups, key=_stream_of):
            if stream == "meeting":
                continue
            if stream is not None:
                self._sink.text(stream, "".join(self._line(ranks, e.payload) for ranks, e in run))
                continue
            for ranks, entry in run:
                self._show_rich(ranks, entry.payload)

    def _line(self, ranks: tuple[int, ...], payload: Any) -> str:
        text = payload[1]
        return f"{self._label(ranks)} {text}\n" if text else f"{self._label(ranks)}\n"

    def _show_rich(self, ranks: tuple[int, ...], payload: object) -> None:
        match payload:
            case Display(_, data, metadata, display_id, update):
                own = f"{display_id}-rank{ranks[0]}" if display_id is not None else None
                self._sink.display(self._label(ranks), data, metadata, own, update)
            case ClearOutput(_, wait):
                self._sink.clear(wait)

    def _show_live(self, now: float) -> None:
        shown_at, shown = self._live
        lines = [
            f"{self._label((rank,))} {self._splitters[rank, stream].unfinished}"
            for (rank, stream), since in sorted(self._unfinished_since.items())
            if now - since >= LIVE_AFTER
        ]
        if now - shown_at < LIVE_EVERY:
            return
        self._live_may_change = len(lines) < len(self._unfinished_since)  # some are too young to be shown
        if lines != shown:
            self._live = (now, lines)
            self._sink.live(lines)


def _stream_of(group: Group) -> Stream | Literal["meeting"] | None:
    payload = group[1].payload
    return payload[0] if isinstance(payload, tuple) else None
