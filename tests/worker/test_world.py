"""World: its process group, shares, triggers and models, on real gloo ranks and in a plain process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from torch._C._distributed_c10d import TCPStore

from nbsync.errors import UsageError
from nbsync.worker.control.world import World

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_every_rank_knows_its_place(run_ranks: Any) -> None:
    """On two nodes of two, ranks, local ranks and the three roles are those of the launcher."""

    def rank_main() -> Any:
        w = World()
        numbers = (w.rank, w.process_index, w.local_rank, w.local_process_index)
        sizes = (w.size, w.num_processes, w.local_size, w.use_distributed)
        return numbers, sizes, (w.is_main_process, w.is_local_main_process, w.is_last_process), w.device.type

    expected = [
        ((0, 0, 0, 0), (4, 4, 2, True), (True, True, False), "cpu"),
        ((1, 1, 1, 1), (4, 4, 2, True), (False, False, False), "cpu"),
        ((2, 2, 0, 0), (4, 4, 2, True), (False, True, False), "cpu"),
        ((3, 3, 1, 1), (4, 4, 2, True), (False, False, True), "cpu"),
    ]
    assert run_ranks(rank_main, 4, local_size=2) == expected


def test_its_place_is_that_of_accelerate(run_ranks: Any) -> None:
    """World and PartialState agree in every attribute they share."""
    names = [
        "process_index",
        "local_process_index",
        "num_processes",
        "use_distributed",
        "is_main_process",
        "is_local_main_process",
        "is_last_process",
        "backend",
    ]

    def rank_main() -> Any:
        state = PartialState(cpu=True)
        return [(name, getattr(World(), name), getattr(state, name)) for name in names]

    for found in run_ranks(rank_main):
        assert [(name, mine) for name, mine, _ in found] == [(name, theirs) for name, _, theirs in found]


def test_a_plain_process_is_a_world_of_one(plain: pytest.MonkeyPatch) -> None:
    """Nothing waits and no process group is made; this process is main, local main and last."""
    world = World()
    world.wait_for_everyone(timeout=0.0)
    with world.main_process_first(), world.local_main_process_first():
        pass
    with world.split_between_processes({1, 2}) as share:
        assert share == {1, 2}
    assert world.check_trigger() is False
    assert (world.rank, world.size, world.local_rank, world.local_size) == (0, 1, 0, 1)
    assert world.is_main_process
    assert world.is_local_main_process
    assert world.is_last_process
    assert not world.use_distributed
    assert world.backend is None
    assert not dist.is_initialized()
    assert repr(world) == "<World: rank 0 of 1, local rank 0 of 1, cpu, no process group>"


def test_an_error_in_a_world_of_one_stays_what_it_is(plain: pytest.MonkeyPatch) -> None:
    """Alone, an exception in main_process_first is not wrapped."""
    with pytest.raises(KeyError, match="boom"), World().main_process_first():
        raise KeyError("boom")


def test_the_group_is_made_at_the_first_collective(run_ranks: Any) -> None:
    """Neither a World nor its properties make a process group; a collective does."""

    def rank_main() -> Any:
        world = World()
        before = (repr(world), world.rank, dist.is_initialized())
        world.wait_for_everyone()
        return before, dist.is_initialized(), world.backend

    text = "<World: rank 1 of 2, local rank 1 of 2, cpu, gloo>"
    assert run_ranks(rank_main)[1] == ((text, 1, False), True, "gloo")


def test_one_rank_of_torchrun_gets_a_group(run_ranks: Any) -> None:
    """With a launcher there is a group for user code, even if nobody else is in it."""

    def rank_main() -> Any:
        World().wait_for_everyone()
        return dist.is_initialized(), World().gather(torch.ones(2)).tolist()

    assert run_ranks(rank_main, 1) == [(True, [1.0, 1.0])]


def test_a_group_that_is_there_is_used(run_ranks: Any) -> None:
    """World takes the process group of the user, whose numbers win over the environment."""

    def rank_main() -> Any:
        store = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=False)
        backwards = 1 - int(os.environ["RANK"])
        dist.init_process_group("gloo", store=store, rank=backwards, world_size=2)
        for name in TORCHRUN:
            os.environ.pop(name)
        mine = dist.group.WORLD
        world = World()
        gathered = world.gather(torch.tensor(world.local_rank)).tolist()
        return world.rank == backwards, world.size, gathered, dist.group.WORLD is mine

    assert run_ranks(rank_main) == [(True, 2, [0, 1], True)] * 2


def test_nothing_goes_stale(run_ranks: Any, plain: pytest.MonkeyPatch) -> None:
    """After destroy_process_group, and after a change of the environment, World says what is true now."""

    def rank_main() -> Any:
        world = World()
        world.wait_for_everyone()
        os.environ["RANK"], os.environ["WORLD_SIZE"] = "6", "7"
        with_group = world.rank, world.size
        dist.destroy_process_group()
        return with_group, (world.rank, world.size)

    assert run_ranks(rank_main) == [((0, 2), (6, 7)), ((1, 2), (6, 7))]

    world = World()
    plain.setenv("RANK", "2")
    plain.setenv("WORLD_SIZE", "4")
    assert (world.rank, world.size, world.local_rank) == (2, 4, 2)


def test_without_a_rendezvous_the_first_collective_says_so(plain: pytest.MonkeyPatch) -> None:
    """RANK and WORLD_SIZE alone are enough to know one's place, but not to meet."""
    plain.setenv("RANK", "0")
    plain.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="MASTER_ADDR and MASTER_PORT"):
        World().wait_for_everyone()


