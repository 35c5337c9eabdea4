"""wait_for_everyone: who is waited for, who is missing, and what is said about it."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d as c10d

from nbsync.errors import BarrierTimeout, UsageError
from nbsync.worker.control import barrier
from nbsync.worker.control.notes import Notes, PageNotes, StoreNotes
from nbsync.worker.control.report import set_reporter
from nbsync.worker.control.world import World


def test_wait_for_everyone_waits(run_ranks: Any, Notes: Any) -> None:
    """Nobody leaves the barrier before the last rank has come."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        if world.rank == 0:
            notes.await_all("1 is about to wait")
            notes.leave("0 came")
        else:
            notes.leave("1 is about to wait")
        world.wait_for_everyone()
        return notes.has("0 came")

    assert run_ranks(rank_main) == [True, True]


@pytest.mark.parametrize("name", [30, 0, 1.5, True])
def test_a_name_that_is_none(plain: pytest.MonkeyPatch, name: Any) -> None:
    """A limit in the place of the name is refused, and not waited without limit for; in a world of one too."""
    with pytest.raises(UsageError, match=f"name is a string; a limit is timeout={name}"):
        World().wait_for_everyone(name)


@pytest.mark.parametrize("timeout", ["3", -1, True, float("nan"), float("inf")])
def test_a_timeout_that_is_none(plain: pytest.MonkeyPatch, timeout: Any) -> None:
    """It is refused where it is given, with what it may be."""
    with pytest.raises(UsageError, match=f"from 0 up or None, got {timeout!r}"):
        World().wait_for_everyone(timeout=timeout)
    with pytest.raises(UsageError, match=f"positive number of seconds or None, got {timeout!r}"):
        World(timeout=timeout)


def test_a_barrier_that_times_out_names_who_is_missing(run_ranks: Any, Notes: Any, group_works: Any) -> None:
    """Those who wait get the missing ranks and the barrier's name; later on all can meet again."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        message = ""
        if world.rank in (0, 2):
            with pytest.raises(BarrierTimeout) as info:
                world.wait_for_everyone("checkpoint", timeout=0.05)
            message = str(info.value)
            notes.leave(f"{world.rank} gave up")
        else:
            notes.await_all("0 gave up", "2 gave up")
        world.wait_for_everyone(timeout=20)
        return message, group_works(world)

    first, second, third, fourth = run_ranks(rank_main, 4)
    assert "ranks 1,3 did not arrive at 'checkpoint' within 0.05 s" in (first[0], third[0])
    assert {"1", "3"} <= set(first[0]) & set(third[0])
    assert all(works for _, works in (first, second, third, fourth))


def test_a_rank_that_gave_up_is_missed_by_the_next(run_ranks: Any, Notes: Any, group_works: Any) -> None:
    """A late rank does not slip through a barrier that the other one has left."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        if world.rank == 1:
            notes.await_all("0 gave up")
        with pytest.raises(BarrierTimeout, match=f"rank {1 - world.rank} did not arrive"):
            world.wait_for_everyone(timeout=0.05)
        if world.rank == 0:
            notes.leave("0 gave up")
        return group_works(world)

    assert run_ranks(rank_main) == [True, True]


def test_a_barrier_needs_no_timeout_on_every_rank(run_ranks: Any, group_works: Any) -> None:
    """A rank with a timeout and one without meet, many times in a row."""

    def rank_main() -> Any:
        world = World()
        for turn in range(20):
            world.wait_for_everyone(timeout=20 if (turn + world.rank) % 2 else None)
        return group_works(world)

    assert run_ranks(rank_main) == [True, True]


