"""What the hub reads of a worker's pipes, and what it does when something fails in its thread or to start it."""

from __future__ import annotations

import errno
import os
import queue
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbsync import Session
from nbsync.errors import StartError
from nbsync.kernel import switchboard
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
        pid = os.posix_spawn("/bin/sleep", ["sleep", "1000"], os.environ, setpgroup=0)
        self.process: Process = self.wires.process(0, pid)
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
        self.process.kill()
        while not isinstance(self.next()[1], Exited):
            pass
        self.wires.close_worker_ends()


def _is_writable(fd: int) -> bool:

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
    worker.process.kill()
    came = 0
    while (item := worker.next())[0] == "stdout":
        came += len(item[1])
    assert came == flood
    assert isinstance(item[1], Exited)
    worker.items.put(item)  # for the end


def _no_thread(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The system refuses a thread of this name once."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            monkeypatch.setattr(threading.Thread, "start", start)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_thread_that_was_refused_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start says what the system refused; the next one finds nothing wrong."""
    monkeypatch.setattr(switchboard, "_hub", None)
    _no_thread(monkeypatch, "nbsync-hub")
    with pytest.raises(StartError, match="no thread for the workers: can't start new thread"):
        Session(1)
    with Session(1) as session:
        assert session.call(lambda: "works") == ["works"]


def test_two_threads_get_the_same_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when both are the first to need one."""
    hubs: list[Any] = []
    other = threading.Thread(target=lambda: hubs.append(switchboard.hub()))

    def make() -> object:
        if not other.ident:
            other.start()
            other.join(0.2)  # it cannot have one before this one is made
        return object()

    monkeypatch.setattr(switchboard, "_hub", None)
    monkeypatch.setattr(switchboard, "Hub", make)
    hubs.append(switchboard.hub())
    other.join(LIMIT)
    assert hubs[0] is hubs[1]


def test_a_job_that_fails_costs_its_worker_only(
    hub: Hub, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the connections of a worker cannot be served, it is ended, and that is told; the others are served on."""
    watch = hub._watch_pipe

    def refuse(line: Any, stream: Any, fd: int) -> None:
        if line.process is not worker.process:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(line, stream, fd)

    worker.write(worker.wires.stdout[1], b"before")
    assert worker.next() == ("stdout", b"before")
    monkeypatch.setattr(hub, "_watch_pipe", refuse)
    other = Worker(hub)
    kind, ended = other.next()
    assert (kind, ended.pid) == ("message", other.process.pid)
    other.wires.close_worker_ends()
    worker.write(worker.wires.stdout[1], b"after")
    assert worker.next() == ("stdout", b"after")
    assert "rank 0 is ended" in caplog.text
