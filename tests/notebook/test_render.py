"""The one renderer: whatever ranks tell becomes sound HTML that says in words what it draws."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from events import HOSTILE, snapshots
from hypothesis import given, settings

from nbsync.kernel.state import Snapshot, WorldState
from nbsync.notebook.view.render import MOST_BARS, MOST_FOLDED, MOST_NOTABLE, render, room_called_out
from nbsync.notebook.view.safe import LONGEST, safe
from nbsync.notebook.view.standing import SIGNS, WORDS
from nbsync.protocol.messages import Done, Failure
from nbsync.protocol.reports import Bar, BarrierEvent, Memory, Progress, Where
from nbsync.testing.crowd import Crowd

TAGS = {"style", "div", "b", "span", "table", "tr", "th", "td", "i"}
ATTRIBUTES = {"class", "role", "style", "title", "scope", "colspan", "aria-label", "aria-valuemin", "aria-valuenow"}
ATTRIBUTES |= {"aria-valuemax", "aria-valuetext"}
BAR = Bar(0, "train", 310, 500, 12.4, 25.0, 100.0, postfix="loss=0.31")


class Page(HTMLParser):
    """What a browser makes of it: balanced tags that the renderer may use, and the text between them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.bars: list[dict[str, str | None]] = []
        self.pieces: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES, attrs
        self.open.append(tag)
        if ("role", "progressbar") in attrs:
            self.bars.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


def world(size: int = 2, devices: list[str] | None = None) -> WorldState:
    """Ranks that run a cell since the time 90."""
    state = WorldState("gloo", devices or [])
    for rank in range(size):
        state.started(rank, 10 + rank, 80.0)
        state.busy(rank, "runs a cell", 90.0)
    return state


def look(state: WorldState, now: float = 100.0, ranks: Any = None) -> Snapshot:
    everyone = [rank.rank for rank in state.snapshot(now).ranks]
    return state.snapshot(now, "Cell In[3]", everyone if ranks is None else ranks, 90.0)


def show(state: WorldState, *bars: Bar, rank: int = 0, **more: Any) -> None:
    state.progress(rank, Progress(bars, **{"count": len(bars)} | more))


# ---- whatever comes ----


@settings(max_examples=150, deadline=None)
@given(snapshot=snapshots())
def test_any_events_give_sound_html(snapshot: Snapshot) -> None:
    """Live, compact and final: balanced, nothing but our own tags and attributes, and fit for a message."""
    for compact in (False, True):
        for final in (False, True):
            source = render(snapshot, compact=compact, final=final)
            Page(source)
            source.encode()
            assert len(source) < 50_000


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_ranks_send_is_text(hostile: str) -> None:
    """Names, postfixes, units, errors, devices, lines, barriers and titles that look like HTML are text."""
    state = world(2, [hostile, hostile])
    show(state, replace(BAR, name=hostile, postfix=hostile, unit=hostile), replace(BAR, number=1, text=hostile))
    show(state, replace(BAR, name=hostile), rank=1)
    state.progress(0, Progress(barriers=(BarrierEvent(hostile, hostile, True, 95.0),)))
    state.seen(1, Where(1, 1, hostile, hostile), 90.0)
    page = Page(render(replace(look(state), title=hostile, backend=hostile)))
    assert " ".join(html.unescape(safe(hostile)).split()) in page.text
    state.answered(0, Done(1, 1, Failure("m", hostile, hostile, where=hostile)), 96.0)
    state.exited(1, hostile, 97.0)
    Page(render(look(state)))


def test_long_text_is_cut() -> None:
    """A description that nobody reads to its end does not fill the page."""
    state = world(1)
    show(state, replace(BAR, name="x" * 100_000, postfix="y" * 100_000))
    source = render(look(state))
    assert len(source) < 10_000
    assert "x" * (LONGEST - 1) + "…" in source


