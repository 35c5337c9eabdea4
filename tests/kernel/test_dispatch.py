"""What ranks say reaches the next run, is acknowledged to the process that said it, and peeks do not mix."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nbsync.kernel import dispatch
from nbsync.kernel.dispatch import Dispatch
from nbsync.kernel.hub import Exited
from nbsync.kernel.supervision.headroom import Fill, Headroom
from nbsync.kernel.supervision.insist import TOLD_AFTER, Insistence
from nbsync.kernel.supervision.pulse import Pulse
from nbsync.protocol.messages import Done, Peek
from nbsync.protocol.reports import Where


class Process:
    def __init__(self, rank: int, pid: int) -> None:
        self.rank, self.pid = rank, pid


class Hub:
    """Takes the place of the real one: notes what is sent and acknowledged, and answers nothing by itself."""

    def __init__(self) -> None:
        self.taken: dict[int, int] = {}
        self.sent: list[tuple[int, Any]] = []

    def attach(self, process: Process, handler: Any) -> None:
        pass

    def send(self, process: Process, message: Any) -> None:
        self.sent.append((process.rank, message))

    def acknowledge(self, process: Process, size: int) -> None:
        self.taken[process.pid] = self.taken.get(process.pid, 0) + size


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(dispatch, "hub", lambda: hub)
    return hub


def started(traffic: Dispatch, rank: int, pid: int) -> None:
    start = traffic.new_run([rank])
    traffic.add(Process(rank, pid), start)  # type: ignore[arg-type]
    traffic.up(rank, start)


def texts(run: Any) -> list[bytes]:
    return [what for _, kind, what in run.drain() if kind != "message"]


def test_text_at_the_end_of_a_run_is_for_the_next(hub: Hub) -> None:
    traffic = Dispatch("gloo")
    started(traffic, 0, 100)
    first, second = traffic.new_run([0]), traffic.new_run([0])
    traffic.open(first, "runs a cell")
    traffic._route(0, "message", Done(first.number, 0))
    traffic._route(0, "stdout", b"late ")
    traffic._route(0, "stderr", b"later ")
    traffic.close(first)
    traffic._route(0, "stdout", b"latest")
    traffic.open(second, "runs a cell")
    assert first.done
    assert texts(second) == [b"late ", b"later ", b"latest"]


def test_text_during_the_start_is_for_the_first_run(hub: Hub) -> None:
    traffic = Dispatch("gloo")
    start = traffic.new_run([0, 1])
    for rank in (0, 1):
        traffic.add(Process(rank, 100 + rank), start)  # type: ignore[arg-type]
    traffic._route(0, "stdout", b"0")
    traffic._route(1, "stdout", b"1")
    traffic.up(0, start)
    traffic._route(0, "stdout", b"00")
    assert texts(start) == [b"1"]
    run = traffic.new_run([0])
    traffic.open(run, "runs a cell")
    assert texts(run) == [b"0", b"00"]


def test_text_of_an_ended_process_is_not_acknowledged_to_its_successor(hub: Hub) -> None:
    traffic = Dispatch("gloo")
    started(traffic, 0, 100)
    run = traffic.new_run([0])
    traffic.open(run, "runs a cell")
    traffic._route(0, "stdout", b"last words")
    traffic._route(0, "message", Exited(100, 9, 0.0))
    traffic.close(run)
    started(traffic, 0, 200)
    traffic._route(0, "stdout", b"first words")
    run = traffic.new_run([0])
    traffic.open(run, "runs a cell")
    said = texts(run)
    assert said == [b"last words", b"first words"]
    for text in said:
        traffic.shown(0, len(text))
    assert hub.taken == {200: len(b"first words")}


@pytest.mark.parametrize("_", range(20))
def test_two_that_peek_get_their_own_answers(hub: Hub, _: int) -> None:
    traffic = Dispatch("gloo")
    started(traffic, 0, 100)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(traffic.peek, [0], 20.0) for _ in range(2)]
        while len(hub.sent) < 2:
            threading.Event().wait(0.001)
        for rank, ask in reversed(hub.sent):
            assert isinstance(ask, Peek)
            traffic._route(rank, "message", Where(ask.ticket, 1, "a line", None))
        found = [future.result()[0] for future in waiting]
    assert {where.ticket for where in found} == {-1, -2}
    traffic._route(0, "message", Where(-1, 1, "too late", None))


def test_an_answer_in_the_moment_when_nobody_waits_any_more(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It harms nobody: in the hub's thread an error would cost the rank."""
    traffic = Dispatch("gloo")
    started(traffic, 0, 100)
    may_end = threading.Event()
    monkeypatch.setattr(hub, "send", lambda process, message: may_end.wait(20.0))
    peeking = threading.Thread(target=traffic.peek, args=([0], 0.0))

    class Glances(dict[int, Any]):
        def __contains__(self, ticket: object) -> bool:
            found = super().__contains__(ticket)
            may_end.set()
            peeking.join(0.2)  # it cannot end now
            return found

    glances = traffic._glances = Glances()
    peeking.start()
    while not glances.keys():
        threading.Event().wait(0.001)
    traffic._route(0, "message", Where(-1, 1, "too late", None))
    peeking.join(20.0)
    assert not glances.keys()


def test_the_looks_of_a_run_pass_over_a_closed_session(hub: Hub) -> None:
    traffic = Dispatch("gloo")
    started(traffic, 0, 100)
    traffic.clear()
    told: list[str] = []
    Pulse(traffic.pid, told.append).look([0])
    assert told == []
    Headroom(traffic.pid, told.append, lambda: Fill(99, 100, "the memory")).look([0])
    assert len(told) == 1
    insistence = Insistence(traffic.signal, traffic.pid, lambda rank: "", told.append)
    insistence.begin([0], 1, 0.0)
    insistence.look([0], [], TOLD_AFTER)
    assert len(told) == 1
