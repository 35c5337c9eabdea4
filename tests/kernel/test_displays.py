"""A flood of displays waits in the ranks; all of it is shown in its order, and an interrupt need not wait for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nbsync import Session
from nbsync.kernel.conductor import Conductor
from nbsync.kernel.output.printer import Printer
from nbsync.kernel.output.sink import TextSink
from nbsync.kernel.run import Run
from nbsync.kernel.state import Phase
from nbsync.kernel.view.live import NoView
from nbsync.protocol.messages import ClearOutput, Display, Done, Interrupt
from nbsync.worker.pace import MOST_UNSHOWN
from notebooks import poll

LIMIT = 60.0  # seconds: only to tell a hang from a slow machine


class Front(TextSink):
    """Notes what is displayed; with `hold`, it is as busy as a front end can be until it is let go."""

    def __init__(self, hold: bool = False) -> None:
        self.shown: list[str] = []
        self.is_free = threading.Event()
        if not hold:
            self.is_free.set()

    def display(self, label: str, data: dict[str, Any], *rest: Any) -> None:
        assert self.is_free.wait(LIMIT)
        self.shown.append(f"{label} {data['text/plain']}")

    def of(self, rank: int) -> list[int]:
        return [int(shown.split()[1]) for shown in self.shown if shown.startswith(f"[{rank}]")]


class Traffic:
    """Takes the place of the world: the ranks display, and end when they are interrupted."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.interrupted: list[int] = []
        self.displayed_ranks: list[int] = []

    def send(self, rank: int, message: Any) -> None:
        if isinstance(message, Interrupt):
            self.interrupted.append(rank)
            self.run.inbox.put((rank, "message", Done(1, 51)))

    def displayed(self, rank: int) -> None:
        self.displayed_ranks.append(rank)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


class Interrupting(Front):
    """Its user interrupts at the third display."""

    def __init__(self, run: Run, traffic: Traffic) -> None:
        super().__init__()
        self.run, self.traffic = run, traffic
        self.before_interrupt: list[str] = []

    def display(self, *args: Any) -> None:
        super().display(*args)
        if len(self.shown) == 3:
            self.run.interrupt()
        if not self.traffic.interrupted:
            self.before_interrupt = list(self.shown)


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_interrupt_overtakes_what_is_queued(world_size: int) -> None:
    """It is sent as soon as the display at hand is shown; the others, and the end, are not lost by it."""
    run = Run(1, tuple(range(world_size)))
    traffic = Traffic(run)
    front = Interrupting(run, traffic)
    for number in range(50):
        for rank in run.ranks:
            run.inbox.put((rank, "message", Display(number, {"text/plain": f"{number}"}, {})))
    for rank in run.ranks:
        run.inbox.put((rank, "message", ClearOutput(50, wait=True)))
    printer = Printer(run.ranks, front, fold=False)
    Conductor(run, printer, NoView(), traffic, world_size, notify=pytest.fail).conduct()
    assert len(front.before_interrupt) == 3
    assert all(front.of(rank) == list(range(50)) for rank in run.ranks)
    assert run.interrupts == 1
    assert sorted(traffic.displayed_ranks) == sorted(run.ranks * 51)


ENDLESS = """
from IPython.display import display
made = 0
while True:
    made += 1
    display({"text/plain": f"{made}"}, raw=True)
"""


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_ranks_wait_for_a_slow_front_end(nothing_left: None, size: int) -> None:
    """They display no more than may be on its way; an interrupt ends the wait, and all that they displayed is shown."""
    front = Front(hold=True)
    cell = ENDLESS.replace("{made}", f"{{made}} {{rank}} {{'x' * {size}}}")
    with Session(2) as session, ThreadPoolExecutor(1) as pool:
        running = pool.submit(session.run_cell, cell, sink=front)
        try:
            assert poll(lambda: all("pace.py" in line for line in _stacks(session)), LIMIT)
            session.interrupt()
        finally:
            front.is_free.set()
        with pytest.raises(KeyboardInterrupt):
            running.result(LIMIT)
        for rank, made in enumerate(session.pull("made")):
            assert front.of(rank) == [*range(1, len(front.of(rank)) + 1)]
            assert len(front.of(rank)) <= made <= len(front.of(rank)) + 1
            assert made <= 3 * (MOST_UNSHOWN if size < 1000 else 10)
        session.run_cell(cell.replace("while True", "while made < 300"), sink=(after := Front()))
        assert all(after.of(rank) == [*range(1, 301)] for rank in (0, 1))


def _stacks(session: Session) -> list[str]:
    return [" ".join(where.stack) if where else "" for where in session.peek().values()]


def test_an_abandoned_rank_goes_on(nothing_left: None) -> None:
    """Whoever displays when nobody looks any more need not wait for that."""
    front = Front(hold=True)
    cell = ENDLESS.replace("while True", "while made < 1000")
    with Session(1) as session, ThreadPoolExecutor(1) as pool:
        running = pool.submit(session.run_cell, cell, sink=front)
        try:
            assert poll(lambda: "pace.py" in _stacks(session)[0], LIMIT)
            session._fleet.traffic._active[0].abandoned = True  # as by the third interrupt
        finally:
            front.is_free.set()
        assert running.exception(LIMIT) is not None
        assert poll(lambda: session.status().ranks[0].phase is Phase.IDLE, LIMIT)
        assert session.pull("made") == [1000]
