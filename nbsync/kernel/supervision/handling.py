"""Tells of ranks that take long with a value: pickling and unpickling run the user's code, which may never end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nbsync.protocol.blackbox import Statement

_TOLD_AT = 3  # looks in a row
_DONE = "had "


class Handling:
    """Remembers what was seen of each rank.

    Args:
        noted_by: what a rank noted last, None when that is not known.
        notify: tells the user something, in one line.
    """

    def __init__(self, noted_by: Callable[[int], Statement | None], notify: Callable[[str], None]) -> None:
        self._noted_by, self._notify = noted_by, notify
        self._seen: dict[int, tuple[Statement, int]] = {}  # what, and in how many looks in a row

    def look(self, ranks: Iterable[int]) -> None:
        """See what `ranks` do now; say once of each that it takes long."""
        for rank in ranks:
            noted = self._noted_by(rank)
            before, count = self._seen.pop(rank, (None, 0))
            if noted is None or noted.line or noted.name.startswith(_DONE):
                continue
            self._seen[rank] = noted, count + 1 if noted == before else 1
            if self._seen[rank][1] == _TOLD_AT:
                self._notify(f"rank {rank} takes long: it {noted}, for more than a second. An interrupt gives it up")
