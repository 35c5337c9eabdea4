"""What each rank has begun, in memory that the ranks of one machine share.

Nobody waits for what another rank writes there. But data that has arrived was noted by its sender before: so when an
operation has ended, its ranks' entries are there to be compared.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

_ENTRIES = 128  # of one rank; a later one takes the place of an earlier one
_HEAD = struct.Struct("=II")  # how long the text of the entry is, and its checksum: it may be read while it is written
_SIZE = 384  # bytes of an entry
_BYTES = _ENTRIES * _SIZE  # of one rank
_BETWEEN = "\0"


class Entry(NamedTuple):
    """What a rank has begun.

    Attributes:
        must: a checksum of what has to be equal on all the ranks concerned.
        told: what it is, in words, with the line of the user's code.
    """

    must: str
    told: str


class Ledger:
    """The entries of all ranks.

    Args:
        path: of the file; made at need.
        size: the number of ranks.
        rank: this one.
        life: which life of the process groups: entries of an earlier one mean nothing.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: str, size: int, rank: int, life: int) -> None:
        self._rank, self._life = rank, life
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size * _BYTES)  # a page that no disk stands behind would be a SIGBUS
            self._page = mmap.mmap(fd, size * _BYTES)
        finally:
            os.close(fd)

    def note(self, key: str, entry: Entry) -> None:
        """This rank begins what the ranks concerned know by `key`."""
        name = self._name(key)
        text = _BETWEEN.join((name, *entry)).encode()[: _SIZE - _HEAD.size]
        place = self._rank * _BYTES + _place(name)
        self._page[place : place + _HEAD.size + len(text)] = _HEAD.pack(len(text), zlib.crc32(text)) + text

    def read(self, ranks: Sequence[int], key: str) -> dict[int, Entry]:
        """What these have noted of it; nothing of a rank that has not begun it, or long ago."""
        name, found = self._name(key), {}
        place = _place(name)
        for rank in ranks:
            begin = rank * _BYTES + place
            length, checksum = _HEAD.unpack_from(self._page, begin)
            text = self._page[begin + _HEAD.size : begin + _HEAD.size + length]
            noted, *entry = text.decode(errors="replace").split(_BETWEEN)
            if noted == name and zlib.crc32(text) == checksum and len(entry) == len(Entry._fields):
                found[rank] = Entry(*entry)
        return found

    def _name(self, key: str) -> str:
        return f"{self._life}/{key}"


def checksum(text: str) -> str:
    """What an entry has of `text`, which may be long."""
    return f"{zlib.crc32(text.encode()):x}"


def _place(name: str) -> int:
    """Those of one group, or one way, take turns: of as many as there are entries, none has the place of another."""
    what, _, number = name.rpartition("/")
    return (zlib.crc32(what.encode()) + int(number)) % _ENTRIES * _SIZE
