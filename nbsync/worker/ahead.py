"""What a rank's first error would have to wait for, done while the rank has nothing else to do.

IPython loads what it renders tracebacks with at the first of them. That takes 30 to 70 ms, on each rank again, in which
an error that has happened is not shown.
"""

from __future__ import annotations

import inspect
import queue
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

from nbsync.worker.shell import WorkerShell

QUIET = 0.05  # seconds without a request after which none is about to come
_MODULES = ("asttokens", "executing", "pure_eval", "stack_data", "pygments.styles", "pygments.formatters.terminal256")

Steps = list[Callable[[], object]]


def steps_to_first_traceback(shell: WorkerShell) -> Steps:
    """What to do, the last one first. A step takes a few milliseconds: a request that comes meanwhile waits for it."""
    return [partial(_render_one, shell), _find_modules, *(partial(import_module, name) for name in reversed(_MODULES))]


def next_request(inbox: queue.SimpleQueue[Any], steps: Steps) -> Any:
    """Wait for a request; take the steps meanwhile, one whenever none has come for a moment."""
    while steps:
        with suppress(queue.Empty):
            return inbox.get(timeout=QUIET)
        step = steps.pop()
        with suppress(Exception):  # a module of this name may be the user's: what it raises is for his own traceback
            step()
    return inbox.get()


def _find_modules() -> None:
    """IPython asks `inspect` for the module of every frame, and that notes once where each module comes from."""
    inspect.getmodule(sys._getframe())


def _render_one(shell: WorkerShell) -> None:
    try:
        raise ValueError
    except ValueError as error:
        shell.render(error)
        shell.forget()
