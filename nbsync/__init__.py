"""Distributed PyTorch inside a Jupyter notebook, cell by cell.

`%load_ext nbsync` brings the magics. The names below load their modules (and torch) only when they are used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tqdm.auto import tqdm

    from nbsync.errors import (
        BarrierTimeout,
        CollectiveMismatch,
        Deadlock,
        Interrupted,
        MainProcessFailed,
        NbsyncError,
        NoSession,
        OperationCutOff,
        RankBusy,
        RunTimeout,
        StartError,
        StoreWaitEnded,
        TransferError,
        UsageError,
        WorkerDied,
        WorkerError,
    )
    from nbsync.kernel.current import session
    from nbsync.kernel.launcher import notebook_launcher
    from nbsync.kernel.session import Session
    from nbsync.kernel.start.forkcheck import check_fork
    from nbsync.worker.control.logs import get_logger
    from nbsync.worker.control.world import World

__all__ = [
    "BarrierTimeout",
    "CollectiveMismatch",
    "Deadlock",
    "Interrupted",
    "MainProcessFailed",
    "NbsyncError",
    "NoSession",
    "OperationCutOff",
    "RankBusy",
    "RunTimeout",
    "Session",
    "StartError",
    "StoreWaitEnded",
    "TransferError",
    "UsageError",
    "WorkerDied",
    "WorkerError",
    "World",
    "check_fork",
    "get_logger",
    "notebook_launcher",
    "session",
    "tqdm",
]

_HOMES = {
    "Session": "nbsync.kernel.session",
    "World": "nbsync.worker.control.world",
    "check_fork": "nbsync.kernel.start.forkcheck",
    "get_logger": "nbsync.worker.control.logs",
    "notebook_launcher": "nbsync.kernel.launcher",
    "session": "nbsync.kernel.current",
    "tqdm": "tqdm.auto",
}
_STARTERS = ("Session", "notebook_launcher", "session")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nbsync' has no attribute {name!r}")
    if name in _STARTERS:
        _check_windows()
    value = getattr(import_module(_HOMES.get(name, "nbsync.errors")), name)
    if name in _STARTERS:
        _show_in_notebook()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _check_windows() -> None:
    """Windows has not even what the kernel's modules import. Elsewhere it is a start that fails."""
    if sys.platform == "win32":
        import_module("nbsync.kernel.start.system").check_system()


def _show_in_notebook() -> None:
    """Where IPython runs, the workers' output goes there, also without `%load_ext nbsync`."""
    import_module("nbsync.kernel.start.culprit").watch()
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        import_module("nbsync.notebook.outlet").install()


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext nbsync`"""
    _check_windows()
    import_module("nbsync.notebook.magics").register(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext nbsync`: the magics go, and the workers with them."""
    import_module("nbsync.notebook.magics").unregister(shell)
