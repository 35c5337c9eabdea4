"""The state of the world: what remains of the ranks' events, and what a snapshot says of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nbsync.kernel.state import CLOSED_BARS, OPEN_BARS, Ending, Phase, WorldState
from nbsync.protocol.messages import Done, Failure
from nbsync.protocol.reports import Bar, BarrierEvent, Memory, Progress, Where
from nbsync.testing.crowd import Crowd

BAR = Bar(0, "b", 1, 10, 0.1, 10.0, 0.0)


@pytest.fixture
def state() -> WorldState:
    """Two ranks that run a cell."""
    state = WorldState("gloo", ["cpu", "cuda:1"])
    for rank in (0, 1):
        state.started(rank, 10 + rank, 0.0)
        state.busy(rank, "runs a cell", 1.0)
    return state


def tell(state: WorldState, *bars: Bar, gone: tuple[int, ...] = (), count: int | None = None, rank: int = 0) -> None:
    state.progress(rank, Progress(bars, gone, len(bars) if count is None else count))


def test_bars_move_and_go(state: WorldState) -> None:
    """The last state of each bar is kept, in the order they were made; those that are gone are not."""
    tell(state, replace(BAR, number=4), BAR)
    tell(state, replace(BAR, n=7), count=2)
    first = state.snapshot(2.0).ranks[0]
    assert [(bar.number, bar.n) for bar in first.bars] == [(0, 7), (4, 1)]
    tell(state, gone=(4,), count=1)
    last = state.snapshot(2.0).ranks[0]
    assert [bar.number for bar in last.bars] == [0]
    assert (last.slots, last.hidden) == (2, 0)


def test_of_many_bars_some_are_kept(state: WorldState) -> None:
    """The first, the newest open and the newest closed ones; the count is of all."""
    for start in range(0, 1000, 10):
        numbers = range(start, start + 10)
        tell(state, *(replace(BAR, number=each, name=f"b{each}", closed=each > 100) for each in numbers))
    tell(state, count=1_000_000)
    first = state.snapshot(2.0).ranks[0]
    assert [bar.number for bar in first.bars if not bar.closed] == [0, *range(101 - OPEN_BARS, 101)]
    assert [bar.number for bar in first.bars if bar.closed] == list(range(1000 - CLOSED_BARS, 1000))
    assert first.hidden == 1_000_000 - 1 - OPEN_BARS - CLOSED_BARS


def test_of_each_name_the_newest_is_kept(state: WorldState) -> None:
    """So the outer bar of nested ones stays to the end. Those that are open are all kept, and those without a name."""
    outer = replace(BAR, name="epochs")
    for epoch in range(9):
        for offset, name in enumerate(("train", "eval"), 1):
            inner = replace(BAR, name=name, number=2 * epoch + offset)
            tell(state, replace(outer, n=epoch), inner)
            tell(state, replace(inner, closed=True))
    tell(state, replace(outer, n=9, closed=True), count=19)
    first = state.snapshot(2.0).ranks[0]
    assert [(bar.name, bar.number) for bar in first.bars] == [("epochs", 0), ("train", 17), ("eval", 18)]
    assert first.hidden == 16
    others = [replace(BAR, name=name, number=n, closed=n > 21) for n, name in enumerate(["eval", "eval", "", ""], 20)]
    tell(state, *others)
    assert [bar.number for bar in state.snapshot(2.0).ranks[0].bars] == [0, 17, 20, 21, 22, 23]


def test_who_is_waited_for_in_words() -> None:
    """A rank that has given up at a barrier is not waited for, as long as another one has not come."""
    state = WorldState("gloo")
    for rank in range(3):
        state.started(rank, 100 + rank, 0.0)
        state.busy(rank, "runs a cell", 1.0)
    for rank, entered in [(0, True), (1, True), (0, False)]:
        state.progress(rank, Progress(barriers=(BarrierEvent("b", "line 2", entered, 2.0, passed=False),)))
    told = "rank 1: busy, runs a cell for 1 s, in barrier 'b' at line 2, waiting for rank 2"
    assert f"  {told}\n" in state.snapshot(2.0).describe()


def test_a_new_run_begins_empty(state: WorldState) -> None:
    """Bars, errors and barriers of the run before are gone."""
    tell(state, BAR)
    state.progress(0, Progress(barriers=(BarrierEvent("b", "", True, 1.0),)))
    state.answered(0, Done(1, 1, Failure("m", "E", "message")), 2.0)
    state.busy(0, "runs a cell", 3.0)
    snapshot = state.snapshot(3.0)
    assert (snapshot.ranks[0].bars, snapshot.ranks[0].error, snapshot.ranks[0].ending) == ((), "", None)
    assert snapshot.waiting == ()


def test_ranks_that_do_not_take_part_show_no_bars(state: WorldState) -> None:
    """A rank's bars belong to the run it took part in; without a run, all are told."""
    tell(state, BAR, rank=1)
    assert [len(rank.bars) for rank in state.snapshot(2.0, "", (0,)).ranks] == [0, 0]
    assert [len(rank.bars) for rank in state.snapshot(2.0, "", (0, 1)).ranks] == [0, 1]
    assert [len(rank.bars) for rank in state.snapshot(2.0).ranks] == [0, 1]


def test_a_rank_that_ended_keeps_its_last_state(state: WorldState) -> None:
    """Its bars and its place stay to be seen; what comes late changes nothing."""
    tell(state, BAR)
    state.exited(0, "killed by SIGKILL", 5.0)
    tell(state, replace(BAR, n=9))
    state.idle(0, 6.0)
    dead = state.snapshot(7.0, "", (0, 1)).ranks[0]
    assert (dead.phase, dead.note, dead.bars) == (Phase.DEAD, "killed by SIGKILL", (BAR,))


