"""Logs of what ranks wrote, for the part that the notebook does not show: files in the session's folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel
from nbsync.protocol.words import format_size

_IN_MEMORY = 128 << 10  # bytes: a rank that writes less needs no file
_LOOK_EVERY = 64 << 20  # bytes between two looks at the free space
_MOST = 4 << 30  # bytes of one log
_MOST_KEPT = 20  # logs of a session: older ones go
_SPARE = 0.02  # of the disk is left free


class Logs:
    """The logs of one session.

    Args:
        folder: the session's folder, or None when there is none.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._kept: list[Path] = []

    def open(self, rank: int) -> tuple[Path, int]:
        """A new file for what `rank` writes, open for writing.

        Raises:
            OSError: it cannot be made.
        """
        if self.folder is None:
            raise FileNotFoundError("there is no folder for temporary files")
        for number in count(1):
            path = self.folder / (f"rank{rank}.log" if number == 1 else f"rank{rank}-{number}.log")
            with suppress(FileExistsError):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
                keep_in_kernel(fd)
                return path, fd
        raise AssertionError("unreachable")

    @property
    def are_kept(self) -> bool:
        """Whether the user was told of one."""
        return bool(self._kept)

    def keep(self, path: Path) -> None:
        """The user was told of this one."""
        self._kept.append(path)
        for old in self._kept[:-_MOST_KEPT]:
            _remove(old)
        del self._kept[:-_MOST_KEPT]


def _remove(path: Path) -> None:
    with suppress(OSError):  # only tidiness: it goes with the session's folder
        path.unlink()


class Log:
    """All that one rank writes in one run: in memory at first, then in a file, up to 4 GB of it.

    Args:
        warn: told once, in one line, when it cannot be written on.
    """

    def __init__(self, logs: Logs, rank: int, warn: Callable[[str], None]) -> None:
        self._logs, self._rank, self._warn = logs, rank, warn
        self._memory: list[bytes] = []
        self._size = self._written = self._looked = 0
        self._fd = -1
        self.path: Path | None = None
        self.is_kept = False
        self.is_whole = True

    def write(self, data: bytes) -> None:
        """Add to the log."""
        if not self.is_whole:
            return
        if self.path is None:
            self._memory.append(data)
            self._size += len(data)
            if self._size > _IN_MEMORY:
                self._guarded(self._spill)
        else:
            self._guarded(lambda: self._write(data))

    def keep(self) -> None:
        """Something is hidden: the log is to be had until the session's end."""
        self.is_kept = True
        if self.path is None and self.is_whole:
            self._guarded(self._spill)

    def close(self) -> None:
        """Nothing more comes; a log that nobody was told of goes. Idempotent."""
        self._memory.clear()
        if self._fd >= 0:
            close_kernel_only(self._fd)
            self._fd = -1
            assert self.path is not None
            if self.is_kept:
                self._logs.keep(self.path)
            else:
                _remove(self.path)

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except OSError as error:
            self.is_whole = False
            self._memory.clear()
            self._warn(self._trouble(error))

    def _spill(self) -> None:
        self.path, self._fd = self._logs.open(self._rank)
        for data in self._memory:
            self._write(data)
        self._memory.clear()

    def _write(self, data: bytes) -> None:
        if self._written >= self._looked:
            self._looked = self._written + _LOOK_EVERY
            self._check_space()
        if self._written + len(data) > _MOST:
            raise OSError(None, "it is as long as a log may be")
        view = memoryview(data)
        while view:
            done = os.write(self._fd, view)
            self._written += done
            view = view[done:]

    def _check_space(self) -> None:
        """The disk is not ours to fill."""
        assert self.path is not None
        disk = shutil.disk_usage(self.path.parent)
        if disk.free < _SPARE * disk.total + _LOOK_EVERY:
            raise OSError(None, "the disk is nearly full")

    def _trouble(self, error: OSError) -> str:
        where = self.path or self._logs.folder
        text = f"the log of rank {self._rank}, {where}, cannot be written: " if where else "there is no log: "
        text += error.strerror or str(error)
        if where is not None:
            with suppress(OSError):
                text += f" ({format_size(shutil.disk_usage(where.parent).free)} free)"
        return f"{text}. Of what is hidden, only the end is kept"