def test_the_backend_is_the_users_then_the_launchers(run_ranks: Any) -> None:
    """The argument comes before NBSYNC_BACKEND, and NBSYNC_BACKEND before gloo."""

    def rank_main() -> Any:
        said = World("gloo").backend, World().backend
        World().wait_for_everyone()
        return said, World().backend, dist.get_backend_config()

    for said, used, config in run_ranks(rank_main, environ={"NBSYNC_BACKEND": "cpu:gloo"}):
        assert said == ("gloo", "cpu:gloo")
        assert used == config == "cpu:gloo"


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "cpu"), (2, "cuda:1"), (8, "cuda:1")])
def test_a_gpu_each_or_none(plain: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    """A rank has the GPU of its local rank when the node has enough of them, and the CPU otherwise."""
    plain.setattr(torch.cuda, "device_count", lambda: gpus)
    for name in ("RANK", "LOCAL_RANK"):
        plain.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        plain.setenv(name, "2")
    plain.setattr(dist, "is_nccl_available", lambda: True)
    assert World().device == torch.device(device)
    assert World().backend == ("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")


def test_the_timeout_is_that_of_the_group(run_ranks: Any) -> None:
    """World(timeout=...) bounds every collective of the group it makes."""

    def rank_main() -> Any:
        world = World(timeout=77.0)
        world.wait_for_everyone()
        group = dist.group.WORLD
        assert group is not None
        return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()

    assert run_ranks(rank_main) == [77.0, 77.0]


def test_each_rank_has_its_share(run_ranks: Any) -> None:
    """The context manager gives each rank its own part, padded on request without any communication."""

    def rank_main() -> Any:
        with World().split_between_processes(["a", "b", "c"], apply_padding=True) as padded:
            padded = list(padded)
        with World().split_between_processes({"x": (1, 2, 3)}) as plain:
            return padded, plain, dist.is_initialized()

    assert run_ranks(rank_main) == [
        (["a", "b"], {"x": (1, 2)}, False),
        (["c", "c"], {"x": (3,)}, False),
    ]


@pytest.mark.parametrize("make", [World, lambda: Accelerator(cpu=True)], ids=["world", "accelerator"])
def test_a_trigger_on_one_rank_is_seen_by_all_once(run_ranks: Any, make: Callable[[], Any]) -> None:
    """Any rank's trigger makes the next check true everywhere and the one after it false, as Accelerate's."""

    def rank_main() -> Any:
        process_index = int(os.environ["RANK"])
        each = make()
        before = each.check_trigger()
        if process_index == 1:
            each.set_trigger()
        return before, each.check_trigger(), each.check_trigger()

    assert run_ranks(rank_main) == [(False, True, False)] * 2


def test_a_trigger_alone_is_local(plain: pytest.MonkeyPatch) -> None:
    """In a world of one the trigger works without a process group."""
    world = World()
    world.set_trigger()
    assert [world.check_trigger(), world.check_trigger()] == [True, False]


def test_unwrap_model_finds_the_users_model(run_ranks: Any) -> None:
    """DDP, DataParallel and torch.compile layers come off in any order; a bare or FSDP2 model stays."""

    def rank_main() -> Any:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.nn.parallel import DataParallel, DistributedDataParallel

        world = World()
        world.wait_for_everyone()
        model = torch.nn.Linear(2, 2)
        wrapped: list[Any] = [
            model,
            DistributedDataParallel(model),
            DataParallel(model),
            torch.compile(model, backend="eager"),
            torch.compile(DistributedDataParallel(model), backend="eager"),
            DistributedDataParallel(torch.compile(model, backend="eager")),
        ]
        sharded = torch.nn.Linear(2, 2)
        fully_shard(sharded, mesh=init_device_mesh("cpu", (world.size,)))
        found = [world.unwrap_model(each) is model for each in wrapped]
        return found, world.unwrap_model(sharded) is sharded

    assert run_ranks(rank_main) == [([True] * 6, True)] * 2