@pytest.mark.parametrize(
    ("failure", "ending"),
    [
        (None, Ending.DONE),
        (Failure("m", "ValueError", "bad, since:\nworse", where="Cell In[1], line 3"), Ending.FAILED),
        (Failure("m", "RuntimeError", "closed", is_consequence=True), Ending.RELEASED),
        (Failure("m", "KeyboardInterrupt", "", interrupted=True), Ending.INTERRUPTED),
    ],
)
def test_how_ranks_answer(state: WorldState, failure: Failure | None, ending: Ending) -> None:
    """Done, failed, released or interrupted; a failure with its first line and its place."""
    state.answered(0, Done(1, 1, failure), 4.0)
    rank = state.snapshot(5.0).ranks[0]
    assert rank.ending is ending
    if ending is Ending.FAILED:
        assert rank.error == "ValueError: bad, since... at Cell In[1], line 3"


def test_how_long_a_rank_is_at_its_line(state: WorldState) -> None:
    """The time counts from when it was first seen there, and memory stays when an answer has none."""
    state.seen(0, Where(1, 1, "Cell In[1], line 2", None, memory=Memory(5)), 2.0)
    state.seen(0, Where(2, 1, "Cell In[1], line 2", "all_reduce", number=3), 3.0)
    place, memory = state.snapshot(4.0).ranks[0].place, state.snapshot(4.0).ranks[0].memory
    assert place is not None
    assert (place.since, place.in_operation, place.operation) == (2.0, 3.0, "all_reduce #3")
    assert memory == Memory(5)
    state.seen(0, Where(3, 1, "Cell In[1], line 9", "all_reduce", number=3), 5.0)
    place = state.snapshot(5.0).ranks[0].place
    assert place is not None
    assert (place.since, place.in_operation) == (5.0, 3.0)


def test_a_blocked_collective(state: WorldState) -> None:
    """After a second it shows who waits in it and who is missing; not for ranks that have ended."""
    state.seen(0, Where(1, 1, "Cell In[1], line 2", "all_reduce", number=12), 2.0)
    assert state.snapshot(2.9).waiting == ()
    (waiting,) = state.snapshot(3.0).waiting
    assert (waiting.name, waiting.call_site, waiting.missing) == ("all_reduce #12", "Cell In[1], line 2", (1,))
    state.answered(0, Done(1, 1), 4.0)
    assert state.snapshot(5.0).waiting == ()


def test_a_barrier_is_told_once(state: WorldState) -> None:
    """A rank in a named barrier is not also in the collective that the barrier is made of."""
    state.progress(0, Progress(barriers=(BarrierEvent("b", "Cell In[1], line 2", True, 2.0),)))
    state.seen(0, Where(1, 1, "Cell In[1], line 2", "wait_for_everyone"), 2.0)
    assert [gathering.name for gathering in state.snapshot(9.0).waiting] == ["b"]


def test_numbers_are_made_fit_to_draw(state: WorldState) -> None:
    """No number is none, and what is absurd is bounded; a sound bar stays as it is."""
    weird = replace(BAR, n=math.nan, total=math.inf, elapsed=-1, rate=math.nan, time=-math.inf, unit_divisor=0)
    tell(state, weird, replace(BAR, number=1))
    first, second = state.snapshot(2.0).ranks[0].bars
    assert (first.n, first.total, first.elapsed, first.rate, first.unit_divisor) == (0, 1e15, 0, None, 1000)
    assert second == replace(BAR, number=1)
    tell(state, replace(BAR, n=10**400, total=-5))
    assert (state.snapshot(2.0).ranks[0].bars[0].n, state.snapshot(2.0).ranks[0].bars[0].total) == (1e15, None)


def test_the_room_for_bars_in_common(state: WorldState) -> None:
    """It counts the moving bars that ranks had in common at one time, and begins anew with each run."""
    for rank in (0, 1):
        tell(state, BAR, replace(BAR, number=1, name="inner"), rank=rank)
    assert state.snapshot(2.0, "", (0, 1)).shared == 2
    for rank in (0, 1):
        tell(state, gone=(1,), rank=rank)
    assert state.snapshot(2.0, "", (0, 1)).shared == 2
    state.busy(0, "", 3.0)
    assert state.snapshot(3.0, "", (0, 1)).shared == 0


@pytest.mark.parametrize("size", [64, 512])
def test_a_crowd(size: int) -> None:
    """Simulated ranks train, wait for each other and go on; the same seed gives the same state."""
    states = []
    for _ in range(2):
        crowd = Crowd(size, seed=3)
        state = WorldState("gloo", crowd.devices)
        crowd.enter(state, 0.0)
        waited = False
        for tick in range(1, 80):
            for rank, message in crowd.messages(tick / 10):
                crowd.tell(state, rank, message, tick / 10)
            snapshot = state.snapshot(tick / 10, "", range(size))
            waited |= any(gathering.missing for gathering in snapshot.waiting)
        states.append(snapshot)
        assert waited
        assert snapshot.passed is not None
        assert snapshot.passed.spread > 0
        assert {bar.n for rank in snapshot.ranks for bar in rank.bars if bar.name == "epoch"} == {1}
    assert states[0] == states[1]


def test_a_crowd_needs_a_rank() -> None:
    """An empty crowd is an error."""
    with pytest.raises(ValueError, match="at least 1"):
        Crowd(0)
