"""What takes the place of a message that the user has given up on its way, or for which the receiver gets no memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from nbsync.protocol.messages import Done, Failure, Request
from nbsync.protocol.words import format_size


@dataclass(frozen=True)
class GivenUp(Request):
    """Stands for a request. Its interrupt has come before it, so that it is answered as one that was interrupted.

    Attributes:
        size: of that request, e.g. "2.1 GB".
    """

    size: str


@dataclass(frozen=True)
class NoRoom(Request):
    """Stands for a request for which this rank has got no memory; `size` as in `GivenUp`."""

    size: str


def instead_of(message: Any, nbytes: int) -> Request | Done | None:
    """What stands for `message`, which was given up and has so many bytes; None for one that is not given up."""
    size = format_size(nbytes)
    where = f"while it sent {size}"
    own = Failure("builtins", "KeyboardInterrupt", "", time=time.monotonic(), where=where, interrupted=True)
    return GivenUp(message.run, size) if isinstance(message, Request) else _without_payload(message, own)


def for_lack_of_memory(message: Any, nbytes: int) -> Request | Done | None:
    """What stands for `message`, which had so many bytes; None if nothing can."""
    size = format_size(nbytes)
    told = f"the notebook has no memory for the {size} that this rank sent"
    own = Failure("builtins", "MemoryError", told, time=time.monotonic())
    return NoRoom(message.run, size) if isinstance(message, Request) else _without_payload(message, own)


def _without_payload(message: Any, own: Failure) -> Done | None:
    """An answer without its value, which is a failure then: one that it has, or its `own`."""
    if not isinstance(message, Done):
        return None
    failure = own if message.failure is None else replace(message.failure, exception=None)
    return replace(message, failure=failure, result=None, value=None)
