"""Folding equal output of several ranks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbsync.kernel.output.fold import Entry, Folder, Group

Shown = list[tuple[tuple[int, ...], object]]
RANKS = 3
#: Entries (rank, key) and closings (rank, None), each some time after the one before.
EVENTS = st.lists(
    st.tuples(
        st.integers(0, RANKS - 1),
        st.none() | st.sampled_from("abcd"),
        st.sampled_from([0.0, 0.01, 0.04, 0.2]),
    )
)


def say(folder: Folder, rank: int, keys: Iterable[object], now: float = 0.0) -> None:
    """Add one entry for each key."""
    for key in keys:
        folder.add(rank, Entry(key, payload=rank), now)


def shown(groups: Iterable[Group]) -> Shown:
    """Reduce groups to ranks and keys."""
    return [(ranks, entry.key) for ranks, entry in groups]


def test_one_rank_is_never_held() -> None:
    """With one rank, each entry is shown at once."""
    folder = Folder([0])
    say(folder, 0, "ab")
    assert shown(folder.ready(0.0)) == [((0,), "a"), ((0,), "b")]
    assert folder.next_deadline() is None


def test_equal_heads_fold_at_once() -> None:
    """When the last rank says the same, one group of all ranks is shown, without waiting."""
    folder = Folder([0, 1, 2])
    say(folder, 1, "x")
    say(folder, 0, "x")
    assert folder.ready(0.0) == []
    say(folder, 2, "x")
    assert folder.ready(0.0) == [((0, 1, 2), Entry("x", payload=0))]


def test_what_belongs_together_stays_together() -> None:
    """The lines of one print are not woven into those of another rank, where they differ."""
    folder = Folder([0, 1])
    for rank in (0, 1):
        for line in (f"[[{rank}", f" [{rank}", f" [{rank}]]", "same"):
            folder.add(rank, Entry(line, rank, line.startswith(" ")), 0.0)
    first, second = ([((rank,), text.format(rank)) for text in ("[[{}", " [{}", " [{}]]")] for rank in (0, 1))
    assert shown(folder.ready(0.0)) == [*first, *second, ((0, 1), "same")]


def test_own_output_before_the_same() -> None:
    """Ranks that differ first and agree later show their own entries, then fold."""
    folder = Folder([0, 1])
    say(folder, 0, ["a", "same"])
    say(folder, 1, ["b", "same"])
    assert shown(folder.ready(0.0)) == [((0,), "a"), ((1,), "b"), ((0, 1), "same")]


def test_waits_for_a_rank_that_has_it_further_down() -> None:
    """An entry that another rank has behind its own output is shown after that output, folded."""
    folder = Folder([0, 1])
    say(folder, 0, ["same"])
    say(folder, 1, ["b", "same"])
    assert shown(folder.ready(0.0)) == [((1,), "b"), ((0, 1), "same")]


def test_silent_rank_holds_only_so_long() -> None:
    """A rank that says nothing delays the others by the hold, and next_deadline says until when."""
    folder = Folder([0, 1], hold=0.5)
    say(folder, 0, "x", now=10.0)
    assert folder.ready(10.4) == []
    assert folder.next_deadline() == 10.5
    assert shown(folder.ready(10.5)) == [((0,), "x")]
    assert folder.next_deadline() is None


def test_overdue_entry_takes_the_ranks_that_have_it() -> None:
    """An overdue entry is shown for all ranks that have it by then."""
    folder = Folder([0, 1, 2], hold=0.1)
    say(folder, 0, "x", now=0.0)
    say(folder, 2, "x", now=0.09)
    assert shown(folder.ready(0.1)) == [((0, 2), "x")]


def test_overdue_entry_lets_earlier_output_go_first() -> None:
    """If a rank has an overdue entry further down, its earlier output goes first, so that both still fold."""
    folder = Folder([0, 1, 2], hold=0.1)
    say(folder, 0, ["same"], now=0.0)
    say(folder, 1, ["b", "c", "same"], now=0.05)
    assert shown(folder.ready(0.1)) == [((1,), "b"), ((1,), "c"), ((0, 1), "same")]


def test_cycle_is_broken_by_the_oldest() -> None:
    """Two entries that wait for each other are opened by showing the older one apart."""
    folder = Folder([0, 1], hold=0.1)
    say(folder, 1, "ba", now=0.0)
    say(folder, 0, "ab", now=0.01)
    assert folder.ready(0.05) == []
    assert shown(folder.ready(0.1)) == [((1,), "b"), ((0, 1), "a")]
    assert shown(folder.ready(0.11)) == [((0,), "b")]


def test_cycle_behind_an_overdue_entry_is_broken_by_its_own_oldest() -> None:
    """If an overdue entry waits for a circle that it is no part of, the oldest of the circle goes first."""
    folder = Folder([0, 1, 2], hold=0.1)
    say(folder, 0, "x", now=0.0)
    say(folder, 2, "qp", now=0.01)
    say(folder, 1, "pqx", now=0.02)
    assert shown(folder.ready(0.1)) == [((2,), "q"), ((1, 2), "p"), ((1,), "q"), ((0, 1), "x")]


def test_group_is_held_from_its_first_entry() -> None:
    """The hold of a group counts from the oldest entry in it, whichever rank said it."""
    folder = Folder([0, 1, 2], hold=0.1)
    say(folder, 1, "yx", now=0.0)
    say(folder, 0, "x", now=0.05)
    assert shown(folder.ready(0.1)) == [((1,), "y"), ((0, 1), "x")]


def test_closed_rank_is_not_waited_for() -> None:
    """A rank that finished and has nothing left delays nobody."""
    folder = Folder([0, 1, 2])
    say(folder, 0, "x")
    folder.close(1)
    assert folder.ready(0.0) == []
    folder.close(2)
    assert shown(folder.ready(0.0)) == [((0,), "x")]


def test_closed_rank_still_folds_what_it_said() -> None:
    """Closing a rank keeps what it said before in the fold."""
    folder = Folder([0, 1])
    say(folder, 1, "x")
    folder.close(1)
    assert folder.ready(0.0) == []
    say(folder, 0, "x")
    assert shown(folder.ready(0.0)) == [((0, 1), "x")]


def test_repeated_lines_fold_one_by_one() -> None:
    """Equal lines in a row are counted, not merged."""
    folder = Folder([0, 1])
    say(folder, 0, "xxx")
    say(folder, 1, "xx")
    assert shown(folder.ready(0.0)) == [((0, 1), "x"), ((0, 1), "x")]
    assert shown(folder.flush()) == [((0,), "x")]


def test_flush_folds_what_matches() -> None:
    """flush shows everything at once, in spite of a silent rank, and still folds."""
    folder = Folder([0, 1, 2])
    say(folder, 0, ["a", "same"])
    say(folder, 1, ["b", "same"])
    assert shown(folder.flush()) == [((0,), "a"), ((1,), "b"), ((0, 1), "same")]
    assert folder.flush() == []


@given(EVENTS)
def test_nothing_is_lost_or_reordered(events: list[tuple[int, str | None, float]]) -> None:
    """Whatever comes when, each rank's entries are shown once, in order, no later than the hold."""
    folder = Folder(range(RANKS), hold=0.1)
    said: dict[int, list[str]] = {rank: [] for rank in range(RANKS)}
    closed: set[int] = set()
    groups: list[Group] = []
    now = 0.0
    for rank, key, after in events:
        now += after
        if key is None:
            closed.add(rank)
            folder.close(rank)
        elif rank not in closed:
            said[rank].append(key)
            say(folder, rank, key, now)
        groups += folder.ready(now)
        deadline = folder.next_deadline()
        assert deadline is None or now < deadline <= now + 0.1
    groups += folder.flush()
    assert folder.next_deadline() is None
    for rank, keys in said.items():
        assert [entry.key for ranks, entry in groups if rank in ranks] == keys
    assert all(list(ranks) == sorted(set(ranks)) for ranks, _ in groups)