def test_a_million_bars() -> None:
    """Some are drawn, the others are counted, and the count is right."""
    state = world(1)
    show(state, *(replace(BAR, number=number, name=f"b{number}") for number in range(24)), count=1_000_000)
    page = Page(render(look(state)))
    assert len(page.bars) == MOST_BARS
    assert f"and {1_000_000 - MOST_BARS:,} more bars" in page.text


# ---- bars ----


def test_a_bar_in_words() -> None:
    """Per cent, steps, elapsed and remaining time, rate and postfix, as tqdm writes them, also to a screen reader."""
    state = world(1)
    show(state, BAR)
    page = Page(render(look(state)))
    words = "62% 310/500 [00:12<00:07, 25.00it/s] loss=0.31"
    assert f"train {words}" in page.text
    (bar,) = page.bars
    assert bar["aria-label"] == "train, rank 0"
    assert (bar["aria-valuemin"], bar["aria-valuenow"], bar["aria-valuemax"]) == ("0", "310", "500")
    assert bar["aria-valuetext"] == words


@pytest.mark.parametrize(
    ("bar", "words"),
    [
        (replace(BAR, total=None, postfix=""), "310it [00:12, 25.00it/s]"),
        (replace(BAR, n=0, rate=None, elapsed=0.0, postfix=""), "0% 0/500 [00:00<?, ?it/s]"),
        (replace(BAR, n=600, postfix=""), "120% 600/500 [00:12<00:00, 25.00it/s]"),
        (replace(BAR, rate=0.25, unit="epoch", postfix=""), "62% 310/500 [00:12<12:40, 4.00s/epoch]"),
        (
            replace(BAR, n=3e6, total=10e6, rate=1e6, unit="B", unit_scale=True, postfix=""),
            "30% 3.00M/10.0M [00:12<00:07, 1.00MB/s]",
        ),
        (replace(BAR, text="stage 2 of 3"), "stage 2 of 3"),
    ],
    ids=["no total", "no step yet", "past its total", "slow", "bytes", "text only"],
)
def test_other_bars(bar: Bar, words: str) -> None:
    """Without a total there is no end; more than the total is no negative time."""
    state = world(1)
    show(state, bar)
    assert words in Page(render(look(state))).text


def test_a_bar_without_a_total_has_no_value() -> None:
    """A screen reader is not told of an end that nobody knows."""
    state = world(1)
    show(state, replace(BAR, total=None))
    (bar,) = Page(render(look(state))).bars
    assert not {"aria-valuenow", "aria-valuemax"} & bar.keys()


def test_time_goes_on_while_a_step_takes_long() -> None:
    """The elapsed time of a moving bar is that of now, not of its last step; that of a rank that is done stands."""
    state = world(1)
    show(state, BAR)
    assert "[01:12<" in Page(render(look(state, 160.0))).text
    state.answered(0, Done(1, 1), 161.0)
    assert "[00:12<" in Page(render(look(state, 170.0))).text


def test_the_same_bar_on_all_ranks() -> None:
    """It is one: least, median and most, and who is slowest; and once more beside each rank."""
    state = world(3)
    for rank, n in enumerate((310, 100, 450)):
        show(state, replace(BAR, n=n), rank=rank)
    page = Page(render(look(state)))
    assert "train min 20% · median 62% · max 90% · slowest: rank 1" in page.text
    assert page.bars[0]["aria-label"] == "train, ranks 0-2"
    assert len(page.bars) == 4


def test_a_bar_on_one_rank_is_not_folded() -> None:
    """Nor are bars with another name or total."""
    state = world(3)
    show(state, BAR)
    show(state, replace(BAR, name="eval"), rank=1)
    show(state, replace(BAR, total=100), rank=2)
    assert "median" not in Page(render(look(state))).text


def test_the_end_has_no_time_left() -> None:
    """What is kept in the notebook does not say when it will be done."""
    state = world(2)
    for rank in (0, 1):
        show(state, BAR, rank=rank)
    assert "<00:07" in html.unescape(render(look(state)))
    final = Page(render(look(state), final=True)).text
    assert "[00:12, 25.00it/s]" in final
    assert "<" not in final


