"""The one renderer: a snapshot of the world to HTML, for the live widget, the copy that is saved, and the tests. Pure.

Everything a rank has sent is escaped and cut here. Without its style sheet, which some pages strip, the HTML still
reads well: each bar says in words what it draws.
"""

from __future__ import annotations

from collections.abc import Iterable

from nbsync.kernel.state import RankState, Snapshot
from nbsync.kernel.view.barfold import FoldedBar, fold_bars
from nbsync.kernel.view.barlines import MOST_RANKS, describe_gathering, describe_passed
from nbsync.kernel.view.gathering import Gathering
from nbsync.notebook.view.meter import folded_bar, interval, rank_bar
from nbsync.notebook.view.safe import LONGEST, safe
from nbsync.notebook.view.standing import SIGNS, WORDS, activity, counts, is_notable, overall, standing
from nbsync.notebook.view.style import STYLE
from nbsync.protocol.reports import Bar, Memory
from nbsync.protocol.words import format_size

MOST_BARS = 4  # of one rank
MOST_FOLDED = 6
MOST_NOTABLE = 8
MOST_WAITING = 3
_LINE = 18  # pixels
_MARGINS = 4  # of a table


def render(snapshot: Snapshot, *, compact: bool = False, final: bool = False, room: int = 0) -> str:
    """The view of a run as HTML.

    Args:
        compact: only what the ranks have in common, and those that stand out. So it is above 16 ranks, with a grid
            of all of them.
        final: the run is over: nothing needs to keep its room.
        room: pixels for the ranks that are called out, which come and go: the most that `room_called_out` gave so far.
    """
    many = len(snapshot.ranks) > MOST_RANKS
    parts = [_head(snapshot), _folded(snapshot, final)]
    if many:
        parts.append(_grid(snapshot))
    if many or compact:
        parts.append(_called_out(snapshot, final, room))
    else:
        parts.append(_table(snapshot.ranks, snapshot, final))
    parts += _barriers(snapshot, final)
    label = f"{len(snapshot.ranks)} ranks, {overall(snapshot)}"
    return f'{STYLE}<div class="nbsync" role="group" aria-label="{label}">{"".join(parts)}</div>'


def room_called_out(snapshot: Snapshot, *, compact: bool) -> int:
    """How many pixels the ranks take that are called out now."""
    if not compact and len(snapshot.ranks) <= MOST_RANKS:
        return 0
    notable = _notable(snapshot)
    lines = sum(1 + _slots(state) for state in notable[:MOST_NOTABLE]) + (len(notable) > MOST_NOTABLE)
    return _LINE * lines + _MARGINS * bool(notable)


def _head(snapshot: Snapshot) -> str:
    word = overall(snapshot)
    size = len(snapshot.ranks)
    facts = [f"{size} rank{'s' * (size != 1)}", snapshot.backend, snapshot.title]
    if snapshot.began:
        facts.append(_seconds(snapshot.now - snapshot.began))
    text = " · ".join(safe(fact) for fact in facts if fact)
    return f'<div><b class="{word}">{SIGNS[word]} {word}</b> <span class="q">{text}</span></div>'


def _shared(snapshot: Snapshot, final: bool) -> list[FoldedBar]:
    """The bars that several ranks have, at the end the first and the last of them.

    Before, those that are over everywhere as far as there is room.
    """
    folded = fold_bars(snapshot)
    if final:
        return folded[:1] + folded[1:][1 - MOST_FOLDED :]
    moving = [bar for bar in folded if not bar.closed][-MOST_FOLDED:]
    free = min(MOST_FOLDED, max(1, snapshot.shared)) - len(moving)
    over = [bar for bar in folded if bar.closed][-free:] if free > 0 else []
    return [bar for bar in folded if bar in moving or bar in over]


def _folded(snapshot: Snapshot, final: bool) -> str:
    room = 0 if final else _LINE * min(MOST_FOLDED, snapshot.shared)
    bars = "".join(folded_bar(bar, snapshot, final) for bar in _shared(snapshot, final))
    return f'<div style="min-height:{room}px">{bars}</div>' if bars or room else ""


# ---- ranks ----


