"""File descriptors kept for hard times: a rank whose code has used up all others can still be healed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class Reserve:
    """`count` descriptors of nothing, which are let go for a moment when others are needed."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: list[int] = []
        self._fill()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The lines inside may use them."""
        while self._held:
            os.close(self._held.pop())
        try:
            yield
        finally:
            self._fill()

    def _fill(self) -> None:
        try:
            while len(self._held) < self._count:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:  # as many as there are
            return