# ---- ranks ----


def test_ranks_in_words() -> None:
    """State, device, memory, line and seconds there: each also as text, not by colour alone."""
    state = world(5, ["cuda:0"])
    state.seen(0, Where(1, 1, "Cell In[3], line 7", None, memory=Memory(int(1.5e9), int(2e9), int(3e9))), 98.0)
    state.answered(1, Done(1, 1), 95.0)
    state.answered(2, Done(1, 1, Failure("m", "ValueError", "bad", where="Cell In[3], line 2")), 95.0)
    state.exited(3, "killed by SIGKILL", 96.0)
    text = Page(render(look(state, ranks=(0, 1, 2, 3)))).text
    assert "rank 0 ▶ running cuda:0 1.5 GB · GPU 2.0 GB/3.0 GB at Cell In[3], line 7, 2 s" in text
    assert "rank 1 ✔ done after 5.0 s" in text
    assert re.search(r"rank 2 ✖ failed.*ValueError: bad at Cell In\[3\], line 2", text)
    assert re.search(r"rank 3 ✖ dead.*killed by SIGKILL", text)
    assert re.search(r"rank 4 · idle.*does not run this cell", text)
    assert "5 ranks · gloo · Cell In[3] · 10.0 s" in text


def test_every_state_has_a_sign() -> None:
    """Colour is never the only difference."""
    assert set(SIGNS) == set(WORDS)
    assert len({SIGNS[word] for word in WORDS} - {"✖"}) == len(WORDS) - 2  # failed and dead: two words


def test_a_barrier_names_the_missing() -> None:
    """Who waits where, for how long, for whom, and what that rank does."""
    state = world(3)
    state.progress(0, Progress(barriers=(BarrierEvent("epoch", "Cell In[3], line 5", True, 95.0),)))
    state.seen(0, Where(1, 1, "Cell In[3], line 5", "wait_for_everyone"), 95.0)
    state.progress(2, Progress(barriers=(BarrierEvent("epoch", "Cell In[3], line 5", True, 97.0),)))
    state.seen(1, Where(1, 1, "Cell In[3], line 4", None), 92.0)
    text = Page(render(look(state))).text
    assert "rank 1 missing" in text
    assert "Cell In[3], line 4, 8 s" in text
    assert "5.0 s" in text
    assert "rank 0 ◔ waiting" in text
    assert "waits in epoch for rank 1" in text


def test_a_barrier_that_was_passed() -> None:
    """The spread and the slowest rank stay to be seen."""
    state = world(2)
    for rank, at in ((0, 93.0), (1, 95.5)):
        state.progress(rank, Progress(barriers=(BarrierEvent("epoch", "Cell In[3], line 5", True, at),)))
    for rank in (0, 1):
        state.progress(rank, Progress(barriers=(BarrierEvent("epoch", "", False, 96.0, passed=True),)))
    text = Page(render(look(state), final=True)).text
    assert "rank 1" in text
    assert "2.50 s" in text


# ---- many ranks ----


def crowd(size: int, ticks: int = 55) -> tuple[WorldState, Snapshot]:
    simulated, state = Crowd(size, seed=2), WorldState("nccl")
    simulated.enter(state, 0.0)
    for tick in range(1, ticks):
        for rank, message in simulated.messages(tick / 10):
            simulated.tell(state, rank, message, tick / 10)
    return state, state.snapshot(ticks / 10, "Cell In[1]", range(size), 0.001)


