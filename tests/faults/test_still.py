"""Rows 2 and 6: data that flows is let through, unless it flows in vain; what only seems to work is not waited for."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from worlds import GUARD, Worlds

from nbsync.worker.groups.sockets import Flow
from nbsync.worker.groups.stillness import PATIENCE, Stillness
from notebooks import poll

_PR_SET_NAME = 15


class _Groups:
    """What `Stillness` asks of the process groups."""

    def __init__(self) -> None:
        self.moved = 0
        self.flows = False

    def use_nccl(self) -> bool:
        return False

    def flow(self) -> Flow:
        self.moved += self.flows << 20
        return Flow({(3, 3): self.moved}, 0)


@contextmanager
def _busy_thread(name: bytes) -> Iterator[None]:
    """A thread of this name that uses the processor."""
    is_over = threading.Event()

    def run() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name)
        while not is_over.is_set():
            pass

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _judge(groups: _Groups, looks: int = 5) -> Iterator[bool]:
    stillness = Stillness(groups)  # type: ignore[arg-type]
    stillness.begin(1, time.monotonic())
    for _ in range(looks):
        time.sleep(0.1)
        yield stillness.is_so(time.monotonic())


def test_row_02_a_loop_around_an_ended_connection_is_no_work() -> None:
    """Gloo's event loop may be busy for nothing: it counts only while bytes come or go."""
    groups = _Groups()
    assert all(_judge(groups))
    with _busy_thread(b"gloo_tcp_loop"):
        assert all(_judge(groups))
        groups.flows = True
        assert poll(lambda: not all(_judge(groups)), GUARD)
    groups.flows = False
    with _busy_thread(b"pt_gloo_runloop"):
        assert poll(lambda: not all(_judge(groups)), GUARD)


def test_row_02_patience_ends() -> None:
    """It is counted from the first order to the run, however busy the process is."""
    groups, now = _Groups(), time.monotonic()
    groups.flows = True
    stillness = Stillness(groups)  # type: ignore[arg-type]
    stillness.begin(1, now)
    stillness.begin(1, now + PATIENCE / 2)
    assert stillness.is_so(now + 1.01 * PATIENCE)
    stillness.begin(2, now + PATIENCE)
    assert not stillness.is_so(now + PATIENCE)


_REDUCED = """
big = [torch.ones(10_000_000) for _ in range(6)]
both = [dist.all_reduce(each, group=firsts, async_op=True) for each in big] if rank < 2 else []
store = dist.group.WORLD.get_group_store()
if rank < 2:
    both[0].wait()
    store.set(f"{error} {{rank}}", "it flows")
if rank == 2:
    store.wait(["{error} 0", "{error} 1"])
    {end}
for work in both: work.wait()
dist.barrier()
"""


@pytest.mark.parametrize(
    ("end", "error"), [("inject.raise_error('row 2')", "ValueError"), ("inject.kill()", "WorkerDied")]
)
def test_row_02_what_flows_among_others_arrives(world_of: Worlds, end: str, error: str) -> None:
    """Ranks that exchange data among themselves when another one fails get it whole; then they are released."""
    ranks = world_of(4)
    ranks.run("firsts = dist.new_group([0, 1])").ok()
    ranks.fail(_REDUCED.format(end=end, error=error), error)
    shown = ranks.notebook.run("%%on_rank 0-1\n[(each == 2).all().item() for each in big]")
    assert shown.ok().texts == [f"[0-1] {[True] * 6}"]
    if error == "WorkerDied":
        ranks.bring_back(2)
    else:
        ranks.assert_whole()
