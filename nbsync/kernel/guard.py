"""The guard: a tiny process that ends the workers' process groups when the kernel is gone.

The parent-death signal ends a worker, but not the processes that the worker started (DataLoader workers, shells).
The guard holds no memory of the notebook: it is a shell that waits for the end of its input.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable

from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel

_SCRIPT = 'while read -r groups; do last=$groups; done; [ -z "$last" ] || kill -s KILL -- $last 2>/dev/null'


class Guard:
    """Watches over process groups until it is told of none any more."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        self._input = -1

    def watch(self, groups: Iterable[int]) -> None:
        """From now on these, and only these, process groups end with the kernel."""
        line = " ".join(f"-{group}" for group in groups)
        if not line:
            self._dismiss()
            return
        if self._shell is None:
            self._open()
        os.write(self._input, line.encode() + b"\n")

    def _open(self) -> None:
        shell_end, self._input = os.pipe()
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=shell_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(shell_end)
        keep_in_kernel(self._input)

    def _dismiss(self) -> None:
        """Killed before its input ends: the groups' numbers may belong to others by now."""
        if self._shell is None:
            return
        self._shell.kill()
        self._shell.wait()
        self._shell = None
        close_kernel_only(self._input)
