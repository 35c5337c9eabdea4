"""Limits in time, as users give them."""

from __future__ import annotations

from math import isfinite
from numbers import Real

from nbsync.errors import UsageError


def check_timeout(timeout: float | None, *, may_be_zero: bool = False) -> None:
    """Raises UsageError: it is neither None nor a positive number of seconds, or 0 where it may be."""
    is_number = isinstance(timeout, Real) and not isinstance(timeout, bool) and isfinite(timeout)
    if timeout is None or (is_number and (timeout > 0 or (may_be_zero and timeout == 0))):
        return
    expected = "a number of seconds from 0 up" if may_be_zero else "a positive number of seconds"
    raise UsageError(f"timeout must be {expected} or None, got {timeout!r}")
