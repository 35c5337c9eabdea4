"""What the hub reads of a worker's pipes, and what it does when something fails in its thread or to start it."""

from __future__ import annotations

import os
import queue
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbsync.kernel.engines.base import Process
from nbsync.kernel.engines.wires import Wires
from nbsync.kernel.hub import MOST_UNREAD, Exited, Hub
from nbsync.protocol.channel import piece_of
from nbsync.protocol.fence import fence
from nbsync.protocol.messages import Done
from notebooks import poll

LIMIT = 60.0  # seconds: only to tell a hang from a slow machine
PIPE = 1 << 20  # bytes: more than one holds

pytestmark = pytest.mark.usefixtures("nothing_left")


class Worker:
    """A process that does nothing, with the ends of its connections in the test's hand."""

    def __init__(self, hub: Hub) -> None:
        self.wires = Wires.make()
        self.child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        self.process: Process = self.wires.process(0, self.child.pid)
        self.items: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        for _, fd in (self.wires.stdout, self.wires.stderr):
            os.set_blocking(fd, False)
        hub.attach(self.process, lambda rank, kind, what: self.items.put((kind, what)))

    def write(self, fd: int, data: bytes) -> None:
        """Write all of it."""
        while data:
            poll(lambda: _is_writable(fd), LIMIT)
            data = data[os.write(fd, data) :]

    def flood(self, fd: int, most: int, is_over: Callable[[], bool]) -> int:
        """Write so much, or until nobody reads it any more; returns how much it was."""
        written = 0
        while written < most:
            if _is_writable(fd):
                written += os.write(fd, b"x" * 4096)
            elif is_over():
                break
        return written

    def next(self) -> tuple[str, Any]:
        return self.items.get(timeout=LIMIT)

    def end(self) -> None:
        self.child.kill()
        while not isinstance(self.next()[1], Exited):
            pass
        self.wires.close_worker_ends()


def _is_writable(fd: int) -> bool:
    import select

    return bool(select.select([], [fd], [], 0)[1])


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def worker(hub: Hub) -> Iterator[Worker]:
    worker = Worker(hub)
    yield worker
    worker.end()


def test_what_waits_at_a_fence_is_bounded(hub: Hub, worker: Worker) -> None:
    """A pipe is not read while too much of it waits there; the other one is, up to the fence, and then both go on."""
    out, err = worker.wires.stdout[1], worker.wires.stderr[1]
    line = hub._lines[worker.process]
    worker.write(out, fence(1, True))
    flood = worker.flood(out, 4 * MOST_UNREAD, lambda: "stdout" in line.paused)
    assert MOST_UNREAD < flood < MOST_UNREAD + 2 * PIPE
    worker.write(err, b"before" + fence(1, True))
    assert worker.next() == ("stderr", b"before")
    worker.wires.worker_socket.sendall(piece_of(Done(1, fence=1)))
    assert worker.next()[0] == "message"
    came = 0
    while came < flood:
        kind, what = worker.next()
        assert kind == "stdout"
        came += len(what)
        hub.acknowledge(worker.process, len(what))
    worker.write(out, b"after")
    assert worker.next() == ("stdout", b"after")


def test_a_flood_at_both_pipes_waits_for_a_message(hub: Hub, worker: Worker) -> None:
    """Both stand at a fence whose message is on its way: neither is read on until it is there."""
    ends = {"stdout": worker.wires.stdout[1], "stderr": worker.wires.stderr[1]}
    line = hub._lines[worker.process]
    for fd in ends.values():
        worker.write(fd, fence(1, True))
    floods = {
        name: worker.flood(fd, 4 * MOST_UNREAD, lambda name=name: name in line.paused)  # type: ignore[misc]
        for name, fd in ends.items()
    }
    assert max(floods.values()) < MOST_UNREAD + 2 * PIPE
    worker.wires.worker_socket.sendall(piece_of(Done(1, fence=1)))
    assert worker.next()[0] == "message"
    came = {"stdout": 0, "stderr": 0}
    while came != floods:
        kind, what = worker.next()
        came[kind] += len(what)
        hub.acknowledge(worker.process, len(what))


def test_a_worker_that_ends_with_a_full_pipe(hub: Hub, worker: Worker) -> None:
    """All that it wrote is passed on, then its end is told."""
    out = worker.wires.stdout[1]
    line = hub._lines[worker.process]
    worker.write(out, fence(1, True))
    flood = worker.flood(out, 4 * MOST_UNREAD, lambda: "stdout" in line.paused)
    worker.write(worker.wires.stderr[1], fence(1, True))
    worker.child.kill()
    came = 0
    while (item := worker.next())[0] == "stdout":
        came += len(item[1])
    assert came == flood
    assert isinstance(item[1], Exited)
    worker.items.put(item)  # for the end
