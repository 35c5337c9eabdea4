"""The order of one worker's stdout, stderr and messages."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import groupby
from typing import Literal, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbsync.kernel.output.sequence import Item, Sequencer, StreamName
from nbsync.protocol.fence import FENCE, FENCE_START, fence

# Output that looks like the beginning of a fence, but that no other piece here can complete to one.
NASTY = [
    b"\0",
    b"\0\0",
    b"\x1e",
    b"\0\x1e",
    b"\x1e\0",
    FENCE_START[:7],
    FENCE_START,
    FENCE_START + b"1",
    FENCE_START + b"12:",
]
DATA = st.lists(st.sampled_from([*NASTY, b"a", b"line\n"]), min_size=1, max_size=4).map(b"".join)
Source: TypeAlias = Literal["stdout", "stderr", "message"]
Write: TypeAlias = tuple[Literal["stdout", "stderr"], bytes] | tuple[Literal["message"], int]
WRITES = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), DATA) | st.tuples(st.just("message"), st.integers()))
# Which source is read next, and how many bytes (or messages) of it.
READS = st.lists(st.tuples(st.sampled_from(["stdout", "stderr", "message"]), st.integers(1, 40)))


class Worker:
    """Writes fences the way a worker does: whenever the source changes, and at the end of the cell."""

    def __init__(self) -> None:
        self.pipes: dict[StreamName, bytes] = {"stdout": b"", "stderr": b""}
        self.messages: list[tuple[int, object]] = []
        self._fences = 0
        self._last: str | None = None

    def write(self, write: Write) -> None:
        if write[0] == "message":
            self.messages.append((self.fence(True), write[1]))
            return
        if self._last not in (None, write[0]):
            self.fence()
        self._last = write[0]
        self.pipes[write[0]] += write[1]

    def fence(self, has_message: bool = False) -> int:
        self._fences += 1
        for stream in self.pipes:
            self.pipes[stream] += fence(self._fences, has_message)
        self._last = None
        return self._fences

    def read(self, into: Sequencer, reads: Iterable[tuple[Source, int]]) -> list[Item]:
        """Feed everything to a sequencer: first in the given portions, then the rest of each source."""
        left: dict[StreamName, bytes] = dict(self.pipes)
        messages = list(self.messages)
        out: list[Item] = []
        whole = max(map(len, [*left.values(), messages]))
        for source, size in [*reads, ("stderr", whole), ("message", whole), ("stdout", whole)]:
            if source != "message":
                out += into.feed_bytes(source, left[source][:size])
                left[source] = left[source][size:]
            else:
                for n, message in messages[:size]:
                    out += into.feed_message(n, message)
                del messages[:size]
        return out


def joined(items: Iterable[Item | Write]) -> list[tuple[str, object]]:
    """Join neighbouring bytes of one stream, however they were cut."""
    result: list[tuple[str, object]] = []
    for name, run in groupby(items, key=lambda item: item[0]):
        values = [value for _, value in run]
        if name == "message":
            result += [(name, value) for value in values]
        elif data := b"".join(value for value in values if isinstance(value, bytes)):
            result.append((name, data))
    return result


@given(WRITES, READS)
def test_order_is_restored(writes: list[Write], reads: list[tuple[Source, int]]) -> None:
    """However the three sources are cut and interleaved, items come out in the order they were written."""
    worker = Worker()
    for write in writes:
        worker.write(write)
    worker.fence()
    sequencer = Sequencer()
    assert joined(worker.read(sequencer, reads)) == joined(writes)
    assert sequencer.pending == 0
    assert sequencer.finish() == []


@given(WRITES, READS, st.integers(0, 300), st.integers(0, 300), st.integers(0, 5))
def test_nothing_is_lost_at_death(
    writes: list[Write], reads: list[tuple[Source, int]], stdout_end: int, stderr_end: int, message_end: int
) -> None:
    """If the worker dies at any point, each source is complete and in order, without the fences."""
    worker = Worker()
    for write in writes:
        worker.write(write)
    worker.pipes = {
        "stdout": worker.pipes["stdout"][:stdout_end],
        "stderr": worker.pipes["stderr"][:stderr_end],
    }
    del worker.messages[message_end:]
    sequencer = Sequencer()
    out = worker.read(sequencer, reads) + sequencer.finish()
    for stream, data in worker.pipes.items():
        assert b"".join(value for name, value in out if name == stream) == FENCE.sub(b"", data)  # type: ignore[misc]
    assert [value for name, value in out if name == "message"] == [value for _, value in worker.messages]
    assert sequencer.pending == 0


@given(st.lists(DATA))
def test_bytes_without_fences_are_not_delayed(pieces: list[bytes]) -> None:
    """Without fences, a stream passes at once, except for a tail that may be the beginning of a fence."""
    sequencer = Sequencer()
    fed = passed = b""
    for piece in pieces:
        fed += piece
        passed += b"".join(data for _, data in sequencer.feed_bytes("stdout", piece) if isinstance(data, bytes))
        held = fed[len(passed) :]
        assert fed.startswith(passed)
        assert sequencer.pending == len(held)
        assert FENCE_START.startswith(held) or held.startswith(FENCE_START)
    assert joined(sequencer.finish()) == joined([("stdout", fed[len(passed) :])])


def test_pipe_waits_for_the_other() -> None:
    """Bytes behind a fence are held until the other pipe has reached it, then both go on."""
    sequencer = Sequencer()
    assert sequencer.feed_bytes("stdout", b"a" + fence(1, False) + b"ccc") == [("stdout", b"a")]
    assert sequencer.pending == 3
    assert sequencer.feed_bytes("stderr", b"b") == [("stderr", b"b")]
    assert sequencer.feed_bytes("stderr", fence(1, False)) == [("stdout", b"ccc")]
    assert sequencer.pending == 0


def test_fence_waits_for_its_message() -> None:
    """A fence with a message holds both pipes until the message is there."""
    sequencer = Sequencer()
    assert sequencer.feed_bytes("stdout", b"a" + fence(1, True) + b"c") == [("stdout", b"a")]
    assert sequencer.feed_bytes("stderr", fence(1, True) + b"d") == []
    assert sequencer.feed_message(1, "M") == [("message", "M"), ("stdout", b"c"), ("stderr", b"d")]


def test_message_waits_for_its_fence() -> None:
    """A message that overtook the pipes is held until both have reached its fence."""
    sequencer = Sequencer()
    assert sequencer.feed_message(1, "M") == []
    assert sequencer.feed_bytes("stderr", fence(1, True)) == []
    assert sequencer.feed_bytes("stdout", b"a" + fence(1, True)) == [("stdout", b"a"), ("message", "M")]


@pytest.mark.parametrize("cut", range(1, len(fence(12, True))))
def test_split_fence(cut: int) -> None:
    """A fence is recognised wherever a read cut it."""
    sequencer = Sequencer()
    mark = fence(1, False)
    assert sequencer.feed_bytes("stdout", b"a" + mark[:cut]) == [("stdout", b"a")]
    assert sequencer.feed_bytes("stdout", mark[cut:] + b"b") == []
    assert sequencer.feed_bytes("stderr", mark) == [("stdout", b"b")]


def test_stray_fence_is_dropped() -> None:
    """A second copy of a fence that was passed neither holds anything nor shows."""
    sequencer = Sequencer()
    sequencer.feed_bytes("stderr", fence(1, False))
    assert sequencer.feed_bytes("stdout", b"a" + fence(1, False) + b"b") == [("stdout", b"ab")]
    assert sequencer.feed_bytes("stdout", b"c" + fence(1, False) + b"d") == [("stdout", b"cd")]


def test_lost_fence_does_not_block() -> None:
    """If one pipe lost a fence, reaching the next one counts as having passed it."""
    sequencer = Sequencer()
    assert sequencer.feed_bytes("stdout", b"a" + fence(1, False) + b"b" + fence(2, False) + b"c") == [("stdout", b"a")]
    assert sequencer.feed_bytes("stderr", fence(2, False)) == [("stdout", b"bc")]


def test_late_message_is_not_lost() -> None:
    """A message whose fence was passed without it is released at once."""
    sequencer = Sequencer()
    for stream in ("stdout", "stderr"):
        sequencer.feed_bytes(stream, fence(1, False))
    assert sequencer.feed_message(1, "late") == [("message", "late")]


def test_death_keeps_the_order_that_is_known() -> None:
    """At death, fences that only one pipe reached still put messages in their places."""
    sequencer = Sequencer()
    sequencer.feed_bytes("stdout", fence(1, True) + b"a" + fence(2, True) + b"b")
    sequencer.feed_message(2, "two")
    sequencer.feed_message(3, "three")
    assert sequencer.finish() == [
        ("stdout", b"a"),
        ("message", "two"),
        ("stdout", b"b"),
        ("message", "three"),
    ]


def test_death_releases_a_short_pipe_first() -> None:
    """At death, what a pipe held before a fence that it never reached comes before that fence's message."""
    sequencer = Sequencer()
    sequencer.feed_message(1, "one")
    sequencer.feed_bytes("stdout", fence(1, True) + b"a")
    assert sequencer.feed_bytes("stderr", b"b\0") == [("stderr", b"b")]
    assert sequencer.finish() == [("stderr", b"\0"), ("message", "one"), ("stdout", b"a")]


def test_large_output_is_fast() -> None:
    """Megabytes of bytes and tens of thousands of held fences take no noticeable time."""
    sequencer = Sequencer()
    stdout = b"".join(b"x" * 400 + fence(n, False) for n in range(1, 20_001))
    started = time.perf_counter()
    size = sum(len(data) for _, data in sequencer.feed_bytes("stdout", stdout) if isinstance(data, bytes))
    for n in range(1, 20_001):
        size += sum(len(data) for _, data in sequencer.feed_bytes("stderr", fence(n, False)) if isinstance(data, bytes))
    assert size == 400 * 20_000
    assert time.perf_counter() - started < 20  # what is quadratic takes minutes
