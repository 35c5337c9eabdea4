"""Tells whoever listens which barrier this rank waits in: the notebook shows it live."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Protocol

from nbsync.protocol.userlines import is_users
from nbsync.worker.places import describe_line


class Reporter(Protocol):
    """Hears of each barrier of this rank. Its methods must return quickly and not raise."""

    def barrier_entered(self, name: str, call_site: str) -> None:
        """This rank begins to wait in barrier `name`, called at e.g. `Cell In[3], line 2`."""

    def barrier_left(self, name: str, call_site: str, passed: bool) -> None:
        """This rank waits no longer; `passed` when that is because everyone has come."""

    def all_have_met(self, name: str) -> None:
        """What any rank wrote before it called this is to be shown before what others write afterwards."""


class _Silent:
    def barrier_entered(self, name: str, call_site: str) -> None: ...

    def barrier_left(self, name: str, call_site: str, passed: bool) -> None: ...

    def all_have_met(self, name: str) -> None: ...


_reporter: Reporter = _Silent()
_names: list[str] = []
_last_site: tuple[CodeType | None, int, str] = (None, 0, "")


def reporter() -> Reporter:
    """The reporter in use; at first one that does nothing."""
    return _reporter


def set_reporter(new: Reporter | None) -> None:
    """Send reports to `new`; None turns them off."""
    global _reporter
    _reporter = _Silent() if new is None else new


def call_site() -> str:
    """The innermost line of the user's code that led here, e.g. `Cell In[3], line 2`."""
    global _last_site
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_users(frame.f_code):
        frame = frame.f_back
    if frame is None:
        return ""
    code, line, site = _last_site  # a barrier in a loop is called from the same line each time
    if frame.f_code is not code or frame.f_lineno != line:
        site = describe_line(frame.f_code.co_filename, frame.f_lineno)
        _last_site = (frame.f_code, frame.f_lineno, site)
    return site


@contextmanager
def reported(name: str, site: str) -> Iterator[None]:
    """The lines inside wait in barrier `name`. One reporter hears both ends."""
    listener = reporter()
    listener.barrier_entered(name, site)
    _names.append(name)
    passed = False
    try:
        yield
        passed = True
    finally:
        _names.pop()
        listener.barrier_left(name, site, passed)


def barrier_name() -> str | None:
    """The barrier that this rank is in, as the user has called it."""
    return _names[-1] if _names else None
