"""World beside Accelerate on the same ranks: the same where Accelerate is right, and what differs where it is not."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import operations

from nbsync.errors import UsageError
from nbsync.worker.control.split import split
from nbsync.worker.control.world import World

SAME_SIGNATURE = [
    "wait_for_everyone",
    "main_process_first",
    "local_main_process_first",
    "split_between_processes",
    "on_main_process",
    "on_local_main_process",
    "on_last_process",
    "on_process",
    "on_local_process",
    "set_trigger",
    "check_trigger",
    "gather",
    "reduce",
    "pad_across_processes",
    "unwrap_model",
]


@pytest.fixture
def alone(plain: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that no launcher started; Accelerate forgets it afterwards, or ranks would inherit that."""
    yield plain
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("name", SAME_SIGNATURE)
def test_a_call_that_accelerate_takes_is_taken(name: str) -> None:
    """Every argument of Accelerate's method is there, in its place and with its default; more only come behind."""
    mine, theirs = (list(inspect.signature(getattr(cls, name)).parameters.values()) for cls in (World, Accelerator))
    if name == "unwrap_model":  # the layers that Accelerate can be told to keep come off
        theirs = theirs[:2]
    assert [p.name for p in mine[: len(theirs)]] == [p.name for p in theirs]
    for ours, original in zip(mine, theirs, strict=False):
        # `on_last_process` alone has no default for the function in Accelerate
        assert ours.default == original.default or original.default is inspect.Parameter.empty


@pytest.mark.parametrize("options", [{}, {"sep": "-"}, {"end": "!"}, {"sep": "", "end": "", "flush": True}])
def test_print_takes_what_print_takes(run_ranks: Any, options: dict[str, Any]) -> None:
    """`sep`, `end`, `file` and `flush` do what they do in `print`, on the ranks where Accelerate prints."""

    def rank_main() -> Any:
        found = []
        for each in (World(), PartialState(cpu=True)):
            file = io.StringIO()
            each.print("a", 1, file=file, **options)
            with redirect_stdout(io.StringIO()) as stdout:
                each.print("a", 1, **options)
            found.append((file.getvalue(), stdout.getvalue()))
        return found

    by_rank = run_ranks(rank_main, 4, local_size=2)
    assert all(mine == theirs for mine, theirs in by_rank)
    assert [mine[0] != "" for mine, _ in by_rank] == [True, False, True, False]


def test_decorated_functions_run_where_accelerates_do(run_ranks: Any) -> None:
    """All five decorators, with and without brackets, with arguments and return values; None elsewhere."""

    def results(each: Any) -> list[Any]:
        def add(a: int, b: int = 0) -> int:
            return a + b

        bracketless = [each.on_main_process(add), each.on_local_main_process(add), each.on_last_process(add)]
        indexed = [each.on_process(add, index) for index in range(4)]
        local = [each.on_local_process(add, index) for index in range(2)]
        factories = [each.on_process(process_index=2)(add), each.on_local_process(local_process_index=1)(add)]
        return [decorated(1, b=2) for decorated in (*bracketless, *indexed, *local, *factories)]

    def rank_main() -> Any:
        return results(World()), results(PartialState(cpu=True)), results(Accelerator(cpu=True))

    for mine, of_state, of_accelerator in run_ranks(rank_main, 4, local_size=2):
        assert mine == of_state == of_accelerator
        assert {3, None} >= set(mine)


def test_on_process_given_twice(run_ranks: Any) -> None:
    """Two of them on one function run it where both say, so nowhere for two ranks; one each runs on both ranks."""

    def rank_main() -> Any:
        found = []
        for each in (World(), PartialState(cpu=True)):

            def answer() -> int:
                return 1

            stacked = each.on_process(process_index=1)(each.on_process(process_index=0)(answer))
            same = each.on_process(process_index=1)(each.on_process(process_index=1)(answer))
            apart = [each.on_process(answer, process_index=index)() for index in range(2)]
            found.append((stacked(), same(), apart))
        return found

    (first, of_accelerate), (second, too) = run_ranks(rank_main)
    assert first == of_accelerate == (None, None, [1, None])
    assert second == too == (None, 1, [None, 1])


