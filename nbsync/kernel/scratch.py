"""A session's private folder: logs of floods, and what the workers' DataLoaders leave behind.

It goes with the session. When the kernel is killed the guard removes it; what even that misses, since the whole machine
went down, goes at the first start of a later kernel.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel

_log = logging.getLogger(__name__)

_NAME = re.compile(r"nbsync-[0-9a-f]{8}")
_LONGEST = 107 - len("/nbsync-01234567/listener-01234567")  # bytes before that: sockets, whose paths are limited
_MARK = ".nbsync-session"  # a file in it: a folder without it is not ours, whatever its name
_MOST_LEFT = 5  # folders that outlive their sessions
_SETTLED = 60.0  # seconds after which a folder without a lock is nobody's: its owner locks it right after making it


class Scratch:
    """The folder's name from the beginning, the folder itself once it is made.

    Its owner holds a lock on it, which ends with the process: that tells a folder in use from one left behind.
    """

    def __init__(self) -> None:
        self.path = Path(_parent(), f"nbsync-{secrets.token_hex(4)}")
        self._lock = -1

    def make(self) -> None:
        """Make the folder, for this user alone.

        Raises:
            OSError: it cannot be made.
        """
        os.mkdir(self.path)
        try:
            os.chmod(self.path, 0o700)  # whatever the umask
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            keep_in_kernel(self._lock)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            Path(self.path, _MARK).touch(mode=0o600)
        except OSError:
            self.remove()
            with suppress(OSError):  # removed already
                os.rmdir(self.path)
            raise

    @property
    def is_made(self) -> bool:
        """Whether the folder is there."""
        return self._lock >= 0

    def leave(self) -> None:
        """Keep the folder when its session ends, to be read: until the kernel ends, or some newer ones are left."""
        _left.append(self)
        for old in _left[:-_MOST_LEFT]:
            old.remove()
        del _left[:-_MOST_LEFT]

    def remove(self) -> None:
        """Remove the folder with all that is in it. Idempotent."""
        if self.is_made:
            _remove(self.path)
            close_kernel_only(self._lock)
            self._lock = -1


def _parent() -> str:
    """The folder for temporary files; a shorter one where the sockets of DataLoader workers would not fit in it."""
    usual = tempfile.gettempdir()
    is_short = len(os.fsencode(usual)) <= _LONGEST
    return usual if is_short or not os.access("/tmp", os.W_OK | os.X_OK) else "/tmp"


_left: list[Scratch] = []


def _remove_left() -> None:
    for scratch in _left:
        scratch.remove()


atexit.register(_remove_left)
os.register_at_fork(after_in_child=_left.clear)  # they are the kernel's


@cache
def sweep() -> None:
    """Remove the folders of kernels that are gone, and that nobody else has removed: once in this process."""
    with os.scandir(_parent()) as entries:
        mine = [entry.path for entry in entries if _NAME.fullmatch(entry.name) and _is_settled(entry)]
    for path in mine:
        with suppress(OSError):  # gone meanwhile, or no folder of ours
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.stat(_MARK, dir_fd=fd, follow_symlinks=False)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(Path(path))
            finally:
                os.close(fd)


def _is_settled(entry: os.DirEntry[str]) -> bool:
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:  # gone meanwhile
        return False
    # The clock of the file system, which is the only one there is for a file's age.
    return found.st_uid == os.getuid() and time.time() - found.st_mtime > _SETTLED


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        _log.warning("%s could not be removed: %s", path, error)
