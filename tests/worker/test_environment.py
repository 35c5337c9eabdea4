"""The launcher's environment, read into a WorldInfo."""

from __future__ import annotations

import dataclasses

import pytest

from nbsync.errors import UsageError
from nbsync.worker.control.environment import WorldInfo

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


def test_no_variables_mean_a_world_of_one() -> None:
    """Without a launcher this is the only process, and no torchrun is suspected."""
    assert WorldInfo.from_environ({}) == WorldInfo(0, 1, 0, 1, None, None, elastic=False)


def test_torchrun_variables_are_read() -> None:
    """Every variable ends up in its field."""
    assert WorldInfo.from_environ(TORCHRUN) == WorldInfo(5, 8, 1, 4, "10.0.0.1", 29500)


def test_an_elastic_launcher_is_recognised() -> None:
    """TORCHELASTIC_RUN_ID says that torchrun is there, also with one process."""
    assert WorldInfo.from_environ({"TORCHELASTIC_RUN_ID": "none"}).elastic


def test_without_local_variables_all_ranks_are_on_one_node() -> None:
    """A launcher that sets no LOCAL_RANK does not make every rank a local main process."""
    info = WorldInfo.from_environ({"RANK": "2", "WORLD_SIZE": "3"})
    assert (info.local_rank, info.local_size) == (2, 3)


def test_empty_variables_count_as_not_set() -> None:
    """`RANK= python train.py` is a plain process."""
    assert WorldInfo.from_environ(dict.fromkeys(TORCHRUN, "")) == WorldInfo()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RANK", "one", "RANK is 'one'.*from 0 to 7"),
        ("RANK", "8", "RANK is 8.*from 0 to 7"),
        ("RANK", "-1", "RANK is -1.*from 0 to 7"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is 0.*1 or more"),
        ("WORLD_SIZE", "2.0", r"WORLD_SIZE is '2\.0'.*1 or more"),
        ("LOCAL_RANK", "4", "LOCAL_RANK is 4.*from 0 to 3"),
        ("LOCAL_WORLD_SIZE", "0", "LOCAL_WORLD_SIZE is 0.*1 or more"),
        ("MASTER_PORT", "70000", "MASTER_PORT is 70000.*from 0 to 65535"),
        ("MASTER_PORT", "-1", "MASTER_PORT is -1.*from 0 to 65535"),
    ],
)
def test_garbage_is_named(name: str, value: str, expected: str) -> None:
    """A value that makes no sense raises an error with the variable, the value and what would do."""
    with pytest.raises(UsageError, match=expected):
        WorldInfo.from_environ(TORCHRUN | {name: value})


def test_a_world_without_a_rank_is_an_error() -> None:
    """WORLD_SIZE alone must not make every process rank 0."""
    with pytest.raises(UsageError, match="WORLD_SIZE is 2 but RANK is not set"):
        WorldInfo.from_environ({"WORLD_SIZE": "2"})


def test_a_process_group_knows_better_than_the_environment() -> None:
    """Rank and size that are passed in win, even over variables left behind by something else."""
    info = WorldInfo.from_environ({"RANK": "junk", "WORLD_SIZE": "junk"}, rank=1, size=2)
    assert (info.rank, info.size, info.local_rank, info.local_size) == (1, 2, 1, 2)


@pytest.mark.parametrize(("rank", "local_rank", "node"), [(0, 0, range(4)), (5, 1, range(4, 8))])
def test_the_node_is_a_run_of_ranks(rank: int, local_rank: int, node: range) -> None:
    """A node's ranks are found from the rank and the local rank."""
    assert WorldInfo(rank, 8, local_rank, 4).node == node


def test_a_missing_rendezvous_is_an_error_when_it_is_needed() -> None:
    """Address and port are asked for only by who wants to make a process group."""
    WorldInfo.from_environ(TORCHRUN).require_master()
    alone = WorldInfo.from_environ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"})
    with pytest.raises(UsageError, match="MASTER_ADDR and MASTER_PORT"):
        alone.require_master()


def test_it_is_frozen() -> None:
    """Nobody changes their place by accident."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        WorldInfo().rank = 1  # type: ignore[misc]
