"""What a rank tells of its progress: gathered by many threads, sent by one, at most so often."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from nbsync.protocol.reports import Bar, BarrierEvent, Progress
from nbsync.worker.feed import MOST_BARS, MOST_EVENTS, Feed

BAR = Bar(0, "b", 1, 10, 0.1, 10.0, 0.0)
EVENT = BarrierEvent("b", "", True, 0.0)


class Sent:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.messages: list[Progress] = []

    def send(self, message: Any) -> None:
        self.messages.append(message)


def make(interval: float = 0.1) -> tuple[Feed, Any]:
    feed = Feed(interval)
    feed.begin(True)
    return feed, Sent()


def test_nothing_is_sent_when_nothing_moved() -> None:
    """A rank without news is silent."""
    feed, sent = make()
    feed.send(sent, 5.0)
    assert feed.due(5.0) is None
    assert sent.messages == []


def test_at_most_one_message_an_interval() -> None:
    """What moves in between is told once, as it is then."""
    feed, sent = make()
    for moment in range(100):
        feed.bar(0, replace(BAR, n=moment))
        feed.send(sent, moment / 100)
    assert 9 <= len(sent.messages) <= 11
    assert [message.bars[0].n for message in sent.messages][:2] == [0, 10]
    assert feed.due(0.99) is not None
    feed.send(sent, 0.99, at_once=True)
    assert sent.messages[-1].bars[0].n == 99


def test_an_open_bar_is_looked_at_when_it_is_sent() -> None:
    """Not when it moves: that costs the user's loop nothing."""
    feed, sent = make()
    looks = []
    for _ in range(1000):
        feed.bar(0, lambda: looks.append(1) or BAR)  # type: ignore[func-returns-value]
    feed.send(sent, 5.0)
    assert (len(looks), sent.messages[0].bars) == (1, (BAR,))


def test_a_bar_that_cannot_be_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    """It costs that bar, and is logged once, by the user's thread."""
    feed, sent = make(0.0)
    for _ in range(3):
        feed.bar(0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        feed.bar(1, replace(BAR, number=1))
        feed.send(sent, 5.0, at_once=True)
    assert [[bar.number for bar in message.bars] for message in sent.messages] == [[1]] * 3
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_the_helper_thread_is_woken_once() -> None:
    """Until it has sent, nobody needs to call it again."""
    feed, sent = make()
    calls = []
    feed.wake = lambda: calls.append(1)
    for number in range(100):
        feed.bar(number, BAR)
        feed.barrier(EVENT)
    assert len(calls) == 1
    feed.send(sent, 5.0)
    feed.bar(0, BAR)
    assert len(calls) == 2


def test_many_bars_in_one_message_are_cut() -> None:
    """The first and the newest are told, and how many there are."""
    feed, sent = make()
    for number in range(1000):
        feed.add_bar(number)
        feed.bar(number, replace(BAR, number=number))
    feed.send(sent, 5.0)
    (message,) = sent.messages
    assert [bar.number for bar in message.bars] == [0, *range(1000 - MOST_BARS, 1000)]
    assert message.count == 1000


def test_only_bars_that_were_told_are_taken_back() -> None:
    """A bar that came and went between two messages is never heard of."""
    feed, sent = make()
    for number in (1, 2):
        feed.add_bar(number)
    feed.bar(1, lambda: replace(BAR, number=1))
    feed.send(sent, 5.0)
    for number in (1, 2):
        feed.remove_bar(number)
    feed.send(sent, 6.0)
    assert [(message.gone, message.count) for message in sent.messages] == [((), 2), ((1,), 0)]


def test_barriers_keep_their_order_and_the_newest() -> None:
    """Of more than anybody can look at, the oldest are forgotten."""
    feed, sent = make()
    for moment in range(MOST_EVENTS + 5):
        feed.barrier(replace(EVENT, time=moment))
    feed.send(sent, 5.0)
    assert [event.time for event in sent.messages[0].barriers] == list(range(5, MOST_EVENTS + 5))


def test_threads_and_the_sender() -> None:
    """Bars moved by several threads while another sends: the last state of each arrives."""
    feed, sent = make(0.0)
    ended = threading.Event()

    def move(number: int) -> None:
        for n in range(3000):
            feed.bar(number, replace(BAR, number=number, n=n))

    def keep_sending() -> None:
        while not ended.is_set():
            feed.send(sent, 0.0, at_once=True)

    sender = threading.Thread(target=keep_sending)
    movers = [threading.Thread(target=move, args=(number,)) for number in range(4)]
    for thread in (sender, *movers):
        thread.start()
    for thread in movers:
        thread.join(20)
    ended.set()
    sender.join(20)
    feed.send(sent, 0.0, at_once=True)
    last = {bar.number: bar.n for message in sent.messages for bar in message.bars}
    assert last == dict.fromkeys(range(4), 2999)
