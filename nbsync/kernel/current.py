"""The session that the magics use."""

from __future__ import annotations

import os

from nbsync.errors import NoSession
from nbsync.kernel.session import Session

_current: Session | None = None


def session() -> Session:
    """The current session.

    Raises:
        NoSession: there is none.
    """
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


_kept: list[Session | None] = []


def _after_fork() -> None:
    global _current
    _kept.append(_current)  # never destroyed in a worker
    _current = None


os.register_at_fork(after_in_child=_after_fork)
