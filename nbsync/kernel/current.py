"""The sessions of this kernel: those that run, and the one that the magics use."""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, Any

from nbsync.errors import NoSession
from nbsync.protocol.side import is_worker

if TYPE_CHECKING:
    from nbsync.kernel.session import Session

_current: Session | None = None
_open: list[Session] = []
_kept: list[Any] = []  # in a worker: the kernel's sessions, whose destructors are not for it to run
_in_worker = False


def session() -> Session:
    """The current session.

    Raises:
        NoSession: there is none.
    """
    if in_worker():
        raise NoSession("this is a rank: the session belongs to the notebook, and is there in ordinary cells")
    if _current is None or not _current.is_running:
        raise NoSession("there is no session: `%nbsync start` starts one, and so does the first %%distributed cell")
    return _current


def has_session() -> bool:
    """Whether there is a current session with workers."""
    return _current is not None and _current.is_running


def set_session(session: Session | None) -> None:
    """Make this the current session."""
    global _current
    _current = session


def open_sessions() -> tuple[Session, ...]:
    """The sessions whose workers run, oldest first."""
    return tuple(_open)


def add(session: Session) -> None:
    """`session` has workers now."""
    if session not in _open:
        _open.append(session)


def remove(session: Session) -> None:
    """The workers of `session` have ended."""
    if session in _open:
        _open.remove(session)


def in_worker() -> bool:
    """Whether this process is a rank, which has no sessions."""
    return _in_worker or is_worker()


def _close_all() -> None:
    for session in open_sessions():
        session.close()


def _after_fork() -> None:
    global _current, _open, _in_worker
    _kept.extend((_current, _open))
    _current, _open, _in_worker = None, [], True


atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork)
