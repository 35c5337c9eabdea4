"""What is sent in place of a message that the user has given up on its way."""

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


def instead_of(message: Any, nbytes: int) -> GivenUp | Done | None:
    """What stands for `message`, which has so many bytes; None for one that is not given up."""
    match message:
        case Request():
            return GivenUp(message.run, format_size(nbytes))
        case Done(failure=None):
            failure = _interrupted(f"while it sent {format_size(nbytes)}")
        case Done(failure=Failure() as own):
            failure = replace(own, exception=None)
        case _:
            return None
    return replace(message, failure=failure, result=None, value=None)


def _interrupted(where: str) -> Failure:
    return Failure("builtins", "KeyboardInterrupt", "", time=time.monotonic(), where=where, interrupted=True)
