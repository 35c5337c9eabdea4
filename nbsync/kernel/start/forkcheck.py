"""`nbsync.check_fork()`: may this kernel fork? For people to run, and for bug reports."""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nbsync.kernel.start.culprit import initialised
from nbsync.kernel.start.system import why_no_workers
from nbsync.protocol.cells import ipython_shell

_POOLS = {
    "libgomp": "OpenMP (libgomp)",
    "libiomp5": "OpenMP (libiomp5)",
    "libomp": "OpenMP (libomp)",
    "libmkl_": "MKL",
    "openblas": "OpenBLAS",
    "libtbb": "TBB",
    "libarrow": "Arrow",
}
_CONNECTIONS = {
    "sqlite3": "Connection",
    "psycopg2.extensions": "connection",
    "psycopg": "Connection",
    "pymysql.connections": "Connection",
    "MySQLdb.connections": "Connection",
    "duckdb": "DuckDBPyConnection",
    "sqlalchemy.engine.base": "Engine",
    "pymongo.mongo_client": "MongoClient",
    "redis.client": "Redis",
}
_KERNELS_THREADS = re.compile(r"MainThread|IOPub|nbsync-|IPythonHistorySavingThread|Thread-\d+ \(_watch_pipe_fd\)")
_KERNELS_MODULES = ("ipykernel", "IPython", "zmq", "jupyter_client", "tornado")


@dataclass(frozen=True)
class Finding:
    """One thing about this kernel that matters to a fork.

    Attributes:
        what: what was found.
        means: what it means for the workers.
        forbids: whether a forked worker could not work.
    """

    what: str
    means: str
    forbids: bool = False

    def __str__(self) -> str:
        return f"{'NO ' if self.forbids else '-  '}{self.what}: {self.means}"


@dataclass(frozen=True)
class ForkCheck:
    """The findings. It is true when this kernel may fork; its text is a report."""

    findings: tuple[Finding, ...]

    @property
    def may_fork(self) -> bool:
        """Whether a forked worker could work."""
        return not any(finding.forbids for finding in self.findings)

    def __bool__(self) -> bool:
        return self.may_fork

    def __repr__(self) -> str:
        if self.may_fork:
            head = "This kernel may fork."
        else:
            head = "A fork of this kernel could not work."
            if not why_no_workers():
                head += ' start_method="auto" takes the fork server.'
        order = sorted(self.findings, key=lambda finding: not finding.forbids)
        return "\n".join([head, *map(str, order)])


def check_fork() -> ForkCheck:
    """May this kernel fork, and what does a worker that is forked from it not have?

    Nothing is changed by it: no accelerator is initialised, and torch is not imported.

    Returns:
        True when a forked worker would work (`may_fork`); shown, it is a report. `findings` are accelerators and by
            whom they were initialised, pools of native threads, threads of Python, libraries and connections that do
            not survive a fork, each with `what` was found, what it `means`, and whether it `forbids` the fork.
    """
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_system, _accelerators, _threads, _libraries, _connections)
    return ForkCheck(tuple(finding for check in checks for finding in check()))


def _accelerators() -> Iterator[Finding]:
    runtimes = initialised()
    for runtime, place in runtimes.items():
        what = f"{runtime} is initialised" + (f", {place}" if place else "")
        yield Finding(what, "a forked process cannot use it", forbids=True)
    if "CUDA" not in runtimes and any(target.startswith("/dev/nvidia-uvm") for target in _open_files()):
        means = "a library other than torch uses CUDA (cupy, numba, ...): a forked process cannot use it"
        yield Finding("the NVIDIA driver is open", means, forbids=True)


def _system() -> Iterator[Finding]:
    if reason := why_no_workers():
        yield Finding(f"the system is {sys.platform}", reason, forbids=True)


def _threads() -> Iterator[Finding]:
    python = {thread.native_id for thread in threading.enumerate()}
    with suppress(OSError):
        native = [int(name) for name in os.listdir("/proc/self/task") if int(name) not in python]
        if native:
            pools = ", ".join(sorted(_loaded_pools())) or "unknown libraries"
            means = "workers make their own: nbsync forks from a thread that has never computed"
            yield Finding(f"{len(native)} native threads ({pools})", means)
    users = [thread.name for thread in threading.enumerate() if not _is_kernels(thread)]
    if users:
        means = "they are not in the workers, where locks that they hold stay held"
        yield Finding(f"threads of Python: {', '.join(users)}", means)


def _is_kernels(thread: threading.Thread) -> bool:
    module = type(thread).__module__.partition(".")[0]
    return module in _KERNELS_MODULES or _KERNELS_THREADS.match(thread.name) is not None


def _libraries() -> Iterator[Finding]:
    if "grpc._cython.cygrpc" in sys.modules:
        on = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("1", "true")
        means = "workers must make their own channels" + (
            "" if on else "; set GRPC_ENABLE_FORK_SUPPORT=1 before import"
        )
        yield Finding("gRPC is loaded", means)
    if "tokenizers" in sys.modules:
        yield Finding("tokenizers is loaded", "workers use it without threads, unless TOKENIZERS_PARALLELISM says so")


def _connections() -> Iterator[Finding]:
    found: Counter[str] = Counter()
    own = _of_history()
    for thing in gc.get_objects():
        module, name = type(thing).__module__, type(thing).__name__
        if _CONNECTIONS.get(module) == name and id(thing) not in own:
            found[f"{module}.{name}"] += 1
    for name, count in found.items():
        yield Finding(f"{count} open {name}", "a worker must not use the notebook's: it opens its own")


def _of_history() -> set[int]:
    """The database connections in which IPython keeps its history."""
    history = getattr(ipython_shell(), "history_manager", None)
    return {id(getattr(owner, "db", None)) for owner in (history, getattr(history, "save_thread", None))}


def _loaded_pools() -> set[str]:
    text = Path("/proc/self/maps").read_text("utf-8", "replace")
    files = {line.rpartition("/")[2] for line in text.splitlines() if "/" in line}
    return {pool for part, pool in _POOLS.items() if any(part in file for file in files)}


def _open_files() -> Iterator[str]:
    with suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                yield os.readlink(f"/proc/self/fd/{name}")
