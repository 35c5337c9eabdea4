"""One run's output: from the workers' bytes and displays to labelled, folded output in a sink."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple

from nbsync.kernel.output.flood import Hidden
from nbsync.kernel.output.fold import Entry, Folder, Group
from nbsync.kernel.output.gate import Gate, Source
from nbsync.kernel.output.lines import LineSplitter, without_rank, without_time
from nbsync.kernel.output.logs import Logs
from nbsync.kernel.output.sink import Sink, Stream, tell
from nbsync.kernel.supervision.evidence import last_words
from nbsync.protocol.fence import MEETING
from nbsync.protocol.messages import ClearOutput, Display
from nbsync.protocol.words import format_ranks

Label = Callable[[tuple[int, ...]], str]
LIVE_AFTER = 0.3  # seconds that a line must stay unfinished before it is shown live
LIVE_EVERY = 0.1
LIVE_LENGTH = 500  # characters of a live line, its last ones


class _Line(NamedTuple):
    """A line to be shown.

    Attributes:
        is_end: of a flood's end: it is shown however much came before.
        is_notice: it tells of hidden lines, and lacks the place of the log still.
    """

    stream: Stream
    text: str
    is_end: bool = False
    is_notice: bool = False


@lru_cache
def bracket_label(ranks: tuple[int, ...]) -> str:
    """`[0-3]`"""
    return f"[{format_ranks(ranks)}]"


class _Meeting(NamedTuple):
    """A moment at which all ranks have met: nothing to be shown."""

    name: str


class Printer:
    """Shows the output of the ranks of one run.

    Args:
        label: what stands before a line of the given ranks.
        fold: show equal output of several ranks once.
        logs: where the whole of a flood goes.

    Attributes:
        on_display: told of the rank of each display, or clearing, that was shown or will not be.
    """

    def __init__(
        self,
        ranks: Iterable[int],
        sink: Sink,
        *,
        label: Label = bracket_label,
        fold: bool = True,
        logs: Logs | None = None,
    ) -> None:
        self._ranks = tuple(ranks)
        self._sink, self._label = sink, label
        self.on_display: Callable[[int], None] = lambda rank: None
        self._folder = Folder(self._ranks, hold=0.1 if fold else 0.0)
        self._fold = fold
        self._gate = Gate(logs if sink.is_limited else None, partial(tell, sink))
        self._splitters: dict[tuple[int, Stream], LineSplitter] = {}
        self._unfinished_since: dict[tuple[int, Stream], float] = {}
        self._live: tuple[float, list[str]] = (0.0, [])
        self._live_may_change = False
        self._also: list[str] = []
        self._is_over_full = False
        self._stderr: dict[int, deque[str]] = {}

    def text(self, rank: int, stream: Stream, data: bytes, now: float) -> None:
        shown = self._gate.take(rank, stream, data, now)
        self._live_may_change = True
        if shown:
            self._add_text((rank, stream), shown, now)
        if len(shown) < len(data):  # the rest is hidden, and so is the rest of a line that is cut
            self._end_line((rank, stream), now, is_end=True)

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
        else:
            self.on_display(rank)

    def crash_stack(self, rank: int) -> list[str]:
        """The lines of the stack that Python wrote to the stderr of `rank` when it crashed, innermost first."""
        lines = list(self._stderr.get(rank, ()))
        crash = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
        return [line for line in lines[crash:] if line.startswith("  File ")]

    def last_words(self, rank: int) -> list[str]:
        """The last lines that `rank` wrote to stderr, without the stack that Python writes when it crashes."""
        return last_words(list(self._stderr.get(rank, ())))

    def finish(self, rank: int, now: float) -> None:
        """Nothing more comes from `rank`."""
        self._end_lines(rank, now)
        if self._gate.is_hiding:
            self._empty_folder(now)
        self._tell_hidden(self._gate.finish(rank), now)
        self._end_lines(rank, now, is_end=True)
        self._folder.close(rank)

    def show(self, now: float) -> None:
        """Show what is ready."""
        if self._gate.is_over(now):
            self._empty_folder(now)
            self._tell_hidden(self._gate.over(now), now)
        self._show(self._folder.ready(now), now)
        if self._is_over_full:
            self._empty_folder(now)
        self._show_live(now)

    def close(self, now: float) -> None:
        """Show everything that is left."""
        for rank in self._ranks:
            self._end_lines(rank, now)
        self._show(self._folder.flush(), now)
        for rank in self._ranks:
            self._tell_hidden(self._gate.finish(rank), now)
            self._end_lines(rank, now, is_end=True)
        self._show(self._folder.flush(), now)
        self._also = []
        self._show_live(float("inf"))

    def also_live(self, lines: Iterable[tuple[int, str]]) -> None:
        """What else is to be said of ranks now, below their unfinished lines."""
        also = [f"{self._label((rank,))} {text}" for rank, text in lines]
        self._live_may_change |= also != self._also
        self._also = also

    def _empty_folder(self, now: float) -> None:
        """Before a flood begins or ends: what is in the folder came before, and may itself have to be hidden."""
        self._show(self._folder.flush(), now)
        self._is_over_full = False

    def put_away(self) -> None:
        """Let go of the logs. Idempotent."""
        self._gate.close()

    def next_deadline(self) -> float | None:
        """When `show` has something to do although nothing new came."""
        times = [held for held in (self._folder.next_deadline(),) if held is not None]
        if self._gate.is_hiding:
            times.append(self._live[0] + LIVE_AFTER)
        if self._live_may_change and self._unfinished_since:
            times.append(max(min(self._unfinished_since.values()) + LIVE_AFTER, self._live[0] + LIVE_EVERY))
        return min(times, default=None)

    def _add(self, rank: int, key: Any, payload: object, now: float) -> None:
        has_common_key = self._fold or isinstance(payload, _Meeting)
        is_indented = isinstance(payload, _Line) and payload.text[:1].isspace()
        self._folder.add(rank, Entry(key if has_common_key else (rank, key), payload, is_indented), now)

    def _add_text(self, source: Source, data: bytes, now: float, is_end: bool = False) -> None:
        splitter = self._splitters.setdefault(source, LineSplitter())
        for line in splitter.feed(data):
            line, met, meeting = line.partition(MEETING)
            if line or not met:
                self._add_line(source, line, now, is_end)
            if met:
                self._add(source[0], _Meeting(meeting), _Meeting(meeting), now)
        if splitter.unfinished:
            self._unfinished_since.setdefault(source, now)
        else:
            self._unfinished_since.pop(source, None)

    def _add_line(self, source: Source, text: str, now: float, is_end: bool = False) -> None:
        rank, stream = source
        line = _Line(stream, without_rank(text), is_end)
        self._add(rank, line._replace(text=without_time(line.text)), line, now)
        if stream == "stderr":
            self._stderr.setdefault(rank, deque(maxlen=60)).append(text)

    def _end_lines(self, rank: int, now: float, is_end: bool = False) -> None:
        self._end_line((rank, "stdout"), now, is_end)
        self._end_line((rank, "stderr"), now, is_end)

    def _end_line(self, source: Source, now: float, is_end: bool = False) -> None:
        self._unfinished_since.pop(source, None)
        splitter = self._splitters.get(source)
        for line in splitter.finish() if splitter else ():
            self._add_line(source, line, now, is_end)

    def _tell_hidden(self, floods: Iterable[tuple[Source, Hidden]], now: float) -> None:
        for source, hidden in floods:
            rank, stream = source
            if hidden.size:
                notice = _Line(stream, str(hidden), is_end=True, is_notice=True)
                self._add(rank, notice, notice, now)
            self._add_text(source, hidden.end, now, is_end=True)

    def _show(self, groups: list[Group], now: float) -> None:
        for stream, run in groupby(groups, key=_stream_of):
            if stream is not None:
                self._show_text(stream, list(run), now)
                continue
            for ranks, entry in run:
                self._show_rich(ranks, entry.payload)

    def _show_text(self, stream: Stream, groups: list[Group], now: float) -> None:
        lines = [self._line(ranks, entry.payload) for ranks, entry in groups]
        room, size = self._gate.room(stream, now), sum(map(len, lines))
        if size > room:
            lines = self._hide(groups, lines, room, now)
            size = sum(map(len, lines))
        self._gate.spend(stream, size)
        self._sink.text(stream, "".join(lines))

    def _hide(self, groups: list[Group], lines: list[str], room: float, now: float) -> list[str]:
        """The lines that can be shown; the others are hidden."""
        shown = []
        self._is_over_full = True
        for (ranks, entry), text in zip(groups, lines, strict=True):
            line: Any = entry.payload
            room -= len(text)
            if room >= 0 or line.is_end:
                shown.append(text)
            else:
                for rank in ranks:
                    self._gate.hide(rank, line.stream, line.text, now)
        return shown

    def _line(self, ranks: tuple[int, ...], line: Any) -> str:
        text = f"{line.text}; {self._gate.place(ranks)}" if line.is_notice else line.text
        return f"{self._label(ranks)} {text}\n" if text else f"{self._label(ranks)}\n"

    def _show_rich(self, ranks: tuple[int, ...], payload: object) -> None:
        match payload:
            case Display(_, data, metadata, display_id, update):
                own = f"{display_id}-rank{ranks[0]}" if display_id is not None else None
                self._sink.display(self._label(ranks), data, metadata, own, update)
            case ClearOutput(_, wait):
                self._sink.clear(wait)
                self._live = (self._live[0], [])  # what is unfinished shows anew
                self._live_may_change = True
            case _:
                return
        for rank in ranks:
            self.on_display(rank)

    def _show_live(self, now: float) -> None:
        shown_at, shown = self._live
        if now - shown_at < LIVE_EVERY:
            return
        lines = [
            f"{self._label((rank,))} {self._splitters[rank, stream].unfinished[-LIVE_LENGTH:]}"
            for (rank, stream), since in sorted(self._unfinished_since.items())
            if now - since >= LIVE_AFTER
        ]
        hidden = [f"{self._label((rank,))} {text}" for rank, text in self._gate.live(now)] + self._also
        self._live_may_change = len(lines) < len(self._unfinished_since)  # some are too young to be shown
        if lines + hidden != shown:
            self._live = (now, lines + hidden)
            self._sink.live(lines + hidden)


def _stream_of(group: Group) -> Stream | None:
    payload = group[1].payload
    return payload.stream if isinstance(payload, _Line) else None
