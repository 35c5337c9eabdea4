"""The state of a run as lines of text, for terminals."""

from __future__ import annotations

from dataclasses import replace

from events import snapshots
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm.std import tqdm
from tqdm.utils import disp_len

from nbsync.kernel.state import Snapshot, WorldState
from nbsync.kernel.view.barlines import MOST_LINES, MOST_RANKS, lines_of
from nbsync.protocol.reports import Bar, BarrierEvent, Progress
from nbsync.testing.crowd import Crowd

BAR = Bar(0, "train", 310, 500, 12.4, 25.0, 100.0, postfix="loss=0.31")


def world(*bars: Bar, size: int = 2) -> WorldState:
    """Ranks with these bars, each."""
    state = WorldState("gloo")
    for rank in range(size):
        state.started(rank, 10 + rank, 80.0)
        state.busy(rank, "runs a cell", 90.0)
        state.progress(rank, Progress(bars, (), len(bars)))
    return state


def look(state: WorldState, size: int = 2) -> Snapshot:
    return state.snapshot(100.0, "Cell In[3]", range(size), 90.0)


@settings(max_examples=150, deadline=None)
@given(snapshot=snapshots(), width=st.integers(10, 120), most=st.integers(1, 50))
def test_any_events_give_sound_lines(snapshot: Snapshot, width: int, most: int) -> None:
    """No line breaks, no codes that move the cursor, none too wide for the screen, not too many."""
    lines = lines_of(snapshot, width, most)
    assert len(lines) <= most
    for line in lines:
        assert line.isprintable()
        assert disp_len(line) <= width


def test_bars_are_tqdms_own() -> None:
    """Each rank's bars, as tqdm writes them."""
    tqdms = tqdm.format_meter(310, 500, 12.4, ncols=86, prefix="train", rate=25.0, postfix="loss=0.31")
    assert "62%|█" in tqdms
    assert lines_of(look(world(BAR)), 90) == [f"[0] {tqdms}", f"[1] {tqdms}"]
    assert lines_of(look(world(replace(BAR, total=None, postfix=""), size=1), 1)) == [
        "[0] train: 310it [00:12, 25.00it/s]"
    ]
    assert lines_of(look(world(replace(BAR, text="stage 2"), size=1), 1)) == ["[0] stage 2"]


def test_barriers_have_a_line() -> None:
    """Who waits, and who is missing."""
    state = world()
    state.progress(1, Progress(barriers=(BarrierEvent("epoch", "Cell In[3], line 5", True, 95.0),)))
    (line,) = lines_of(look(state))
    for part in ("epoch", "rank 1 waits", "5.0 s", "Cell In[3], line 5", "rank 0 missing"):
        assert part in line


def test_wide_characters_do_not_wrap() -> None:
    """A line that wrapped would spoil the next redrawing."""
    (line,) = lines_of(look(world(replace(BAR, text="進" * 100), size=1), 1), 41)
    assert disp_len(line) in (40, 41)


def test_too_many_lines_are_counted() -> None:
    """The rest is told in the last line; so are bars that were left out."""
    bars = [replace(BAR, number=number) for number in range(10)]
    lines = lines_of(look(world(*bars, size=8), 8), 80)
    assert len(lines) == MOST_LINES
    assert lines[-1] == f"and {80 - MOST_LINES + 1} more lines"
    state = world(BAR, size=1)
    state.progress(0, Progress((), (), 1000))
    assert lines_of(look(state, 1), 80)[-1] == "[0] and 999 more bars"


def test_many_ranks_show_what_they_have_in_common() -> None:
    """One line a bar, with least, most and slowest."""
    size = MOST_RANKS + 1
    crowd, state = Crowd(size, seed=1), WorldState("gloo")
    crowd.enter(state, 0.0)
    for tick in range(1, 20):
        for rank, message in crowd.messages(tick / 10):
            crowd.tell(state, rank, message, tick / 10)
    snapshot = state.snapshot(2.0, "", range(size), 0.001)
    epochs, batches = lines_of(snapshot)
    assert epochs.startswith("[0-16] epoch: 0% to 0%")
    least = min(bar.n for rank in snapshot.ranks for bar in rank.bars if bar.name == "train")
    assert f"train: {least / 5:.0f}% to " in batches
    assert "slowest is rank" in batches
