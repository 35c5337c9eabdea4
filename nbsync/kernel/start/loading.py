"""Loads torch into the kernel, in a thread of its own: an import of torch that is cut off cannot be mended.

What is left of it makes every later `import torch` fail, or crashes the kernel. KeyboardInterrupt is raised in the main
thread only: so it ends the waiting, and the import goes on.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from importlib import import_module
from types import ModuleType

from nbsync.errors import Interrupted

_modules: dict[str, Future[ModuleType]] = {}
_lock = threading.Lock()


def load(name: str) -> ModuleType:
    """Import the module `name`, which is torch or imports it.

    Raises:
        Interrupted: the user did not want to wait. Who asks for it again waits for the same import.
    """
    with _lock:
        future = _modules.get(name)
        if future is None or (future.done() and future.exception() is not None):
            future = Future()
            threading.Thread(target=_import, args=(name, future), name="nbsync-import", daemon=True).start()
            _modules[name] = future
    try:
        return future.result()
    except KeyboardInterrupt:
        raise Interrupted(["while loading torch in the notebook, which goes on: the next start waits for it"]) from None


def _import(name: str, future: Future[ModuleType]) -> None:
    try:
        future.set_result(import_module(name))
    except BaseException as error:  # it belongs to whoever waits
        future.set_exception(error)