def test_a_rank_interrupted_in_a_barrier_has_left_it(run_ranks: Any, Notes: Any, group_works: Any) -> None:
    """After an interrupt the rank counts as missing, and the next barrier is whole again."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        _, process_id = world.gather_object(os.getpid())[::-1]
        if world.rank == 0:
            with pytest.raises(KeyboardInterrupt):
                world.wait_for_everyone(timeout=20)
            notes.leave("0 was interrupted")
        else:
            store = c10d._get_default_store()
            while not store.get(barrier.KEY).endswith(b":0"):
                pass
            os.kill(process_id, signal.SIGINT)
            notes.await_all("0 was interrupted")
            with pytest.raises(BarrierTimeout, match="rank 0 did not arrive"):
                world.wait_for_everyone(timeout=0.05)
            notes.leave("1 gave up")
        notes.await_all("1 gave up")
        world.wait_for_everyone(timeout=20)
        return group_works(world)

    assert run_ranks(rank_main) == [True, True]


def test_a_rank_that_gives_up_leaves_those_who_wait_for_ever(run_ranks: Any, Notes: Any, group_works: Any) -> None:
    """A rank without a timeout goes on waiting when another gives up; when that comes again they meet."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        if world.rank == 0:
            notes.leave("0 is about to wait")
            world.wait_for_everyone()
        else:
            notes.await_all("0 is about to wait")
            if world.rank == 1:
                with pytest.raises(BarrierTimeout, match="2 did not arrive"):
                    world.wait_for_everyone(timeout=0.05)
                notes.leave("1 gave up")
            notes.await_all("1 gave up")
            world.wait_for_everyone(timeout=20)
        return group_works(world)

    assert run_ranks(rank_main, 3) == [True, True, True]


def test_barriers_with_and_without_timeouts_stay_in_step(run_ranks: Any, group_works: Any) -> None:
    """However often ranks give up and come again, they leave each barrier together and none is skipped."""

    def rank_main() -> Any:
        world = World()
        draw = random.Random(world.rank)
        gave_up = 0
        for turn in range(60):
            while True:
                try:
                    world.wait_for_everyone(timeout=draw.choice([None, 0.0, 0.001, 0.005, 5.0]))
                except BarrierTimeout:
                    gave_up += 1
                    continue
                break
            if turn % 20 == 0:
                assert world.gather_object(turn) == [turn] * world.size
        return group_works(world), gave_up

    found = run_ranks(rank_main, 3)
    assert [works for works, _ in found] == [True] * 3
    assert sum(gave_up for _, gave_up in found), "nobody gave up, so nothing was tried"


class InterruptedStore(HashStore):
    """A store in which the second change is interrupted just after it was made."""

    changes = 0

    def compare_set(self, key: str, expected: str, wanted: str) -> bytes:
        found = super().compare_set(key, expected, wanted)
        self.changes += 1
        if self.changes == 2:
            raise KeyboardInterrupt
        return found


def arrival_of(store: Any, rank: int, step: int) -> barrier._Arrival:
    return barrier._Arrival(store, StoreNotes(store), rank, 2, step)


def test_an_arrival_can_be_taken_back_at_any_moment() -> None:
    """A rank interrupted right after its note was made, before it knows, leaves no note behind."""
    store = InterruptedStore()
    arrival = arrival_of(store, 0, step=0)
    with pytest.raises(KeyboardInterrupt):
        arrival.enter()
    assert store.get(barrier.KEY) == b"0::0"
    assert arrival.withdraw()
    assert store.get(barrier.KEY) == b"0::"


def test_nobody_gives_up_once_all_have_come() -> None:
    """The last arrival and a timeout cannot both win: who has seen everybody come cannot be left alone."""
    store = HashStore()
    first, second = (arrival_of(store, rank, step=4) for rank in (0, 1))
    assert first.missing() == [1]
    assert second.missing() == []
    assert not first.withdraw()
    assert first.missing() == []
    second.clear()
    assert arrival_of(store, 1, step=5).missing() == [0]


