"""Row 42: what is under a healed group, and what is left of what was there before."""

from __future__ import annotations

import os
import select
import socket
import time

import pytest
from worlds import GUARD, SETTLED, Ranks

from nbsync.worker.groups.events import tell_once
from notebooks import poll

_FAIL = "if rank == 0:\n    inject.raise_error('row 42')\ndist.barrier()"
_TRAIN = """
for p in model.parameters(): p.grad = None
model(torch.full((2, 4), float(rank))).sum().backward()
next(model.parameters()).grad.sum().item()
"""
_MODEL = "model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))\n" + _TRAIN
_ANOTHER_TORCH = """
from nbsync.worker.groups import backends
backends._release_resources, kept = lambda: None, backends._release_resources
"""


def _threads(pids: list[int]) -> list[int]:
    return [len(os.listdir(f"/proc/{pid}/task")) for pid in pids]


def _heal(ranks: Ranks, times: int = 1) -> None:
    for _ in range(times):
        ranks.fail(_FAIL, "ValueError")
        ranks.assert_whole()


def test_row_42_every_device_of_a_group_is_healed(pair: Ranks) -> None:
    """Gloo serves GPUs as well, where there are more ranks than those: one fresh backend is under all devices."""
    _heal(pair)
    shown = pair.run(
        "under = [dist.group.WORLD._get_backend(d) for d in dist.group.WORLD._device_types]\nlen(set(under))"
    )
    assert shown.ok().texts == ["[0-1] 1"]


@pytest.mark.parametrize(
    ("begin", "name"), [("dist.all_reduce(t, async_op=True)", "all_reduce"), ("dist.irecv(t, 1)", "irecv")]
)
def test_row_42_what_was_under_way(pair: Ranks, begin: str, name: str) -> None:
    """What a cell left unfinished, and a later one's failure has cut off, says so when it is waited for."""
    pair.run(f"t = torch.ones(1)\nif rank == 0: work = {begin}").ok()
    pair.fail("if rank == 1: inject.raise_error('row 42')\ndist.barrier()", "ValueError")
    error = pair.fail("if rank == 0: work.wait()", "OperationCutOff")
    assert error.evalue.startswith(f"rank 0: OperationCutOff: this {name} was cut off when a cell failed")
    pair.assert_whole()


def test_row_42_names_and_options_stay(pair: Ranks) -> None:
    """A healed group is called what it was, and waits as long as it was made to."""
    pair.run("from datetime import timedelta\nours = dist.new_group([0, 1], timeout=timedelta(seconds=77))").ok()
    told = "ours.group_name, ours.group_desc, ours._get_backend(torch.device('cpu')).options._timeout.seconds"
    before = pair.run(told).ok().texts
    _heal(pair)
    assert pair.run(told).ok().texts == before
    assert "77" in before[0]


def test_row_42_a_healed_group_keeps_its_store(pair: Ranks) -> None:
    """The store of a group is what `split_group` and others build on."""
    _heal(pair)
    pair.run("if rank == 0: dist.group.WORLD.get_group_store().set('row', '42')\ndist.barrier()").ok()
    assert pair.run("dist.group.WORLD.get_group_store().get('row')").ok().texts == ["[0-1] b'42'"]


def test_row_42_a_backend_in_use_outlives_its_group_s_life(pair: Ranks) -> None:
    """Whoever holds an operation that was begun before the fault can still ask it."""
    pair.fail("work = dist.irecv(torch.ones(1), src=1 - rank)\n" + _FAIL, "ValueError")
    pair.assert_whole()
    error = pair.fail("work.wait()", "OperationCutOff")
    assert "this irecv was cut off" in error.evalue
    pair.assert_whole()


