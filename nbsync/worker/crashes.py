"""The stack that a rank writes by itself when it crashes, or when it is asked to while C code holds the GIL."""

from __future__ import annotations

import faulthandler
import os
import signal

from nbsync.protocol.handlers import handled_signals
from nbsync.protocol.spec import STACK_SIGNAL


def show_stacks(fd: int) -> None:
    """Have the stacks written to the descriptor `fd`."""
    faulthandler.enable(fd, all_threads=False)
    faulthandler.register(STACK_SIGNAL, fd, all_threads=False)


def keep_showing_stacks(fd: int) -> None:
    """Put back what the user's code has taken away, but no handler of its own in the place.

    Code that puts all handlers back as `signal.getsignal` has told them, as Lightning's Trainer does, loses those of
    faulthandler, which Python does not know. faulthandler goes on to believe that it is registered.
    """
    handled = handled_signals(os.getpid())
    if faulthandler.is_enabled() and signal.SIGSEGV not in handled:
        faulthandler.disable()
    if STACK_SIGNAL not in handled:
        faulthandler.unregister(STACK_SIGNAL)
    show_stacks(fd)
