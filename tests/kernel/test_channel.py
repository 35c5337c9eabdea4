"""The channel: whole messages, whatever happens on the way; small ones overtake large ones, which can be given up."""

from __future__ import annotations

import pickle
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from nbsync.protocol.channel import Channel, ChannelClosed, piece_of
from nbsync.protocol.frames import LARGE, Frame
from nbsync.protocol.given_up import GivenUp
from nbsync.protocol.messages import Alive, Arriving, Display, Done, Failure, Interrupt, Payload, Peek, Push

_MEGABYTE = 1 << 20


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    with one, other:
        yield Channel(one), Channel(other)


def _value(run: int, size: int = 4 * _MEGABYTE) -> Done:
    beside = bytes([run % 256]) * (size // 2)
    return Done(run, run, value=Payload(beside, (pickle.PickleBuffer(beside), pickle.PickleBuffer(b""))))


def _bytes_of(done: Done) -> list[bytes]:
    assert done.value is not None
    return [bytes(done.value.pickled), *(bytes(memoryview(part)) for part in done.value.buffers)]


def _flow(sender: Channel, receiver: Channel) -> list[Any]:
    """Everything that is sent."""
    got = []
    while sender.has_output:
        sender.transmit()
        got += receiver.receive()
    return got + receiver.receive()


@pytest.mark.parametrize("size", [0, 1, LARGE // 2, LARGE, 5 * _MEGABYTE + 1])
def test_a_message_arrives_whole(ends: tuple[Channel, Channel], size: int) -> None:
    """Of any size, with what lies beside it."""
    sent = _value(7, size)
    ends[0].send(sent)
    (got,) = _flow(*ends)
    assert (got.run, got.fence, _bytes_of(got)) == (7, 7, _bytes_of(sent))


def test_what_fails_to_pack_sends_nothing(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        ends[0].send(Peek(lambda: 0))  # type: ignore[arg-type]
    assert not ends[0].has_output


def test_small_overtakes_large(ends: tuple[Channel, Channel]) -> None:
    """What is small does not wait for what is large, even when half of that has left."""
    ends[0].send(_value(1))
    ends[0].transmit()
    ends[0].send(Alive())
    first, second = _flow(*ends)
    assert isinstance(first, Alive)
    assert _bytes_of(second) == _bytes_of(_value(1))


def test_one_call_is_not_for_ever(ends: tuple[Channel, Channel]) -> None:
    """Whoever sends also reads, however fast the other end is."""
    sender, receiver = ends
    sender.send(_value(1, 1 << 28))
    taken = 0
    send = sender.socket.sendmsg

    class Swift:
        def sendmsg(self, parts: Any) -> int:
            nonlocal taken
            taken += 1
            sent = send(parts)
            receiver.receive()
            return sent

    sender.socket = Swift()  # type: ignore[assignment]
    sender.transmit()
    assert 0 < taken < 200
    assert sender.has_output


@pytest.mark.parametrize("pieces", [0, 1, 5])
def test_a_value_is_given_up(ends: tuple[Channel, Channel], pieces: int) -> None:
    """In its place comes an answer without it; what came of it is dropped, and what follows is whole."""
    sender, receiver = ends
    sender.send(_value(5))
    got = []
    for _ in range(pieces):
        sender.transmit()
        got += receiver.receive()
    sender.give_up(5)
    sender.send(_value(6))
    got += _flow(sender, receiver)
    instead, following = got
    assert (instead.run, instead.fence, instead.value) == (5, 5, None)
    assert instead.failure.interrupted
    assert instead.failure.place == "while it sent 4 MB"
    assert _bytes_of(following) == _bytes_of(_value(6))
    assert receiver.arriving[0] >= receiver.arriving[1]


def test_a_value_is_given_up_before_it_is_sent(ends: tuple[Channel, Channel]) -> None:
    """The interrupt may come while the answer is packed."""
    ends[0].give_up(5)
    ends[0].send(_value(5))
    ends[0].send(_value(6))
    instead, following = _flow(*ends)
    assert (instead.run, instead.value) == (5, None)
    assert _bytes_of(following) == _bytes_of(_value(6))


def test_a_request_is_given_up(ends: tuple[Channel, Channel]) -> None:
    """The interrupt is there before what stands for the request."""
    sender, receiver = ends
    sender.send(Push(3, Payload(b"x" * 4 * _MEGABYTE)))
    sender.transmit()
    sender.send(Interrupt(3))
    sender.give_up(3)
    assert _flow(sender, receiver) == [Interrupt(3), GivenUp(3, "4 MB")]


def test_an_error_stays_one(ends: tuple[Channel, Channel]) -> None:
    """The answer of a rank that has raised something large says what it raised."""
    own = Failure("builtins", "ValueError", "text", exception=Payload(b"x" * 4 * _MEGABYTE))
    ends[0].send(Done(5, 5, own))
    ends[0].give_up(5)
    (instead,) = _flow(*ends)
    assert (instead.failure.type_name, instead.failure.message, instead.failure.exception) == (
        "ValueError",
        "text",
        None,
    )
    assert not instead.failure.interrupted


def test_what_has_no_stand_in(ends: tuple[Channel, Channel]) -> None:
    """It arrives, and what is given up after it too."""
    figure = Display(4, {"image/png": "x" * 4 * _MEGABYTE}, {})
    ends[0].send(figure)
    ends[0].send(_value(5))
    ends[0].transmit()
    ends[0].give_up(5)
    got, instead = _flow(*ends)
    assert got == figure
    assert (instead.run, instead.value) == (5, None)


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_events(ends: tuple[Channel, Channel], seed: int) -> None:
    """Each message arrives once and whole, or what stands for it; the large ones in order, and so the small ones."""
    sender, receiver = ends
    chance = random.Random(seed)
    got: list[Any] = []
    runs, tickets, given_up = 0, 0, set()
    for _ in range(300):
        match chance.choice(["small", "large", "give up", "transmit", "transmit", "receive", "receive"]):
            case "small":
                tickets += 1
                sender.send(Peek(tickets))
            case "large" if runs < 12:
                runs += 1
                sender.send(_value(runs, chance.randrange(LARGE, 3 * LARGE)))
            case "give up" if runs:
                given_up.add(runs)
                sender.give_up(runs)
            case "transmit":
                sender.transmit()
            case "receive":
                got += receiver.receive()
    got += _flow(sender, receiver)
    answers = [message for message in got if isinstance(message, Done)]
    assert [message.ticket for message in got if isinstance(message, Peek)] == list(range(1, tickets + 1))
    assert sorted(answer.run for answer in answers) == list(range(1, runs + 1))
    whole = [answer for answer in answers if answer.failure is None]
    assert [answer.run for answer in whole] == sorted(answer.run for answer in whole)
    for answer in answers:
        if answer.failure is None:
            assert set(b"".join(_bytes_of(answer))) == {answer.run}
        else:
            assert answer.run in given_up


def test_before_there_is_a_channel(ends: tuple[Channel, Channel]) -> None:
    ends[0].socket.send(piece_of(Arriving("rebuilding 'x'")))
    ends[0].send(Alive())
    assert _flow(*ends) == [Arriving("rebuilding 'x'"), Alive()]


def test_the_other_end_is_gone(ends: tuple[Channel, Channel]) -> None:
    """What it sent is returned before that is told; what is left of a large message can be dropped."""
    sender, receiver = ends
    sender.send(Alive())
    sender.send(_value(1))
    sender.transmit()  # as much as the socket holds
    sender.socket.close()
    assert receiver.receive() == [Alive()]
    with pytest.raises(ChannelClosed):
        receiver.receive()
    receiver.drop()
    assert receiver.arriving == (0, 0)


def test_what_the_other_end_has_left(ends: tuple[Channel, Channel]) -> None:
    """All of it is there after its end, though it has not read all, and in more parts than one call reads."""
    here, gone = ends
    here.send(Alive())
    here.transmit()
    parts = tuple(pickle.PickleBuffer(bytes(8)) for _ in range(200))
    for message in (Interrupt(1), Done(2, 2, value=Payload(b"x", parts)), Interrupt(3)):
        gone.send(message)
    while gone.has_output:
        gone.transmit()
    gone.socket.close()
    got: list[Any] = []
    with pytest.raises(ChannelClosed):
        got.extend(here.receive_rest())
    assert [message.run for message in got] == [1, 2, 3]


def test_what_is_left_while_somebody_holds_the_end(ends: tuple[Channel, Channel]) -> None:
    """A child of the rank may keep it open: there is an end to what is read all the same."""
    here, gone = ends
    gone.send(Interrupt(1))
    gone.transmit()
    assert [message.run for message in here.receive_rest()] == [1]


def test_long_bytes_are_not_copied() -> None:
    """Neither those beside the pickle, nor the pickle itself."""
    frame = Frame(_value(1))
    assert frame.total - 4 * _MEGABYTE < 1000
    parts = frame.take(frame.total)
    assert sum(part.nbytes for part in parts if part.nbytes < 1000) < 1000
