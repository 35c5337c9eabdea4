"""Collectives over real gloo ranks, compared with Accelerate's where it defines what is right."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import operations

from nbsync.errors import UsageError
from nbsync.worker.control.nested import leaves, map_leaves
from nbsync.worker.control.world import World

Pair = namedtuple("Pair", ["left", "right"])

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]


def same(left: Any, right: Any) -> Any:
    """Whether two nested structures are alike, tensors by type, shape and values."""
    if isinstance(left, dict):
        return type(left) is type(right) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return left.dtype == right.dtype and left.shape == right.shape and left.equal(right)


def nested(rank: int) -> dict[str, Any]:
    """Tensors of all sorts: 0-d, empty, transposed, strided, expanded."""
    return {
        "list": [torch.full((2, 3), float(rank)), torch.arange(6).view(2, 3).t() + rank],
        "pair": Pair(torch.tensor(rank), torch.empty(0, 4)),
        "tuple": (torch.arange(10)[::3] * rank, torch.tensor([float(rank)]).expand(3)),
    }


def refused(call: Any) -> str:
    """The message of the UsageError that `call` raises."""
    with pytest.raises(UsageError) as info:
        call()
    return str(info.value)


@pytest.mark.parametrize("size", [2, 4])
def test_gather_is_accelerates(run_ranks: Any, size: int) -> None:
    """Nested tensors of every layout come back in the same structure, as from Accelerate; 0-d becomes 1-d."""

    def rank_main() -> Any:
        world, state = World(), PartialState(cpu=True)
        data = nested(world.rank)
        assert state.num_processes == size
        assert same(world.gather(data), operations.gather(data))
        return world.gather(data)

    first, *others = run_ranks(rank_main, size)
    assert all(same(first, other) for other in others)
    assert first["pair"].left.tolist() == list(range(size))
    assert first["pair"].right.shape == (0, 4)
    assert first["list"][0][:, 0].tolist() == [float(rank) for rank in range(size) for _ in range(2)]


@pytest.mark.gpu
def test_collectives_on_gpus(run_ranks: Any) -> None:
    """All of them on nested tensors of each rank's GPU, over NCCL; with one GPU it is a world of one."""
    size = min(2, torch.cuda.device_count())

    def rank_main() -> Any:
        world = World()
        world.join()
        last = world.size - 1
        data = map_leaves(lambda tensor: tensor.to(world.device), nested(world.rank))
        longer = torch.ones(world.rank + 1, 2, device=world.device)
        found = {
            "gather": world.gather(data),
            "mean": world.reduce({"x": longer[:1].t() * world.rank}, "mean"),
            "max": world.reduce([torch.tensor(world.rank, device=world.device)], "max"),
            "broadcast": world.broadcast(longer[:1].clone() * world.rank, last),
            "pad": world.pad_across_processes(longer, pad_index=9),
            "objects": world.gather_object(longer.sum().item()),
        }
        world.wait_for_everyone(timeout=20)
        assert all(tensor.device == world.device for path, tensor in leaves(found) if "objects" not in path)
        return map_leaves(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, found)

    for rank, found in enumerate(run_ranks(rank_main, size)):
        assert found["gather"]["pair"].left.tolist() == list(range(size))
        assert found["mean"]["x"].tolist() == [[(size - 1) / 2]] * 2
        assert found["max"][0].item() == size - 1
        assert found["broadcast"].tolist() == [[size - 1.0] * 2]
        assert found["pad"].tolist() == [[1.0, 1.0]] * (rank + 1) + [[9.0, 9.0]] * (size - rank - 1)
        assert found["objects"] == [2.0 * (rank + 1) for rank in range(size)]


def test_gather_keeps_the_dtype(run_ranks: Any) -> None:
    """Half precision, integers, booleans and complex numbers are gathered as what they are."""

    def rank_main() -> Any:
        world = World()
        return [world.gather(torch.tensor([world.rank]).to(dtype)) for dtype in DTYPES]

    for found in run_ranks(rank_main):
        assert all(same(each, torch.tensor([0, 1]).to(dtype)) for each, dtype in zip(found, DTYPES, strict=True))


def test_uneven_gather_is_an_error_on_every_rank(run_ranks: Any, group_works: Any) -> None:
    """All ranks see all shapes and what to do about it, nobody hangs, and the group works on."""

    def rank_main() -> Any:
        world = World()
        message = refused(lambda: world.gather(torch.zeros(world.rank + 1, 3)))
        return message, group_works(world)

    for message, works in run_ranks(rank_main):
        assert "rank 0: (1, 3) float32" in message
        assert "rank 1: (2, 3) float32" in message
        assert "pad_across_processes" in message
        assert works


