"""An exception on a rank becomes a `Failure`: plain data that says who failed, where, and whether it only follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import NamedTuple

from nbsync.errors import MainProcessFailed, StoreWaitEnded, TransferError
from nbsync.protocol.familiar import FamiliarUnpickler
from nbsync.protocol.messages import Failure, Payload
from nbsync.protocol.serial import Parts, Unfamiliar, pack, unpack
from nbsync.protocol.words import describe_limit
from nbsync.worker.groups.ledger import Entry, Ledger, checksum
from nbsync.worker.groups.operations import PEER_GONE, ends_connection
from nbsync.worker.places import collective_in, users_line, waited_in, walk_traceback
from nbsync.worker.shortage import is_out_of_memory, memory_limit

_LONGEST = 1 << 18  # characters of an error's text, and of a part of its traceback
_MOST = 16 << 20  # bytes of an exception: every rank sends its own, and the notebook uses one


def describe(
    error: BaseException,
    rendered: Sequence[str],
    *,
    caught: float,
    follows: bool,
    came_of_peer: bool = False,
    interrupted: bool = False,
    doing: str = "",
    pickling: AbstractContextManager[None] | None = None,
) -> Failure:
    """Describe `error` for the kernel.

    Args:
        rendered: its traceback as IPython shows it.
        caught: when, by the monotonic clock.
        follows: it only follows from others, as `follows_from_others` told when it was raised: since then this rank
            may have been released for its own failure.
        came_of_peer: as `came_of_others` told, for the same reason when it was raised.
        interrupted: an interrupt was asked for in this run.
        doing: what the rank was doing with a value, outside the user's own lines.
        pickling: around the pickling of the error, which runs the user's code.
    """
    what, exception = identify(error, doing), None
    with suppress(KeyboardInterrupt, SystemExit), pickling or nullcontext():  # that gives up the object, not the error
        exception = _pack_exception(error)
    return Failure(
        module=type(error).__module__,
        type_name=what.type_name,
        message=what.message,
        traceback=tuple(map(_presentable, rendered)),
        time=caught,
        where=what.where,
        waiting_in=next(filter(None, map(waited_in, _traces(error))), None),
        is_consequence=follows,
        came_of_peer=came_of_peer,
        interrupted=isinstance(error, KeyboardInterrupt) or (interrupted and _says_peer_gone(error)),
        exception=exception,
        memory_limit=memory_limit() if is_out_of_memory(error) else None,
    )


class Identity(NamedTuple):
    """What is equal for ranks that have raised the same error."""

    type_name: str
    message: str
    where: str


def identify(error: BaseException, doing: str) -> Identity:
    """What the kernel compares of `Failure`s; `doing` as in `describe`."""
    line = next(filter(None, (users_line(walk_traceback(trace)) for trace in _traces(error))), "")
    where = ", ".join(filter(None, (line, doing and f"while it {doing}")))
    return Identity(type(error).__qualname__, _text(error), where)


def is_rendered_elsewhere(told: Identity, ledger: Ledger | None, rank: int, run: int) -> bool:
    """Whether a lower rank has raised the same in this run: to render takes long, and one traceback is shown.

    Args:
        ledger: where the ranks note it, if there is such a place.
    """
    if ledger is None:
        return False
    entry = Entry(checksum(repr(told)), "")
    ledger.note(f"raised/{run}", entry)
    return entry in ledger.read(range(rank), f"raised/{run}").values()


def follows_from_others(error: BaseException, *, released: bool) -> bool:
    """Whether `error` only says that a peer failed or that the connection to it was cut.

    Args:
        released: this rank's collectives were broken on purpose in this run.
    """
    if isinstance(error, MainProcessFailed | StoreWaitEnded):
        return True
    if not _says_peer_gone(error):
        return False
    is_users = isinstance(error, ConnectionError)  # torch raises no such one: it may come from any other connection
    return (released and not is_users) or collective_in(walk_traceback(error.__traceback__)) is not None


def came_of_others(error: BaseException, *, released: bool) -> bool:
    """Whether `error` was raised while one that follows from others was handled; `released` as there."""
    return any(follows_from_others(each, released=released) for each in _handled(error))


def _handled(error: BaseException) -> Iterator[BaseException]:
    """The errors that were being handled when `error` was raised, or that it says it comes from; each once."""
    seen = {id(error)}
    while True:
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None or id(before) in seen:
            return
        seen.add(id(before))
        yield before
        error = before


def _traces(error: BaseException) -> list[TracebackType | None]:
    """An interrupt of a blocked operation shows first as the operation's error, which is then its context."""
    before = error.__context__ if isinstance(error, KeyboardInterrupt) else None
    return [each.__traceback__ for each in (error, before) if each is not None]


def has_ended_connection(error: BaseException) -> bool:
    """Whether a process group has lost a connection for good; a `ConnectionError` is one of the user's own."""
    return isinstance(error, RuntimeError) and ends_connection(_text(error))


def _says_peer_gone(error: BaseException) -> bool:
    return isinstance(error, RuntimeError | ConnectionError) and PEER_GONE.search(_text(error)) is not None


def _text(error: BaseException) -> str:
    try:
        return _presentable("; ".join(filter(None, (str(error), describe_limit(error)))))
    except (Exception, SystemExit) as second:  # a user's __str__ may raise anything
        return f"(its text cannot be shown: {type(second).__name__})"


def _presentable(text: str) -> str:
    """The text as a front end can take it: lone surrogates as escapes, since UTF-8 has none, and no megabytes."""
    left_out = len(text) - _LONGEST
    if left_out > 0:
        text = f"{text[: _LONGEST // 2]}\n… {left_out:,} characters left out …\n{text[-_LONGEST // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _pack_exception(error: BaseException) -> Payload | None:
    """The exception itself without its frames, which would drag the rank's objects along."""
    carried = error.args, vars(error)
    with suppress(TransferError, Unfamiliar):
        unpack(pack(carried), unpickler=FamiliarUnpickler)  # else it may end whoever unpickles it: here, this rank
        payload = pack(error)
        if payload.size > _MOST:
            return None
        unpack(payload)  # one whose __init__ takes other arguments than it passes on cannot be rebuilt so
        return payload
    with suppress(TransferError):
        payload = pack(Parts(type(error), *carried))
        return payload if payload.size <= _MOST else None
    return None  # the kernel then shows it by name and text
