"""The state of a run as lines of text: tqdm's own, for terminals and for front ends that show text only. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tqdm.std import tqdm
from tqdm.utils import disp_trim

from nbsync.kernel.state import RankState, Snapshot
from nbsync.kernel.view.barfold import FoldedBar, elapsed, fold_bars
from nbsync.kernel.view.gathering import Gathering, Passed
from nbsync.protocol.reports import Bar
from nbsync.protocol.words import describe_ranks, format_ranks

MOST_RANKS = 16  # with more of them, only what they have in common is shown
MOST_LINES = 40
MOST_NAMED = 3
_LONGEST_NAME = 40


def lines_of(snapshot: Snapshot, width: int = 100, most: int = MOST_LINES) -> list[str]:
    """Bars and barriers, a line each: at most `most` of them, each at most `width` columns wide."""
    if len(snapshot.in_run) <= MOST_RANKS:
        lines = [_rank_line(state, bar, snapshot.now, width) for state in snapshot.ranks for bar in state.bars]
        lines += [f"[{s.rank}] and {s.hidden} more bars" for s in snapshot.ranks if s.hidden]
    else:
        lines = [_folded_line(bar, width) for bar in fold_bars(snapshot)]
    lines += [describe_gathering(gathering, snapshot) for gathering in snapshot.waiting]
    if len(lines) > most:
        lines = [*lines[: most - 1], f"and {len(lines) - most + 1} more lines"]
    return [disp_trim(_one_line(line), width) for line in lines]  # by what it takes on the screen


def describe_gathering(gathering: Gathering, snapshot: Snapshot, doing: Mapping[int, str] | None = None) -> str:
    """Who is missing, and who waits where for how long.

    Args:
        doing: what the missing ranks do instead, where that is known.
    """
    here, waits = describe_ranks(sorted(gathering.arrived)), "waits" if len(gathering.arrived) == 1 else "wait"
    text = f"{here} {waits} {snapshot.now - gathering.first:.1f} s at {gathering.call_site}"
    if not gathering.missing:
        return f"{gathering.name}: {text}"
    known = [f"rank {rank} {what}" for rank, what in list((doing or {}).items())[:MOST_NAMED] if what]
    where = f" ({'; '.join(known)})" if known else ""
    return f"{gathering.name}: {describe_ranks(gathering.missing)} missing{where}; {text}"


def describe_passed(passed: Passed) -> str:
    """A barrier that is behind all ranks."""
    return (
        f"{passed.name} at {passed.call_site}: passed; rank {passed.slowest} came {passed.spread:.2f} s after the first"
    )


def _meter(bar: Bar, seconds: float, width: int) -> str:
    """A bar as tqdm writes it."""
    if bar.text is not None:
        return bar.text
    name = bar.name if len(bar.name) <= _LONGEST_NAME else bar.name[: _LONGEST_NAME - 1] + "…"
    line: str = tqdm.format_meter(
        bar.n,
        bar.total if bar.total and bar.n >= 0 else None,  # tqdm draws no bar of less than nothing
        seconds,
        ncols=width,
        prefix=name,
        unit=bar.unit,
        unit_scale=bar.unit_scale,
        unit_divisor=bar.unit_divisor,
        rate=bar.rate,
        postfix=bar.postfix,
    )
    return line


def percent(n: float, total: float | None) -> str:
    """`62%`, or the steps where the total is not known."""
    return f"{n:g}" if not total else f"{100 * n / total:.0f}%"


def _rank_line(state: RankState, bar: Bar, now: float, width: int) -> str:
    label = f"[{state.rank}] "
    return label + _meter(bar, elapsed(bar, state, now), width - len(label))


def _folded_line(folded: FoldedBar, width: int) -> str:
    least, most = percent(folded.steps[0], folded.total), percent(folded.steps[-1], folded.total)
    ranks = format_ranks(sorted(folded.bars))
    median = percent(folded.median, folded.total)
    return f"[{ranks}] {folded.name}: {least} to {most}, median {median}, slowest is rank {folded.slowest}"[:width]


def _one_line(text: str) -> str:
    """Without line breaks and the codes that would move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in text)