@pytest.mark.parametrize("operation", ["gather", "reduce", "broadcast"])
def test_what_gloo_would_die_of_is_an_error(run_ranks: Any, operation: str, group_works: Any) -> None:
    """Another dtype, dimension, key or number of tensors on one rank raises everywhere."""

    def rank_main() -> Any:
        world = World()
        call = getattr(world, operation)
        odd = world.rank == 1
        messages = [
            refused(lambda: call(torch.zeros(2, dtype=torch.int64 if odd else torch.float32))),
            refused(lambda: call(torch.zeros((2, 1) if odd else (2,)))),
            refused(lambda: call({"b" if odd else "a": torch.zeros(2)})),
            refused(lambda: call([torch.zeros(2)] * (2 if odd else 1))),
            refused(lambda: call([] if odd else [torch.zeros(1)])),
        ]
        return messages, group_works(world)

    for messages, works in run_ranks(rank_main):
        assert "(2,) float32" in messages[0]
        assert "(2,) int64" in messages[0]
        assert "rank 1: ['b']: (2,) float32" in messages[2]
        assert "rank 1: nothing" in messages[4]
        assert not any("pad_across" in message for message in messages)
        assert works


def test_something_else_than_tensors_is_an_error_on_every_rank(run_ranks: Any, group_works: Any) -> None:
    """If one rank passes something else, the others do not wait for it: all are told who and where."""

    def rank_main() -> Any:
        world = World()
        data = {"x": [torch.zeros(1), "text" if world.rank == 1 else torch.zeros(1)]}
        calls = [world.gather, world.reduce, world.broadcast, world.pad_across_processes]
        return [refused(lambda call=call: call(data)) for call in calls], group_works(world)

    for messages, works in run_ranks(rank_main):
        assert all("rank 1 passed str at ['x'][1]" in message for message in messages)
        assert works


def test_gather_object_has_one_entry_per_rank(run_ranks: Any) -> None:
    """Objects stay whole, dicts too; lists and tuples are joined, unless a rank has something else."""

    def rank_main() -> Any:
        world = World()
        rank = world.rank
        return (
            world.gather_object({"rank": rank}),
            world.gather_object(f"r{rank}"),
            world.gather_object([rank, [rank]]),
            world.gather_object((rank,) * rank),
            world.gather_object([rank] if rank else None),
        )

    expected = ([{"rank": 0}, {"rank": 1}], ["r0", "r1"], [0, [0], 1, [1]], [1], [None, [1]])
    assert run_ranks(rank_main) == [expected, expected]


@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_reduce_is_accelerates(run_ranks: Any, reduction: str) -> None:
    """Sum, mean and maximum are Accelerate's, in new tensors; the input keeps its values."""

    def rank_main() -> Any:
        world = World()
        PartialState(cpu=True)
        data = [torch.tensor([1.0, -2.0]) * (world.rank + 1), {"t": torch.ones(2, 3).t() * world.rank}]
        found = world.reduce(data, reduction)
        assert same(found, operations.reduce(data, reduction))
        return found, data

    (found, _), (_, data) = run_ranks(rank_main)
    assert found[0].tolist() == {"sum": [3.0, -6.0], "mean": [1.5, -3.0], "max": [2.0, -2.0]}[reduction]
    assert data[0].tolist() == [2.0, -4.0]


def test_reduce_sums_by_default_and_scales(run_ranks: Any) -> None:
    """The default is "sum"; the scale is applied once, after the reduction."""

    def rank_main() -> Any:
        world = World()
        ones = torch.ones(2)
        return world.reduce(ones).tolist(), world.reduce(ones, "max", scale=0.5).tolist()

    assert run_ranks(rank_main) == [([2.0, 2.0], [0.5, 0.5])] * 2


def test_reduce_of_integers_has_a_true_mean(run_ranks: Any) -> None:
    """A mean of integers is a float, where Accelerate raises."""
    found = run_ranks(lambda: World().reduce(torch.tensor(World().rank), "mean"))
    assert [each.item() for each in found] == [0.5, 0.5]


def test_reduction_none_leaves_each_rank_its_own(run_ranks: Any) -> None:
    """ "none" does nothing, as Accelerate's documentation has it (its code sums); shapes may then differ."""
    found = run_ranks(lambda: World().reduce(torch.full((World().rank + 1,), 7.0), "none"))
    assert [each.tolist() for each in found] == [[7.0], [7.0, 7.0]]


def test_an_unknown_reduction_is_an_error() -> None:
    """The error names the reductions there are."""
    assert "'sum', 'mean', 'max', 'none'" in refused(lambda: World().reduce(torch.ones(1), "avg"))