def test_row_42_nobody_is_stranded(pair: Ranks) -> None:
    """Threads that were in the middle of large messages end with the backend that they worked for."""
    pids = pair.pids()
    _heal(pair)
    time.sleep(SETTLED)  # the backend before that is on its way out
    before = _threads(pids)
    for hit in (0, 1) * 5:
        pair.fail(
            "large = [dist.broadcast(torch.ones(5_000_000), src=0, async_op=True) for _ in range(3)]\n"
            f"if rank == {hit}:\n    inject.raise_error('row 42')\n[work.wait() for work in large]",
            "ValueError",
        )
        pair.assert_whole()
    poll(lambda: _threads(pids) == before, GUARD)
    assert _threads(pids) == before


def test_row_42_another_torch(pair: Ranks) -> None:
    """Where torch does not let backends go they stay, the models train on, and at the last one it says so."""
    pair.run(_MODEL).ok()
    pair.run(_ANOTHER_TORCH).ok()
    try:
        _heal(pair, times=3)
        assert pair.run(_TRAIN).ok().texts == ["[0-1] 16.0"]
        pair.run("spare, backends._SPARE_TYPES = backends._SPARE_TYPES, range(0)").ok()
        outcome = pair.run(_FAIL)
        assert "healed as often as this torch allows. `%nbsync restart`" in outcome.stderr
    finally:
        pair.run("backends._SPARE_TYPES, backends._release_resources = spare, kept").ok()
    pair.assert_whole()


def test_row_42_an_event_loop_is_told_once() -> None:
    """A connection that has ended, and that gloo does not close, does not keep gloo's event loop at work."""
    with socket.create_server(("localhost", 0)) as server, socket.create_connection(server.getsockname()) as mine:
        peer, _ = server.accept()
        with peer, select.epoll() as loop, select.epoll() as another:
            for each in (loop, another):
                each.register(mine, select.EPOLLIN)
            another.register(peer, select.EPOLLIN)
            mine.shutdown(socket.SHUT_RD)
            told = [(mine.fileno(), select.EPOLLIN)]
            assert [loop.poll(0) for _ in range(3)] == [told] * 3
            tell_once({(mine.fileno(), os.fstat(mine.fileno()).st_ino), (peer.fileno(), 1)})
            assert [loop.poll(0) for _ in range(2)] == [told, []]
            assert another.poll(0) == told
            mine.sendall(b"still")
            assert [another.poll(0) for _ in range(2)] == [[(peer.fileno(), select.EPOLLIN)]] * 2


_FAKE = "from torch.testing._internal.distributed.fake_pg import FakeStore\n"


def test_row_01_a_group_of_a_backend_that_does_not_count(pair: Ranks) -> None:
    """It has no numbers of its collectives to compare: the groups are whole, and are healed, without them."""
    pair.run(f"{_FAKE}fake = dist.new_group(backend='fake')").ok()
    pair.fail("if rank == 1:\n    inject.raise_error()\ndist.barrier()", "ValueError")
    pair.assert_whole()
    program = f"def plan():\n    import torch.distributed as dist\n    {_FAKE}"
    program += "    dist.init_process_group('fake', store=FakeStore(), rank=0, world_size=64)\n"
    program += "    return dist.get_world_size()\nnbsync.notebook_launcher(plan, num_processes=2)"
    assert pair.notebook.run(f"import nbsync\n{program}", GUARD).ok().stdout == "[64, 64]\n"


def test_row_08_what_a_rank_cannot_tell_of_itself(pair: Ranks) -> None:
    """What goes wrong after a cell, in what is told with its outcome, is shown; the outcome arrives."""
    cell = "def once(*_):\n    dist.ProcessGroup._get_backend = get_backend\n    1 / 0\n"
    cell += "get_backend = dist.ProcessGroup.__dict__['_get_backend']\ndist.ProcessGroup._get_backend = once\n7"
    told = pair.notebook.run(f"%%on_rank 1\n{cell}").ok()
    assert told.texts == ["[1] 7"]
    assert "ZeroDivisionError" in told.stderr
    pair.assert_whole()
