"""Puts one worker's stdout, stderr and messages back into the order in which the worker produced them.

Pure: bytes and messages in, items out; no clock, no file, no thread. `nbsync.protocol.fence` has the marks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, TypeAlias

from nbsync.protocol.fence import FENCE, FENCE_START, unfinished_fence

StreamName: TypeAlias = Literal["stdout", "stderr"]
Item: TypeAlias = tuple[StreamName, bytes] | tuple[Literal["message"], object]


@dataclass
class _Pipe:
    """One pipe: the bytes not yet passed on, and the fence that it waits at (0: it flows)."""

    name: StreamName
    held: bytearray = field(default_factory=bytearray)
    fence: int = 0
    wants_message: bool = False

    def flow(self, passed: int) -> list[bytes]:
        """Take out the bytes up to the next fence above `passed`, and stop there; drop stray older fences."""
        pieces: list[bytes] = []
        start = search = 0
        while (found := self.held.find(FENCE_START, search)) >= 0:
            match = FENCE.match(self.held, found)
            if match is None:  # ordinary bytes, or a fence whose rest is still on its way
                search = found + 1
                continue
            pieces.append(bytes(self.held[start:found]))
            start = search = match.end()
            if int(match[1]) > passed:
                self.fence, self.wants_message = int(match[1]), match[2] == b"1"
                del self.held[:start]
                return pieces
        end = max(start, unfinished_fence(self.held))
        pieces.append(bytes(self.held[start:end]))
        del self.held[:end]
        return pieces

    def drain(self) -> bytes:
        """Take out everything."""
        rest = bytes(self.held)
        self.held.clear()
        return rest


class Sequencer:
    """Reorders one worker's two pipes and its messages by the fences in the pipes.

    A pipe's bytes pass at once up to its next fence. There it waits until the other pipe has reached that
    fence too and, if the fence has a message, until the message is there; then it passes and both go on.
    """

    def __init__(self) -> None:
        self._pipes: dict[StreamName, _Pipe] = {"stdout": _Pipe("stdout"), "stderr": _Pipe("stderr")}
        self._messages: dict[int, object] = {}
        self._passed = 0
        self._out: list[Item] = []

    @property
    def pending(self) -> int:
        """How many bytes are held back."""
        return sum(map(self.held, self._pipes))

    def held(self, stream: StreamName) -> int:
        """How many of them are of this pipe. More than a few are behind a fence that it stands at."""
        return len(self._pipes[stream].held)

    def feed_bytes(self, stream: StreamName, data: bytes) -> list[Item]:
        """Take what was read from a pipe; return what may be shown now."""
        pipe = self._pipes[stream]
        if not pipe.fence and not pipe.held and b"\x00" not in data:  # no fence in it: the way of a flood
            return [(stream, data)]
        pipe.held += data
        if not pipe.fence:
            self._flow(pipe)
            self._advance()
        return self._take()

    def feed_message(self, n: int, message: object) -> list[Item]:
        """Take the message that belongs at fence `n`; return what may be shown now."""
        self._messages[n] = message
        if n <= self._passed:  # its fence is gone: late is better than never
            self._release_messages()
        self._advance()
        return self._take()

    def finish(self) -> list[Item]:
        """The worker is dead: release everything held, in the best order that is left."""
        while waiting := [pipe for pipe in self._pipes.values() if pipe.fence]:
            for pipe in self._pipes.values():
                if not pipe.fence:  # it ended before the fence that the other one waits at
                    self._emit(pipe, [pipe.drain()])
            self._pass(min(pipe.fence for pipe in waiting))
        for pipe in self._pipes.values():
            self._emit(pipe, [pipe.drain()])
        self._passed = max(self._messages, default=self._passed)
        self._release_messages()
        return self._take()

    def _advance(self) -> None:
        """Pass fences while both pipes stand at one and its message, if any, is there."""
        while all(pipe.fence for pipe in self._pipes.values()):
            # The numbers differ only if one pipe lost a fence: having reached a later one, it has passed it.
            n = min(pipe.fence for pipe in self._pipes.values())
            wanted = any(pipe.wants_message for pipe in self._pipes.values() if pipe.fence == n)
            if wanted and n not in self._messages:
                return
            self._pass(n)

    def _pass(self, n: int) -> None:
        """Let the message of fence `n` through, then the pipes that stood there."""
        self._passed = n
        self._release_messages()
        for pipe in self._pipes.values():
            if pipe.fence == n:
                pipe.fence = 0
                self._flow(pipe)

    def _flow(self, pipe: _Pipe) -> None:
        self._emit(pipe, pipe.flow(self._passed))

    def _emit(self, pipe: _Pipe, pieces: list[bytes]) -> None:
        self._out += [(pipe.name, piece) for piece in pieces if piece]

    def _release_messages(self) -> None:
        """Emit the messages of all passed fences, in order."""
        for n in sorted(n for n in self._messages if n <= self._passed):
            self._out.append(("message", self._messages.pop(n)))

    def _take(self) -> list[Item]:
        """Empty the output, with neighbouring bytes of one stream joined."""
        out, self._out = self._out, []
        joined: list[Item] = []
        for name, run in groupby(out, key=lambda item: item[0]):
            if name == "message":
                joined += run
            else:
                joined.append((name, b"".join(data for _, data in run if isinstance(data, bytes))))
        return joined