@pytest.mark.parametrize(
    ("comes", "told"),
    [
        ([], "rank 2 did not arrive at 'end' within 5 s"),
        ([2], "rank 1 left 'end' again before all had arrived"),
    ],
)
def test_who_gave_up_had_arrived(monkeypatch: Any, comes: list[int], told: str) -> None:
    """Rank 1 is seen, and gives up: those who still wait for another one do not say that it did not arrive."""
    store, clock = HashStore(), SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None)
    arrivals = [barrier._Arrival(store, StoreNotes(store), rank, 3, step=0) for rank in range(3)]

    def looks() -> Iterator[float]:
        arrivals[1].enter()
        yield 0.0
        arrivals[1].withdraw()
        for rank in comes:
            arrivals[rank].enter()
        clock.monotonic = lambda: 5.0
        yield 0.0

    monkeypatch.setattr(barrier, "pauses", looks)
    monkeypatch.setattr(barrier, "time", clock)
    with pytest.raises(BarrierTimeout) as info:
        barrier._wait_for_arrivals(arrivals[0], "end", 5.0)
    assert str(info.value) == told


def notes_in(kind: str, store: Any, folder: Path, life: int = 0) -> Notes:
    return StoreNotes(store) if kind == "store" else PageNotes(str(folder / "barrier"), 2, life)


@pytest.mark.parametrize("kind", ["store", "page"])
def test_a_note_of_another_step_is_no_arrival(kind: str, tmp_path: Path) -> None:
    """A rank that is just leaving the last barrier, or left it in a failure, has not come to this one."""
    store = HashStore()
    notes = notes_in(kind, store, tmp_path)
    notes.put(1, 3)
    store.set(barrier.KEY, barrier._Tally(3, frozenset({0, 1}), is_sealed=True).encode())
    arrival = barrier._Arrival(store, notes, 0, 2, step=4)
    assert arrival.missing() == [1]
    notes.put(1, 4)
    notes.take_back(1)
    assert arrival.missing() == [1]
    notes.put(1, 4)
    assert arrival.missing() == []


def test_a_note_of_an_earlier_life_is_void(tmp_path: Path) -> None:
    """After a heal the steps begin at zero again; what was noted before says nothing of them."""
    store = HashStore()
    notes_in("page", store, tmp_path, life=0).put(1, 4)
    assert notes_in("page", store, tmp_path, life=1).here([1], 4) == set()
    assert notes_in("page", store, tmp_path, life=0).here([1], 4) == {1}


def test_barriers_are_reported_with_the_users_line(run_ranks: Any) -> None:
    """The reporter hears of each barrier's begin and end, with its name and the line that called it."""

    def rank_main() -> Any:
        events: list[tuple[str, str, str]] = []
        set_reporter(
            SimpleNamespace(
                barrier_entered=lambda name, site: events.append(("in", name, site)),
                barrier_left=lambda name, site, passed: events.append(("out" if passed else "gave up", name, site)),
            )
        )
        world = World()
        world.wait_for_everyone("epoch")
        with world.main_process_first():
            events.append(("body", "", ""))
        return events

    lines = Path(__file__).read_text().splitlines()
    number = 1 + lines.index('        world.wait_for_everyone("epoch")')
    epoch = f"test_barrier.py, line {number}"
    for rank, events in enumerate(run_ranks(rank_main)):
        assert events[:2] == [("in", "epoch", epoch), ("out", "epoch", epoch)]
        kinds = [(kind, name) for kind, name, _ in events[2:]]
        waits = [("in", "main_process_first"), ("out", "main_process_first")]
        assert kinds == ([("body", ""), *waits] if rank == 0 else [*waits, ("body", "")])
        assert all("with world.main_process_first" in lines[line_of(site)] for _, _, site in events[2:] if site)


def line_of(site: str) -> int:
    return int(site.rpartition(" ")[2]) - 1


def test_a_missed_barrier_is_reported_as_left(run_ranks: Any) -> None:
    """The reporter also hears of the end of a barrier that timed out."""

    def rank_main() -> Any:
        events: list[str] = []
        set_reporter(
            SimpleNamespace(
                barrier_entered=lambda *_: events.append("in"),
                barrier_left=lambda name, site, passed: events.append("passed" if passed else "gave up"),
            )
        )
        world = World()
        if world.rank == 0:
            world.set_trigger()
        world.check_trigger()
        if world.rank == 0:
            with pytest.raises(BarrierTimeout):
                world.wait_for_everyone(timeout=0.01)
        return events

    assert run_ranks(rank_main) == [["in", "gave up"], []]
