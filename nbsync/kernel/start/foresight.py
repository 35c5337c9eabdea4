"""What ranks had to load is loaded in the notebook before it forks the next ones: once for all, in memory they share.

DDP and torch's optimizers load its compiler where they are first used: 1.2 s of processor time and 70 MB, on each rank.
"""

from __future__ import annotations

from contextlib import suppress

from nbsync.kernel.start.loading import load
from nbsync.protocol.spec import COMPILER

_is_used = False


def note_compiler() -> None:
    """A rank has loaded it."""
    global _is_used
    _is_used = True


def load_what_was_used() -> None:
    """Takes its time at the first start after that. Not for the thread that forks, which must never compute.

    Raises:
        Interrupted: as `load`.
    """
    if _is_used:
        with suppress(ImportError):  # they tell of it themselves
            load(COMPILER)
