"""Sequences of what ranks may tell, however weird, for property-based tests of the view."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nbsync.kernel.state import Snapshot, WorldState
from nbsync.protocol.messages import Done, Failure
from nbsync.protocol.reports import Bar, BarrierEvent, Memory, Progress, Where

HOSTILE = (
    "<script>alert(1)</script>",
    "</div></td></table>",
    '" onmouseover="x',
    "'><img src=x>",
    "&lt;b&gt;",
    "a\x1b[2Jb\r\n\x00",
    "{bar}{0}%s",
    "\ud800\udfff",
    "進捗" * 90,
    "x" * 5000,
    "\u202eabc",
    "",
)
SIZE = 3

texts = st.sampled_from(HOSTILE) | st.text(max_size=30)
numbers = st.one_of(
    st.sampled_from([0, -1, 1, 10**400, -(10**400), 1e308, 5e-324, float("nan"), float("inf"), -float("inf"), 1e15]),
    st.integers(),
    st.floats(),
    st.integers(0, 1000),
)
ranks = st.integers(0, SIZE)  # one more than there are
bars: st.SearchStrategy[Bar] = st.builds(
    Bar,
    number=st.integers(0, 30),
    name=texts,
    n=numbers,
    total=st.none() | numbers,
    elapsed=numbers,
    rate=st.none() | numbers,
    time=numbers,
    unit=texts,
    unit_scale=st.booleans(),
    unit_divisor=numbers,
    postfix=texts,
    closed=st.booleans(),
    text=st.none() | texts,
)
barriers = st.builds(BarrierEvent, texts, texts, st.booleans(), st.floats())
progress = st.builds(
    Progress,
    st.lists(bars, max_size=6).map(tuple),
    st.lists(st.integers(0, 30), max_size=3).map(tuple),
    st.integers(-5, 10**9),
    st.lists(barriers, max_size=4).map(tuple),
)
places = st.builds(
    Where,
    ticket=st.just(1),
    run=st.just(1),
    line=texts,
    waiting_in=st.none() | texts,
    number=st.none() | st.integers(0, 99),
    group=st.lists(ranks, max_size=3, unique=True).map(tuple),
    memory=st.none() | st.builds(Memory, st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 10**13)),
)
failures = st.builds(
    Failure,
    module=texts,
    type_name=texts,
    message=texts,
    where=texts,
    is_consequence=st.booleans(),
    interrupted=st.booleans(),
)
events = st.one_of(
    st.tuples(st.just("progress"), ranks, progress),
    st.tuples(st.just("seen"), ranks, places),
    st.tuples(st.just("answered"), ranks, st.none() | failures),
    st.tuples(st.just("exited"), ranks, texts),
    st.tuples(st.just("busy"), ranks, texts),
    st.tuples(st.just("idle"), ranks, st.none()),
    st.tuples(st.just("started"), ranks, st.none()),
)


def apply(state: WorldState, event: tuple[str, int, Any], now: float) -> None:
    """Let `state` take in one of `events`."""
    kind, rank, what = event
    match kind:
        case "progress":
            state.progress(rank, what)
        case "seen":
            state.seen(rank, what, now)
        case "answered":
            state.answered(rank, Done(1, 1, what), now)
        case "exited":
            state.exited(rank, what, now)
        case "busy":
            state.busy(rank, what, now)
        case "idle":
            state.idle(rank, now)
        case "started" if rank < SIZE:
            state.started(rank, 10 + rank, now)


@st.composite
def snapshots(draw: Any) -> Snapshot:
    """A world of `SIZE` ranks after any sequence of events."""
    state = WorldState(draw(texts), [draw(texts) for _ in range(SIZE)])
    for rank in range(SIZE):
        state.started(rank, rank, 0.0)
        state.busy(rank, "runs a cell", 0.0)
    now = 0.0
    for event in draw(st.lists(events, max_size=12)):
        now += 1.0
        apply(state, event, now)
    in_run = draw(st.sets(st.integers(0, SIZE - 1)))
    return state.snapshot(now + 2.0, draw(texts), sorted(in_run), draw(st.sampled_from([0.0, 0.5])))