@given(EVENTS)
def test_distinct_output_of_closed_ranks_is_not_held(events: list[tuple[int, str | None, float]]) -> None:
    """Once all ranks are closed, entries that only one rank has are all shown at once, the ranks taking turns."""
    folder = Folder(range(RANKS))
    spoken: dict[int, list[tuple[str, int]]] = {rank: [] for rank in range(RANKS)}
    for position, (rank, key, _) in enumerate(events):
        if key is not None:
            say(folder, rank, [(key, position)])
            spoken[rank].append((key, position))
    for rank in range(RANKS):
        folder.close(rank)
    turns = sorted((turn, rank) for rank, said in spoken.items() for turn in range(len(said)))
    assert shown(folder.ready(0.0)) == [((rank,), spoken[rank][turn]) for turn, rank in turns]


@given(st.lists(st.sampled_from("abc"), max_size=20), st.randoms(use_true_random=False))
def test_equal_streams_fold_fully(keys: list[str], random: Random) -> None:
    """Ranks that say the same within the hold give one group of all for each entry, however interleaved."""
    turns = [rank for rank in range(4) for _ in keys]
    random.shuffle(turns)
    folder = Folder(range(4))
    left = {rank: iter(keys) for rank in range(4)}
    groups: list[Group] = []
    for rank in turns:
        say(folder, rank, next(left[rank]))
        groups += folder.ready(0.05)
    assert shown(groups) == [((0, 1, 2, 3), key) for key in keys]


@pytest.mark.parametrize(("ranks", "entries"), [(2, 20_000), (64, 250)])
@pytest.mark.parametrize("equal", [True, False])
def test_long_backlog_is_fast(ranks: int, entries: int, equal: bool) -> None:
    """A long backlog on one rank, and then the same length from the others, costs time in proportion only."""
    folder = Folder(range(ranks))
    started = time.perf_counter()
    groups = 0
    for rank in range(ranks):
        for number in range(entries):
            say(folder, rank, [number if equal else (rank, number)])
            groups += len(folder.ready(0.0))
    groups += len(folder.flush())
    assert groups == (entries if equal else entries * ranks)
    assert time.perf_counter() - started < 20  # what is quadratic takes minutes
