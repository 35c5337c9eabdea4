"""The guard: a tiny process that ends the workers' process groups, and removes their folder, when the kernel is gone.

The parent-death signal ends a worker, but not the processes that the worker started (DataLoader workers, shells).
The guard holds no memory of the notebook: it is a shell that waits for the end of its input.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel

_log = logging.getLogger(__name__)

# A process may still make a file in the moment in which it is killed: so the folder is removed again if need be.
_SCRIPT = """
while read -r groups; do last=$groups; done
[ -z "$last" ] || kill -s KILL -- $last 2>/dev/null
[ -z "$last" ] || [ -z "$2" ] || echo "$last" >> "$2"
rm -rf -- "$1" || { sleep 0.1; rm -rf -- "$1"; }
"""


class Guard:
    """Watches over process groups and a folder until it is dismissed. When its process was killed, another follows.

    Args:
        folder: is removed when the kernel is gone.
        note: a file to which it then adds the groups that it has ended, or None.

    Raises:
        OSError: no process could be started.
    """

    def __init__(self, folder: Path, note: Path | None = None) -> None:
        self._arguments = (str(folder), str(note or ""))
        self._lock = threading.Lock()
        self._input = -1
        self._shell = self._start()

    def watch(self, groups: Iterable[int]) -> None:
        """From now on these, and only these, process groups end with the kernel. After the dismissal, nothing."""
        with self._lock:
            if self._input < 0:
                return
            line = " ".join(f"-{group}" for group in groups).encode() + b"\n"  # here: whoever comes last knows most
            try:
                os.write(self._input, line)
            except BrokenPipeError:
                self._end()
                self._follow(line)

    def dismiss(self) -> None:
        """Nothing is left to be watched. Idempotent.

        Killed before its input ends: the groups' numbers may belong to others by now.
        """
        with self._lock:
            if self._input >= 0:
                self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        shell_end, ours = os.pipe()
        try:
            shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "nbsync-guard", *self._arguments],
                stdin=shell_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(shell_end)
        keep_in_kernel(ours)
        self._input = ours
        return shell

    def _end(self) -> None:
        self._shell.kill()
        self._shell.wait()
        close_kernel_only(self._input)
        self._input = -1

    def _follow(self, line: bytes) -> None:
        """Start another process in place of the one that was killed."""
        try:
            self._shell = self._start()
            os.write(self._input, line)
        except OSError as error:  # said once: without an input `watch` does nothing
            _log.warning("if this kernel is killed, processes that the workers started may be left: %s", error)