@pytest.mark.parametrize("source", [0, 1])
def test_broadcast_overwrites_in_place(run_ranks: Any, source: int) -> None:
    """Every rank's own tensors get the source's values: 0-d, empty, transposed and trained ones too."""

    def rank_main() -> Any:
        world = World()
        base = torch.arange(6.0).view(2, 3) + 10 * world.rank
        parameter = torch.nn.Parameter(base.clone().t())
        data = {"list": [base.t(), torch.tensor(world.rank)], "pair": Pair(parameter, torch.empty(0, 2))}
        returned = world.broadcast(data, from_process=source)
        return returned is data, base, data["list"][1].item(), parameter.detach()

    expected = torch.arange(6.0).view(2, 3) + 10 * source
    for is_same, base, number, parameter in run_ranks(rank_main):
        assert is_same
        assert base.equal(expected)
        assert number == source
        assert parameter.equal(expected.t())


def test_broadcast_object_list_replaces_the_content(run_ranks: Any) -> None:
    """Every rank's own list holds the source's objects afterwards, also if it had another length."""

    def rank_main() -> Any:
        world = World()
        objects = [{"lr": 0.1}, "b"] if world.rank == 1 else [None]
        return world.broadcast_object_list(objects, from_process=1) is objects, objects

    assert run_ranks(rank_main) == [(True, [{"lr": 0.1}, "b"])] * 2


@pytest.mark.parametrize("source", [-1, 2])
def test_a_source_that_does_not_exist_is_an_error(run_ranks: Any, source: int) -> None:
    """Both broadcasts name the valid ranks before anything is sent."""

    def rank_main() -> Any:
        world = World()
        tensors = refused(lambda: world.broadcast(torch.ones(1), source))
        return tensors, refused(lambda: world.broadcast_object_list([1], source))

    for messages in run_ranks(rank_main):
        assert all("from 0 to 1" in message for message in messages)


@pytest.mark.parametrize("options", [{}, {"dim": -1}, {"pad_index": 9, "pad_first": True}, {"dim": 1}])
def test_pad_across_processes_is_accelerates(run_ranks: Any, options: dict[str, Any]) -> None:
    """Every rank's tensors become as long as the longest, as Accelerate pads them, and can be gathered."""

    def rank_main() -> Any:
        world = World()
        PartialState(cpu=True)
        longer = world.rank + 1
        data = {
            "x": [torch.ones(longer, 3 - longer), torch.ones(2, longer, 2, dtype=torch.int64)],
            "scalar": torch.tensor(1.0),
            "line": torch.arange(longer),
        }
        found = world.pad_across_processes(data, **options)
        assert same(found, operations.pad_across_processes(data, **options))
        return found["line"].tolist()

    padded = {
        "{}": [0, 0],
        "{'dim': -1}": [0, 0],
        "{'pad_index': 9, 'pad_first': True}": [9, 0],
        "{'dim': 1}": [0],
    }
    assert run_ranks(rank_main) == [padded[str(options)], [0, 1]]


def test_padding_does_not_copy_what_is_long_enough(run_ranks: Any) -> None:
    """The longest tensor comes back as it is."""

    def rank_main() -> Any:
        tensor = torch.ones(World().rank)
        return World().pad_across_processes(tensor) is tensor

    assert run_ranks(rank_main) == [False, True]


def test_tensors_that_padding_cannot_make_equal_are_an_error(run_ranks: Any) -> None:
    """Different numbers of dimensions, dtypes or keys raise on every rank, with all shapes."""

    def rank_main() -> Any:
        world = World()
        odd = world.rank == 1
        return [
            refused(lambda: world.pad_across_processes(torch.zeros((1, 2) if odd else 1))),
            refused(lambda: world.pad_across_processes(torch.zeros(1, dtype=torch.int32 if odd else None))),
            refused(lambda: world.pad_across_processes({"b" if odd else "a": torch.zeros(1)})),
        ]

    for dimensions, dtypes, keys in run_ranks(rank_main):
        assert "rank 0: (1,) float32" in dimensions
        assert "rank 1: (1, 2) float32" in dimensions
        assert "rank 1: (1,) int32" in dtypes
        assert "rank 1: ['b']: (1,) float32" in keys


def test_collectives_of_one_process_need_no_group() -> None:
    """In a plain process tensors come back as they are, objects as if from one rank, and no group is made."""
    world = World()
    tensor = torch.arange(3.0)
    assert world.gather(tensor) is tensor
    assert world.pad_across_processes([tensor])[0] is tensor
    assert world.broadcast(tensor) is tensor
    assert world.reduce(tensor, "mean").equal(tensor)
    assert world.reduce(tensor, scale=2.0).equal(2 * tensor)
    assert world.gather(torch.tensor(1.0)).shape == (1,)
    assert world.gather_object([1, 2]) == [1, 2]
    assert world.gather_object({"a": 1}) == [{"a": 1}]
    assert world.broadcast_object_list(objects := [1, "x"]) is objects
    assert not dist.is_initialized()
