"""When the view is shown: soon enough to be of use, never at a high price. The clock is the test's."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from nbsync.kernel.output.sink import Controls
from nbsync.kernel.state import Snapshot, WorldState
from nbsync.kernel.view.live import EVERY, FIRST, FIRST_BEFORE_TEXT, SHARE, LiveView
from nbsync.protocol.reports import Bar, Progress

CONTROLS = Controls(lambda: None, lambda: "")
BAR = Bar(0, "b", 1, 10, 0.1, 10.0, 0.0)


class Clocked:
    """A view with a sink that notes when it draws; each drawing takes `cost` seconds."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now, self.cost, self.spent = 100.0, cost, 0.0
        self.drawn: list[tuple[float, bool]] = []
        self.state = WorldState("gloo")
        for rank in (0, 1):
            self.state.started(rank, 10 + rank, self.now)
            self.state.busy(rank, "", self.now)
        self.live = LiveView(self, self.look, CONTROLS, self.now, clock=lambda: self.spent)  # type: ignore[arg-type]

    def look(self, now: float) -> Snapshot:
        return self.state.snapshot(now, "Cell In[1]", (0,), 100.0)

    def view(self, snapshot: Snapshot, final: bool, controls: Controls) -> None:
        self.drawn.append((round(snapshot.now - 100, 6), final))
        self.spent += self.cost

    def run(self, seconds: float, step: float = 0.01) -> None:
        """As a conductor does that is woken all the time."""
        for _ in range(round(seconds / step)):
            self.now += step
            self.live.tick(self.now)


def test_a_quick_cell_is_not_shown() -> None:
    """A run that is over within half a second, without bars, leaves nothing."""
    clocked = Clocked()
    clocked.run(FIRST - 0.05)
    clocked.live.close(clocked.now)
    assert clocked.drawn == []


def test_the_first_view() -> None:
    """A run without bars shows after half a second, and ends with a final state."""
    clocked = Clocked()
    clocked.run(0.7)
    clocked.live.close(clocked.now)
    times = [at for at, _ in clocked.drawn]
    assert FIRST - 0.001 <= times[0] <= FIRST + EVERY
    assert [final for _, final in clocked.drawn] == [False] * (len(times) - 1) + [True]


def test_bars_are_shown_at_once() -> None:
    """A bar shows at the next tick."""
    clocked = Clocked()
    clocked.state.progress(0, Progress((BAR,), (), 1))
    clocked.run(0.15)
    assert clocked.drawn[0][0] <= EVERY + 0.011


def test_bars_that_were_over_before_the_first_tick() -> None:
    """A cell so quick that nothing was shown keeps the end of its bars."""
    clocked = Clocked()
    clocked.state.progress(0, Progress((replace(BAR, n=10, closed=True),), (), 1))
    clocked.live.close(clocked.now + 0.01)
    assert [final for _, final in clocked.drawn] == [True]


def test_bars_of_ranks_that_do_not_take_part() -> None:
    """What another rank has left from an earlier cell is not this cell's."""
    clocked = Clocked()
    clocked.state.progress(1, Progress((BAR,), (), 1))
    clocked.run(0.3)
    clocked.live.close(clocked.now)
    assert clocked.drawn == []


def test_the_view_comes_before_text_that_comes_late() -> None:
    """Text after 0.2 s finds the view there, above it; text before that does not wait for it."""
    clocked = Clocked()
    clocked.live.before_text(100.0 + FIRST_BEFORE_TEXT - 0.01)
    assert clocked.drawn == []
    clocked.live.before_text(100.0 + FIRST_BEFORE_TEXT)
    clocked.live.before_text(100.0 + FIRST_BEFORE_TEXT + 0.001)
    assert clocked.drawn == [(FIRST_BEFORE_TEXT, False)]


def test_at_most_ten_a_second() -> None:
    """However often it is asked."""
    clocked = Clocked()
    clocked.run(10.0, step=0.003)
    times = [at for at, _ in clocked.drawn]
    assert 90 <= len(times) <= 100
    assert min(b - a for a, b in itertools.pairwise(times)) >= EVERY - 1e-6


@pytest.mark.parametrize("cost", [0.02, 0.1])
def test_drawing_takes_a_small_share_of_the_time(cost: float) -> None:
    """A view that is dear to draw is drawn less often."""
    clocked = Clocked(cost)
    clocked.run(20.0)
    assert clocked.drawn
    assert clocked.spent <= 20.0 / SHARE + cost
    assert len(clocked.drawn) >= 0.8 * 19.5 / (SHARE * cost)


def test_a_sink_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A defect of the view costs the view, is told once, and the run goes on."""
    clocked = Clocked()
    clocked.run(0.6)

    def broken(snapshot: Snapshot, final: bool, controls: Controls) -> None:
        clocked.spent += 1
        raise RuntimeError("the front end is gone")

    clocked.view = broken  # type: ignore[method-assign]
    clocked.run(60.0)
    clocked.live.close(clocked.now)
    assert clocked.spent == 1
    assert [record.getMessage() for record in caplog.records if "front end" in (record.exc_text or "")] != []
    assert len(caplog.records) == 1


def test_it_tells_when_it_has_something_to_do() -> None:
    """Who waits for messages need not wake up before."""
    clocked = Clocked()
    clocked.run(1.0)
    assert clocked.now < clocked.live.next_tick <= clocked.now + EVERY
