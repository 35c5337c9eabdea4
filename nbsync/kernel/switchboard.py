"""The one hub of this kernel."""

from __future__ import annotations

import os
import threading

from nbsync.kernel.hub import Hub

_hub: Hub | None = None
_lock = threading.Lock()
_kept: list[Hub] = []  # in a worker: the kernel's hub, never to be destroyed there


def hub() -> Hub:
    """The hub, made at first need."""
    global _hub
    if _hub is None:
        with _lock:
            if _hub is None:  # two threads may make their first session at once
                _hub = Hub()
    return _hub


def _after_fork() -> None:
    global _hub, _lock
    _lock = threading.Lock()
    if _hub is not None:
        _kept.append(_hub)
    _hub = None


os.register_at_fork(after_in_child=_after_fork)
