"""main_process_first and local_main_process_first: the order, and what happens when the first rank fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from nbsync.errors import MainProcessFailed, UsageError
from nbsync.worker.control.world import World


def test_the_main_process_goes_first(run_ranks: Any, Notes: Any) -> None:
    """The others come in when rank 0 has finished, although they were there long before."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        if world.rank != 0:
            notes.leave(f"{world.rank} waits")
        with world.main_process_first():
            if world.rank == 0:
                notes.await_all("1 waits", "2 waits", "3 waits")
                notes.leave("done")
            return notes.has("done")

    assert run_ranks(rank_main, 4) == [True] * 4


@pytest.mark.parametrize("turn", ["main_process_first", "local_main_process_first"])
@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt("boom"), SystemExit("boom")])
def test_if_the_main_process_fails_the_others_are_told(
    run_ranks: Any, turn: str, error: BaseException, group_works: Any
) -> None:
    """Rank 0 gets its own error, the others one that names type, message and rank; the group works on."""

    def rank_main() -> Any:
        world = World()
        try:
            with getattr(world, turn)():
                if world.rank == 0:
                    raise error
                raise AssertionError("this block must not run")
        except (type(error), MainProcessFailed) as caught:
            return type(caught), str(caught), group_works(world)

    first, *others = run_ranks(rank_main, 4)
    assert first == (type(error), "boom", True)
    for kind, message, works in others:
        assert kind is MainProcessFailed
        assert f"rank 0 raised {type(error).__name__}: boom" in message
        assert works


def test_an_error_without_a_message_is_named(run_ranks: Any) -> None:
    """The type alone is told when there is no more to say."""

    def rank_main() -> Any:
        try:
            with World().main_process_first():
                raise RuntimeError
        except RuntimeError as caught:
            return str(caught)

    assert "rank 0 raised RuntimeError;" in run_ranks(rank_main)[1]


def test_a_rank_that_fails_after_its_turn_hurts_nobody(run_ranks: Any, group_works: Any) -> None:
    """Who goes later does not make others wait, so its error is its own."""

    def rank_main() -> Any:
        world = World()
        failed = False
        try:
            with world.main_process_first():
                if world.rank == 2:
                    raise ValueError
        except ValueError:
            failed = True
        return failed, group_works(world)

    assert run_ranks(rank_main, 3) == [(False, True), (False, True), (True, True)]


def test_its_own_error_comes_before_a_lost_connection(run_ranks: Any) -> None:
    """If rank 0 cannot tell the others because the group is gone, it still raises its own error."""

    def rank_main() -> Any:
        world = World()
        world.wait_for_everyone()

        @world.main_process_first()
        def fail() -> None:
            dist.destroy_process_group()
            raise ValueError("first")

        if world.rank == 0:
            with pytest.raises(ValueError, match="first"):
                fail()
        return True

    assert run_ranks(rank_main, 2) == [True, True]


def test_turns_nest(run_ranks: Any, Notes: Any, group_works: Any) -> None:
    """Nobody enters the outer block before rank 0 has left it, inner ones included."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        if world.rank == 1:
            notes.leave("1 waits")
        with world.main_process_first():
            outer = notes.has("outer done")
            with World().main_process_first():
                inner = notes.has("outer done")
            with world.local_main_process_first():
                pass
            if world.rank == 0:
                notes.await_all("1 waits")
                notes.leave("outer done")
        with world.main_process_first():
            pass
        return outer, inner, group_works(world)

    assert run_ranks(rank_main) == [(False, False, True), (True, True, True)]


def test_a_failure_in_a_nested_turn_is_told_in_its_place(run_ranks: Any, group_works: Any) -> None:
    """When rank 0 survives the failure of an inner block, the others fail in that block and no other."""

    def rank_main() -> Any:
        world = World()
        ran: list[Any] = []
        with world.main_process_first():
            for number in range(3):
                try:
                    with world.main_process_first():
                        ran.append(number)
                        if world.rank == 0 and number == 1:
                            raise ValueError("inner")
                except (ValueError, MainProcessFailed) as error:
                    ran.append(str(error))
        return ran, group_works(world)

    (first, works), (second, works_too) = run_ranks(rank_main)
    assert first == [0, 1, "inner", 2]
    assert (second[0], second[2]) == (0, 2)
    assert "rank 0 raised ValueError: inner" in second[1]
    assert works
    assert works_too


def test_a_nested_failure_that_nobody_catches_ends_both_turns(run_ranks: Any, group_works: Any) -> None:
    """The error leaves both blocks on rank 0, the others never come in, and the next turn works."""

    def rank_main() -> Any:
        world = World()
        try:
            with world.main_process_first(), world.main_process_first():
                raise ValueError("deep")
        except (ValueError, MainProcessFailed) as error:
            kind = type(error)
        with world.main_process_first():
            pass
        return kind, group_works(world)

    assert run_ranks(rank_main) == [(ValueError, True), (MainProcessFailed, True)]


def test_each_node_has_its_own_first(run_ranks: Any, Notes: Any, group_works: Any) -> None:
    """Node 1 takes a turn that node 0 knows nothing of; its local rank 0 goes first."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        found = None
        if world.rank >= 2:
            if world.rank == 3:
                notes.leave("3 waits")
            with world.local_main_process_first():
                if world.rank == 2:
                    notes.await_all("3 waits")
                    notes.leave("done")
                found = notes.has("done")
        return found, group_works(world)

    assert run_ranks(rank_main, 4, local_size=2) == [(None, True), (None, True), (True, True), (True, True)]


def test_a_failing_local_main_process_tells_its_node_only(run_ranks: Any, group_works: Any) -> None:
    """The error on rank 2 reaches rank 3, and the other node goes on."""

    def rank_main() -> Any:
        world = World()
        message = ""
        try:
            with world.local_main_process_first():
                if world.rank == 2:
                    raise ValueError("disk full")
        except (ValueError, MainProcessFailed) as error:
            message = str(error)
        return message, group_works(world)

    found = run_ranks(rank_main, 4, local_size=2)
    assert [works for _, works in found] == [True] * 4
    assert [message for message, _ in found[:3]] == ["", "", "disk full"]
    assert "rank 2 raised ValueError: disk full" in found[3][0]


def test_a_local_turn_nests_in_a_global_one(run_ranks: Any, Notes: Any, group_works: Any) -> None:
    """On node 0 the inner turn is settled with the outer one; on node 1 rank 2 goes before rank 3."""

    def rank_main() -> Any:
        world = World()
        notes = Notes(world)
        for turn in range(2):
            with world.main_process_first(), world.local_main_process_first():
                if world.rank == 2:
                    notes.leave(f"2 was in {turn}")
                if world.rank == 3:
                    assert notes.has(f"2 was in {turn}")
        return group_works(world)

    assert run_ranks(rank_main, 4, local_size=2) == [True] * 4


def test_a_global_turn_in_a_local_one_is_an_error(run_ranks: Any) -> None:
    """Over several nodes this order would deadlock: every rank gets an error instead."""

    def rank_main() -> Any:
        world = World()
        try:
            with world.local_main_process_first(), world.main_process_first():
                return None
        except (UsageError, MainProcessFailed) as error:
            return type(error), "main_process_first inside local_main_process_first" in str(error)

    found = run_ranks(rank_main, 4, local_size=2)
    assert found == [(UsageError, True), (MainProcessFailed, True)] * 2
