"""How soon everything of a session is gone when its kernel is killed, and what it adds to the kernel's shutdown."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from kernels import CellFailed, Kernel
from report import Row, at_most, at_most_above

GONE = 0.2  # seconds until all processes are
MORE = 0.3  # seconds that a session adds to the shutdown
_GIVE_UP = 10.0

_SETUP = ("import torch", "%load_ext nbsync", "%nbsync start -n 2")
_LOADERS = (
    "%%distributed\nloader = torch.utils.data.DataLoader(range(8), num_workers=1, multiprocessing_context='fork')\n"
    "batches = iter(loader); next(batches)"
)
_DOING = {
    "idle": "",
    "computing": "while True: pass",
    "in a barrier": "if rank == 0: dist.barrier()\nelse:\n    while True: pass",
}


def kernel_killed(repeats: int) -> Row:
    """SIGKILL to the kernel, in a fresh one each time: its ranks and the processes of their DataLoaders."""
    series = {name: [_killed(code) for _ in range(repeats)] for name, code in _DOING.items()}
    checks = [at_most(name, samples, GONE) for name, samples in series.items()]
    return Row("kernel-killed", "2 ranks, each with a DataLoader of one process: until all are gone", series, checks)


def kernel_shutdown(repeats: int) -> Row:
    """Jupyter's own shutdown, in a fresh kernel each time."""
    series = {
        "with 2 ranks": [_shut_down(*_SETUP, _LOADERS) for _ in range(repeats)],
        "without": [_shut_down(*_SETUP[:2]) for _ in range(repeats)],
    }
    check = at_most_above("with 2 ranks", series["with 2 ranks"], "without", series["without"], limit=MORE)
    return Row("kernel-shutdown", "the kernel's graceful end", series, [check])


ENDING = {"kernel-killed": kernel_killed, "kernel-shutdown": kernel_shutdown}


def _killed(code: str) -> float:
    with Kernel(*_SETUP, _LOADERS) as kernel:
        if code:
            kernel.begin(f"%%distributed\nprint('begun')\n{code}", shown="begun")
        mine = _descendants(kernel.pid)
        begin = time.perf_counter()
        os.kill(kernel.pid, signal.SIGKILL)
        while any(map(_runs, mine)):
            if time.perf_counter() > begin + _GIVE_UP:
                raise CellFailed(f"after {_GIVE_UP:.0f} s there still are {list(filter(_runs, mine))}")
            time.sleep(0.001)
        return time.perf_counter() - begin


def _shut_down(*setup: str) -> float:
    with Kernel(*setup) as kernel:
        begin = time.perf_counter()
        kernel.shut_down()
        return time.perf_counter() - begin


def _descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in _read(task / "children").split()]
    return children + [each for child in children for each in _descendants(child)]


def _runs(pid: int) -> bool:
    """Whether it does: a zombie, which only its parent can remove, does not."""
    stat = _read(Path(f"/proc/{pid}/stat"))
    return bool(stat) and stat.rpartition(")")[2].split()[0] not in "ZX"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""
