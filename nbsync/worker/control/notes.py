"""Where ranks note that they have come to a barrier, for those that wait for them with a timeout."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from typing import Protocol

from torch._C._distributed_c10d import Store

KEY = "nbsync/barrier"  # in the store
GONE = ""
_SLOT = struct.Struct("=QQ")


class Notes(Protocol):
    """One note per rank: the step of the barrier that it is in for good."""

    def put(self, rank: int, step: int) -> None:
        """`rank` has come."""

    def take_back(self, rank: int) -> None:
        """`rank` has left without the others."""

    def here(self, ranks: Sequence[int], step: int) -> set[int]:
        """Those of `ranks` that are at this step."""


class StoreNotes:
    """In the process group's store, which a group on several machines shares too."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, rank: int, step: int) -> None:
        self._store.set(f"{KEY}/{rank}", str(step))

    def take_back(self, rank: int) -> None:
        self._store.set(f"{KEY}/{rank}", GONE)

    def here(self, ranks: Sequence[int], step: int) -> set[int]:
        keys = [f"{KEY}/{rank}" for rank in ranks]
        if not keys:
            return set()
        if not self._store.check(keys):  # reading what is not there would wait for it
            for key in keys:
                self._store.compare_set(key, GONE, GONE)
        sign = str(step).encode()
        return {rank for rank, note in zip(ranks, self._store.multi_get(keys), strict=True) if note == sign}


class PageNotes:
    """In memory that the ranks of one machine share through a file: a note costs no system call.

    Args:
        path: the file; made at need.
        size: the number of ranks.
        life: which life of the process group: notes of an earlier one, whose steps were the same numbers, are void.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: str, size: int, life: int) -> None:
        self._life = life
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size * _SLOT.size)  # a page that no disk stands behind would be a SIGBUS
            self._page = mmap.mmap(fd, size * _SLOT.size)
        finally:
            os.close(fd)

    def put(self, rank: int, step: int) -> None:
        _SLOT.pack_into(self._page, rank * _SLOT.size, self._life, step + 1)

    def take_back(self, rank: int) -> None:
        _SLOT.pack_into(self._page, rank * _SLOT.size, 0, 0)

    def here(self, ranks: Sequence[int], step: int) -> set[int]:
        sign = (self._life, step + 1)
        return {rank for rank in ranks if _SLOT.unpack_from(self._page, rank * _SLOT.size) == sign}
