"""One progress bar as HTML: of one rank, or of several that have the same. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm.std import tqdm

from nbsync.kernel.state import RankState, Snapshot
from nbsync.kernel.view.barfold import FoldedBar, elapsed
from nbsync.kernel.view.barlines import percent
from nbsync.notebook.view.safe import safe
from nbsync.protocol.reports import Bar
from nbsync.protocol.words import describe_ranks

_TOO_LONG = 1e9  # seconds


def folded_bar(folded: FoldedBar, snapshot: Snapshot, final: bool) -> str:
    steps, total = folded.steps, folded.total
    low, middle, high = (percent(n, total) for n in (steps[0], folded.median, steps[-1]))
    ranks = describe_ranks(sorted(folded.bars))
    spread = f"min {low} · median {middle} · max {high} · slowest: rank {folded.slowest}"
    words = low if low == high else spread
    slowest = folded.bars[folded.slowest]
    spans = [100 * n / total for n in (steps[0], folded.median, steps[-1])] if total else []
    state = next(state for state in snapshot.ranks if state.rank == folded.slowest)
    times = _times(slowest, elapsed(slowest, state, snapshot.now), final)
    kind = "done" if folded.closed and low == high == "100%" else "stop" if final else ""
    return _bar(folded.name, spans, folded.total, steps[0], f"{words} · {times}", f"{folded.name}, {ranks}", kind)


def rank_bar(bar: Bar, state: RankState, snapshot: Snapshot, final: bool) -> str:
    if bar.text is not None:
        return f'<div class="b"><span class="x">{safe(bar.text)}</span></div>'
    words = f"{percent(bar.n, bar.total)} {_count(bar)}" if bar.total else _count(bar)
    text = f"{words} {_times(bar, elapsed(bar, state, snapshot.now), final)}" + (
        f" {bar.postfix}" if bar.postfix else ""
    )
    spans = [100 * bar.n / bar.total] if bar.total else []
    is_full = bar.closed and (bar.total is None or bar.n >= bar.total)
    kind = "done" if is_full else "stop" if bar.closed or final else ""
    return _bar(bar.name, spans, bar.total, bar.n, text, f"{bar.name}, rank {state.rank}", kind)


def _bar(name: str, spans: Iterable[float], total: float | None, n: float, text: str, label: str, kind: str) -> str:
    widths = [min(100.0, max(0.0, span)) for span in spans]
    fills = "".join(f'<i style="width:{width:.1f}%"></i>' for width in widths) or "<i></i>"
    now = f' aria-valuenow="{n:g}" aria-valuemax="{total:g}"' if total else ""
    role = f'role="progressbar" aria-label="{safe(label)}" aria-valuemin="0"{now} aria-valuetext="{safe(text)}"'
    shape = "t" if widths else "t u"
    head = f'<span class="n" title="{safe(name)}">{safe(name)}</span>' if name else ""  # a long one is cut
    body = f'{head}<div class="{shape}">{fills}</div> <span class="x">{safe(text)}</span>'
    return f'<div class="b {kind}" {role}>{body}</div>'


def _count(bar: Bar) -> str:
    """`310/500`, or `310it`."""
    if bar.unit_scale:
        steps, total = (_scaled(value, bar.unit_divisor) for value in (bar.n, bar.total or 0))
    else:
        steps, total = f"{bar.n:.6g}", f"{bar.total or 0:.6g}"
    return f"{steps}/{total}" if bar.total else f"{steps}{bar.unit}"


def _times(bar: Bar, seconds: float, final: bool) -> str:
    """`[00:12<00:07, 25.1it/s]`: elapsed, remaining, rate."""
    rate = bar.rate or (bar.n / seconds if seconds and bar.n else None)
    left = ""
    if bar.total and not bar.closed and not final:
        left = "<" + (interval((bar.total - bar.n) / rate) if rate else "?")
    if rate is None:
        speed = f"?{bar.unit}/s"
    elif rate < 1:
        speed = f"{1 / rate:.2f}s/{bar.unit}"
    else:
        speed = f"{_scaled(rate, bar.unit_divisor) if bar.unit_scale else f'{rate:.2f}'}{bar.unit}/s"
    return f"[{interval(seconds)}{left}, {speed}]"


def _scaled(value: float, divisor: float) -> str:
    return str(tqdm.format_sizeof(value, divisor=divisor))


def interval(seconds: float) -> str:
    """`01:23`; "?" for what would be the better part of a lifetime, or is no number."""
    return str(tqdm.format_interval(max(0.0, seconds))) if seconds < _TOO_LONG else "?"