@pytest.mark.parametrize("size", [64, 512])
def test_a_grid_of_many_ranks(size: int) -> None:
    """A cell for each rank, the counts in words, the worst called out, and not much to send."""
    state, _ = crowd(size)
    state.exited(5, "killed by SIGKILL", 5.4)
    state.answered(7, Done(1, 1, Failure("m", "ValueError", "bad")), 5.4)
    source = render(state.snapshot(5.5, "Cell In[1]", range(size), 0.001))
    page = Page(source)
    assert len(re.findall(r"<i class=\w+ title=", source)) == size
    assert "1 dead, 1 failed" in page.text
    assert page.text.index("rank 5 ✖ dead") < page.text.index("rank 7 ✖ failed")
    assert "slowest: rank" in page.text
    assert page.text.count("✖ failed") <= MOST_NOTABLE
    assert len(source) < 50_000


def test_sixteen_ranks_have_a_row_each() -> None:
    """Up to there nothing is left out."""
    _, snapshot = crowd(16)
    assert render(snapshot).count('scope="row"') == 16
    assert 'class="g"' not in render(snapshot)


def test_compact() -> None:
    """Only what the ranks have in common, and those that stand out."""
    state, snapshot = crowd(8)
    state.exited(5, "killed by SIGKILL", 5.4)
    snapshot = state.snapshot(5.5, "Cell In[1]", range(8), 0.001)
    source = render(snapshot, compact=True)
    assert len(source) < len(render(snapshot)) * 0.8
    assert "rank 5 ✖ dead" in Page(source).text
    assert 'class="g"' not in source


# ---- nothing jumps ----


def room(source: str) -> int:
    """How high it is at least, in lines of 18 pixels: rows, reserved room, and what is on its own."""
    reserved = sum(int(pixels) for pixels in re.findall(r"min-height:(\d+)px\">", source)) // 18
    return source.count('scope="row"') + reserved


def drawn(source: str) -> int:
    """How many lines bars and their count take."""
    return source.count('<div class="b')


Step = Callable[[WorldState], None]


def test_bars_that_go_leave_their_room() -> None:
    """While a run goes on, no view is less high than the one before; at the end nothing is reserved."""
    state, heights = world(2), []

    def both(*bars: Bar, **more: Any) -> None:
        for rank in (0, 1):
            show(state, *bars, rank=rank, **more)
        source = render(look(state))
        assert drawn(source) <= room(source) - 2
        heights.append(room(source))

    outer = replace(BAR, number=0, name="outer")
    both(outer)
    for number in (1, 2, 3):
        both(replace(BAR, number=number, name="inner"), count=2)
        both(gone=(number,), count=1)
    both(*(replace(BAR, number=number, name=f"b{number}") for number in range(10, 20)), count=11)
    both(gone=tuple(range(10, 20)), count=1)
    both(replace(outer, closed=True), count=1)
    assert heights == sorted(heights)
    assert "min-height:0px" in render(look(state), final=True)


def test_bars_that_are_over_make_way() -> None:
    """Of many that came one after the other, only as many are shown as there was room for while they moved."""
    state = world(2)
    for number in range(10):
        for closed in (False, True):
            for rank in (0, 1):
                show(state, replace(BAR, number=number, name=f"epoch {number}", closed=closed), rank=rank)
            assert render(look(state)).count("min 62%") + Page(render(look(state))).text.count("ranks 0-1") <= 1
    names = [str(bar["aria-label"]) for bar in Page(render(look(state), final=True)).bars]
    assert len([name for name in names if "ranks 0-1" in name]) == MOST_FOLDED


def test_ranks_that_are_called_out_keep_their_room() -> None:
    """When a rank is called out no more, what is below stays where it is; the end needs no room."""
    state, snapshot = crowd(64)
    before = room_called_out(snapshot, compact=False)
    state.exited(5, "killed by SIGKILL", 5.4)
    room = room_called_out(state.snapshot(5.5, "Cell In[1]", range(64), 0.001), compact=False)
    assert room > before
    assert f"min-height:{room}px" in render(snapshot, room=room)
    assert f"min-height:{room}px" not in render(snapshot, room=room, final=True)
    assert room_called_out(crowd(16)[1], compact=False) == 0