def test_an_index_that_does_not_exist_is_an_error_instead_of_silence(run_ranks: Any) -> None:
    """Accelerate runs such a function nowhere, and says nothing; here every rank is told the valid range."""

    def rank_main() -> Any:
        assert PartialState(cpu=True).on_process(lambda: 1, process_index=2)() is None
        with pytest.raises(UsageError) as info:
            World().on_process(lambda: 1, process_index=2)
        return str(info.value)

    assert run_ranks(rank_main) == ["process_index is 2: expected a number from 0 to 1"] * 2


def test_in_a_world_of_one_every_index_is_this_process(alone: pytest.MonkeyPatch) -> None:
    """As with Accelerate. A notebook may so define what its workers will run, and the index is checked there."""
    world = World()
    on_second, on_fourth = world.on_process(process_index=1), world.on_process(process_index=3)
    on_local = world.on_local_process(local_process_idx=1)
    assert on_second(lambda: 1)() == on_local(lambda: 1)() == on_fourth(lambda: 1)() == 1
    assert PartialState(cpu=True).on_process(lambda: 1, process_index=1)() == 1
    for index in (None, -1):
        with pytest.raises(UsageError, match=f"process_index is {index}: expected a rank"):
            world.on_process(print, index)
    alone.setenv("WORLD_SIZE", "2")
    alone.setenv("RANK", "1")
    assert on_second(lambda: 1)() == on_local(lambda: 1)() == 1
    with pytest.raises(UsageError, match="process_index is 3: expected a number from 0 to 1"):
        on_fourth(lambda: 1)()


def test_nested_turns_run_in_accelerates_order(run_ranks: Any, Notes: Any) -> None:
    """Rank 0 has been in the inner block before anybody else comes there; all come out."""

    def rank_main() -> Any:
        world, state = World(), PartialState(cpu=True)
        notes = Notes(world)
        found = []
        for name, each in (("world", world), ("state", state)):
            with each.main_process_first(), each.main_process_first():
                found.append(notes.has(f"0 was in {name}'s"))
                if world.rank == 0:
                    notes.leave(f"0 was in {name}'s")
            each.wait_for_everyone()
        return found

    assert run_ranks(rank_main, 3) == [[False, False], [True, True], [True, True]]


def test_several_ranks_set_a_trigger_at_once(run_ranks: Any) -> None:
    """However many ranks set it, the next check is true everywhere, once; the check after it is false."""

    def rank_main() -> Any:
        found = []
        for each in (World(), Accelerator(cpu=True)):
            rank = each.process_index
            answers = []
            for setters in ({0, 1, 2}, {1, 2}, set(), {0}):
                if rank in setters:
                    each.set_trigger()
                    each.set_trigger()
                answers += [each.check_trigger(), each.check_trigger()]
            found.append(answers)
        return found

    expected = [True, False, True, False, False, False, True, False]
    found = run_ranks(rank_main, 3)
    assert found == [[expected, expected]] * 3, repr(found)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("apply_padding", [False, True])
def test_tensors_are_shared_out_as_by_accelerate(run_ranks: Any, length: int, apply_padding: bool) -> None:
    """Also with padding, for which Accelerate needs a collective and more than one item a rank."""

    def rank_main() -> Any:
        inputs = torch.arange(float(length))
        with World().split_between_processes(inputs, apply_padding) as mine:
            pass
        with PartialState(cpu=True).split_between_processes(inputs, apply_padding) as theirs:
            return mine.tolist(), theirs.tolist()

    for mine, theirs in run_ranks(rank_main, 2):
        assert mine == theirs