def _notable(snapshot: Snapshot) -> list[RankState]:
    """Those that stand out, the worst first, and the slowest."""
    slowest = {bar.slowest for bar in _shared(snapshot, False) if not bar.closed}
    found = [state for state in snapshot.ranks if is_notable(state, snapshot)]
    found.sort(key=lambda state: WORDS.index(standing(state, snapshot)))
    return found + [state for state in snapshot.ranks if state.rank in slowest and state not in found]


def _called_out(snapshot: Snapshot, final: bool, room: int) -> str:
    notable = _notable(snapshot)
    rows = _table(notable[:MOST_NOTABLE], snapshot, final) + "".join(_more(len(notable) - MOST_NOTABLE, "ranks"))
    return rows if final or not room else f'<div style="min-height:{room}px">{rows}</div>'


def _table(states: Iterable[RankState], snapshot: Snapshot, final: bool) -> str:
    rows = "".join(_rows(state, snapshot, final) for state in states)
    return f"<table>{rows}</table>" if rows else ""


def _rows(state: RankState, snapshot: Snapshot, final: bool) -> str:
    word = standing(state, snapshot)
    shown = _newest(state.bars)
    bars = "".join(rank_bar(bar, state, snapshot, final) for bar in shown)
    hidden = state.hidden + len(state.bars) - len(shown)
    if hidden:
        bars += f'<div class="b q">and {hidden:,} more bars</div>'
    room = 0 if final else _LINE * _slots(state)  # so that what is below does not jump
    below = f'<tr><td class="r"></td><td colspan="4"><div style="min-height:{room}px">{bars}</div></td></tr>'
    cells = (
        f'<th class="r" scope="row">rank {state.rank}</th><td class="s {word}">{SIGNS[word]} {word}</td>'
        f'<td class="d q">{safe(state.device)}</td>{_held(state.memory)}'
        f'<td class="{word if word in ("failed", "dead") else ""}">{safe(activity(state, snapshot))}</td>'
    )
    return f"<tr>{cells}</tr>" + (below if bars or room else "")


def _slots(state: RankState) -> int:
    """The lines for the bars of a rank."""
    return min(state.slots, MOST_BARS) + (state.slots > MOST_BARS)


def _newest(bars: tuple[Bar, ...]) -> list[Bar]:
    """The first, in which the others may be nested; of these the open ones before those that are over, the last."""
    rest = sorted(bars[1:], key=lambda bar: (not bar.closed, bar.number))[1 - MOST_BARS :]
    return [*bars[:1], *sorted(rest, key=lambda bar: bar.number)]


def _held(memory: Memory | None) -> str:
    if memory is None:
        return '<td class="m q"></td>'
    if not memory.reserved:
        return f'<td class="m q">{format_size(memory.resident)}</td>'
    gpu = f"GPU {format_size(memory.allocated)}/{format_size(memory.reserved)}"
    return f'<td class="m gpu q">{format_size(memory.resident)} · {gpu}</td>'


def _grid(snapshot: Snapshot) -> str:
    cells = []
    for state in snapshot.ranks:
        done = max((min(100, 100 * bar.n / bar.total) for bar in state.bars[-1:] if bar.total), default=0)
        word = standing(state, snapshot)
        cells.append(
            f'<i class={word} title="{state.rank} {done:.0f}%" style=--p:{100 if word == "done" else done:.0f}></i>'
        )
    label = counts(snapshot)
    return f'<div class="g" role="img" aria-label="{label}">{"".join(cells)}</div><div class="q">{label}</div>'


# ---- barriers ----


def _barriers(snapshot: Snapshot, final: bool) -> list[str]:
    lines = [_waiting(gathering, snapshot) for gathering in snapshot.waiting[:MOST_WAITING]]
    lines += _more(len(snapshot.waiting) - MOST_WAITING, "barriers")
    if not lines and snapshot.passed is not None:
        lines = [f'<div class="w q">{safe(describe_passed(snapshot.passed))}</div>']
    return lines or ([] if final else ['<div class="w"></div>'])


def _waiting(gathering: Gathering, snapshot: Snapshot) -> str:
    doing = {state.rank: activity(state, snapshot) for state in snapshot.ranks if state.rank in gathering.missing}
    text = safe(describe_gathering(gathering, snapshot, doing), 2 * LONGEST)
    return f'<div class="w waiting" title="{text}">{text}</div>'


def _more(count: int, what: str) -> list[str]:
    return [f'<div class="q">and {count} more {what}</div>'] if count > 0 else []


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else interval(seconds)
