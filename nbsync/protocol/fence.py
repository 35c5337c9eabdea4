"""Fences: marks in a worker's two output pipes that say where one source's output ends and another's begins.

A pipe knows nothing about its siblings, so the order between stdout, stderr and the message channel is lost
on the way. Where it matters the worker writes the same numbered fence into *both* pipes, each with one
``os.write`` (a fence is far shorter than ``PIPE_BUF``, so no other writer can split it).
"""

from __future__ import annotations

import re

FENCE_START = b"\x00\x1enbsync-fence:"

#: A whole fence: its number (from 1), then whether a message of the channel belongs in its place.
FENCE = re.compile(re.escape(FENCE_START) + rb"([1-9][0-9]{0,18}):([01])\x1e\x00")

_MAX_LENGTH = len(FENCE_START) + 19 + len(b":1\x1e\x00")
_STARTED = re.compile(re.escape(FENCE_START) + rb"(?:[1-9][0-9]{0,18}(?::(?:[01]\x1e?)?)?)?")


def fence(n: int, has_message: bool) -> bytes:
    """Return fence number `n` (from 1); with `has_message`, the message with ``fence=n`` belongs there."""
    return b"%b%d:%d\x1e\x00" % (FENCE_START, n, has_message)


#: What a line begins with that is not shown, and that stands for a moment when all ranks have met.
MEETING = "\x1enbsync-meeting:"


def meeting(name: str) -> str:
    """Return the line that says: what any rank wrote before its line of this `name` comes before what follows."""
    return f"{MEETING}{name}\n"


def unfinished_fence(data: bytes | bytearray) -> int:
    """Return where a fence begins that more data may complete, or ``len(data)`` if there is none."""
    # An unfinished fence holds one NUL, its first byte: only the last NUL can begin it.
    start = data.rfind(b"\x00", max(0, len(data) - _MAX_LENGTH))
    if start < 0:
        return len(data)
    tail = data[start:]
    return start if FENCE_START.startswith(tail) or _STARTED.fullmatch(tail) else len(data)
