"""Objects that make trouble when they are shown, pickled or unpickled."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class FailingRepr:
    """An object whose repr raises."""

    def __repr__(self) -> str:
        raise ValueError("injected in repr")


class HangingRepr:
    """An object whose repr never ends."""

    def __repr__(self) -> str:
        time.sleep(1_000_000)
        return "unreachable"


class HugeRepr:
    """An object whose repr is as long as it is told."""

    def __init__(self, megabytes: float = 1024.0) -> None:
        self.megabytes = megabytes

    def __repr__(self) -> str:
        return "x" * int(self.megabytes * (1 << 20))


class Unpicklable:
    """An object that holds what no process can give to another: a generator."""

    def __init__(self) -> None:
        self.lines = (line for line in [""])


class Crashing:
    """An object that runs a fault when it is pickled, or when it is unpickled.

    Args:
        when: "pickle" or "unpickle".
        fault: the function's name in `inject`, e.g. "exit_process", "segfault", "sleep_forever", "raise_error".
    """

    def __init__(self, when: str, fault: str) -> None:
        self.when, self.fault = when, fault

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.when == "pickle":
            _run(self.fault)
        return _rebuild_crashing, (self.when, self.fault)


def _rebuild_crashing(when: str, fault: str) -> Crashing:
    if when == "unpickle":
        _run(fault)
    return Crashing(when, fault)


def _run(fault: str) -> None:
    from nbsync.testing import inject  # it imports this module

    getattr(inject, fault)()


class SlowData:
    """A data set that takes its time for each item."""

    def __init__(self, seconds: float = 0.05) -> None:
        self._seconds = seconds

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> int:
        time.sleep(self._seconds)
        return index