@pytest.mark.parametrize("length", [0, 1, 3, 4])
def test_a_dataset_is_shared_out_as_by_accelerate(run_ranks: Any, length: int) -> None:
    """A `datasets.Dataset` stays one; Accelerate cannot pad an empty one."""
    from datasets import Dataset

    dataset = Dataset.from_dict({"x": list(range(length))})

    def rank_main() -> Any:
        found = []
        for apply_padding in (False, True) if length else (False,):
            with World().split_between_processes(dataset, apply_padding) as mine:
                assert isinstance(mine, Dataset)
            with PartialState(cpu=True).split_between_processes(dataset, apply_padding) as theirs:
                found.append((mine["x"][:], theirs["x"][:]))
        return found

    for found in run_ranks(rank_main):
        assert all(mine == theirs for mine, theirs in found)
    assert len(split(dataset, 1, 2, apply_padding=True)) == -(-length // 2)


def test_inputs_that_accelerate_refuses_or_damages_are_shared_out(run_ranks: Any) -> None:
    """Padding of tuples and of nothing, an empty dict, and the caller's dict: errors or changes in Accelerate."""

    def rank_main() -> Any:
        world, state = World(), PartialState(cpu=True)
        for inputs, error in (((1, 2, 3), TypeError), ([], IndexError), ({}, IndexError)):
            if inputs or world.rank or inputs == []:
                with pytest.raises(error), state.split_between_processes(inputs, apply_padding=True):
                    pass
            with world.split_between_processes(inputs, apply_padding=True) as share:
                assert type(share) is type(inputs)
        changed, kept = {"x": [1, 2]}, {"x": [1, 2]}
        with state.split_between_processes(changed), world.split_between_processes(kept):
            return changed, kept

    assert run_ranks(rank_main) == [({"x": [1]}, {"x": [1, 2]}), ({"x": [2]}, {"x": [1, 2]})]


def test_broadcasts_are_accelerates(run_ranks: Any) -> None:
    """Tensors and object lists, from either rank."""

    def rank_main() -> Any:
        world = World()
        PartialState(cpu=True)
        found = []
        for source in range(2):
            tensors = [{"a": torch.full((2,), 10.0 * source + world.rank)} for _ in range(2)]
            lists = [[world.rank, {"rank": world.rank}] for _ in range(2)]
            mine, theirs = world.broadcast(tensors[0], source), operations.broadcast(tensors[1], source)
            assert mine["a"].equal(theirs["a"])
            assert world.broadcast_object_list(lists[0], source) == operations.broadcast_object_list(lists[1], source)
            found.append((mine["a"].tolist(), lists[0]))
        return found

    expected = [([0.0, 0.0], [0, {"rank": 0}]), ([11.0, 11.0], [1, {"rank": 1}])]
    assert run_ranks(rank_main) == [expected, expected]


def test_gathered_objects_are_accelerates_but_for_dicts(run_ranks: Any) -> None:
    """Lists are joined in the order of the ranks. Of dicts Accelerate leaves only the keys."""

    def rank_main() -> Any:
        world = World()
        PartialState(cpu=True)
        objects = [world.rank, [world.rank]]
        assert world.gather_object(objects) == operations.gather_object(objects)
        assert operations.gather_object({"rank": world.rank}) == ["rank", "rank"]
        return world.gather_object({"rank": world.rank})

    assert run_ranks(rank_main) == [[{"rank": 0}, {"rank": 1}]] * 2


def test_a_reduction_sums_wherever_it_is_called(run_ranks: Any) -> None:
    """`Accelerator.reduce` sums by default and `accelerate.utils.reduce` averages; here there is one default."""

    def rank_main() -> Any:
        ones = torch.ones(2)
        accelerator = Accelerator(cpu=True)
        return [each.tolist() for each in (World().reduce(ones), accelerator.reduce(ones), operations.reduce(ones))]

    assert run_ranks(rank_main) == [[[2.0, 2.0], [2.0, 2.0], [1.0, 1.0]]] * 2


@pytest.mark.parametrize("world", ["World", "Accelerator"])
def test_waiting_alone_is_no_wait(alone: pytest.MonkeyPatch, world: str) -> None:
    """In a world of one `wait_for_everyone` returns at once, and turns and triggers are this process's own."""
    each: Any = World() if world == "World" else Accelerator(cpu=True)
    each.wait_for_everyone()
    with each.main_process_first(), each.local_main_process_first():
        each.set_trigger()
    assert (each.check_trigger(), each.check_trigger()) == (True, False)
