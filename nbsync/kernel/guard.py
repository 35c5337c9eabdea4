"""The guard: a tiny process that ends the workers' process groups, and removes their folder, when the kernel is gone.

The parent-death signal ends a worker, but not the processes that the worker started (DataLoader workers, shells).
The guard holds no memory of the notebook: it is a shell that waits for the end of its input.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from nbsync.kernel.descriptors import close_kernel_only, keep_in_kernel

# A process may still make a file in the moment in which it is killed: so the folder is removed again if need be.
_SCRIPT = """
while read -r groups; do last=$groups; done
[ -z "$last" ] || kill -s KILL -- $last 2>/dev/null
[ -z "$last" ] || [ -z "$2" ] || echo "$last" >> "$2"
rm -rf -- "$1" || { sleep 0.1; rm -rf -- "$1"; }
"""


class Guard:
    """Watches over process groups and a folder until it is dismissed.

    Args:
        folder: is removed when the kernel is gone.
        note: a file to which it then adds the groups that it has ended, or None.

    Raises:
        OSError: no process could be started.
    """

    def __init__(self, folder: Path, note: Path | None = None) -> None:
        shell_end, self._input = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "nbsync-guard", str(folder), str(note or "")],
                stdin=shell_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            os.close(self._input)
            raise
        finally:
            os.close(shell_end)
        keep_in_kernel(self._input)

    def watch(self, groups: Iterable[int]) -> None:
        """From now on these, and only these, process groups end with the kernel."""
        line = " ".join(f"-{group}" for group in groups)
        os.write(self._input, line.encode() + b"\n")

    def dismiss(self) -> None:
        """Nothing is left to be watched.

        Killed before its input ends: the groups' numbers may belong to others by now.
        """
        self._shell.kill()
        self._shell.wait()
        close_kernel_only(self._input)
