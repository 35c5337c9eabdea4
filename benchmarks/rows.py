"""The rows of the table: what is measured, against what, and the target of each.

Tools that do the same work take turns, repeat by repeat: a drift of the machine hits them alike.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ending import ENDING
from kernels import Cell, CellFailed, Kernel
from report import Check, Row, at_most, at_most_above, at_most_times
from training import training
from view import VIEW

Work = Callable[[], float]  # does it once and returns the seconds

NBSYNC, ACCELERATE, FLOOR = "nbsync", "accelerate", "bare fork + gloo"
LINES = 20_000
COLLECTIVES = 200
_CELLS_PER_REPEAT = 20
_FRESH_KERNELS = 3

_IMPORT_TORCH = "import torch, torch.distributed as dist"
_START = "%nbsync start -n 2"
_STOP = "%nbsync stop"
_REDUCE = "%%distributed\nt = torch.ones(1)\ndist.all_reduce(t)\nassert t.item() == 2"

# The same function for both launchers. A port of its own: other kernels of this host may use the default one.
_DEFINE = """
import os, socket, time, warnings
def reduce_once():
    dist.init_process_group("gloo")
    t = torch.ones(1)
    dist.all_reduce(t)
    assert t.item() == 2
    dist.destroy_process_group()
def reduce_often(count, file):
    dist.init_process_group("gloo")
    t = torch.ones(1)
    for i in range(20 + count):
        if i == 20:
            begin = time.perf_counter()
        dist.all_reduce(t, op=dist.ReduceOp.MAX)
    seconds = time.perf_counter() - begin
    if dist.get_rank() == 0:
        with open(file, "w") as out:
            print(seconds, file=out)
    dist.destroy_process_group()
def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
"""
_FORK = """
warnings.filterwarnings("ignore", category=DeprecationWarning)
def fork_and_reduce(size=2):
    store = dist.TCPStore("127.0.0.1", 0, size, is_master=True, wait_for_workers=False)
    children = []
    for rank in range(size):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                                  MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True",
                                  GLOO_SOCKET_IFNAME="lo")
                reduce_once()
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
"""
_BY_NBSYNC = "launch_nbsync(reduce_once, num_processes=2)"
_BY_ACCELERATE = "launch_accelerate(reduce_once, num_processes=2, use_port=free_port())"
_IMPORT_NBSYNC = "from nbsync import notebook_launcher as launch_nbsync"
_IMPORT_ACCELERATE = "from accelerate import notebook_launcher as launch_accelerate"


def launch(repeats: int) -> Row:
    """One-shot launches in a kernel that has launched before."""
    with Kernel(_IMPORT_TORCH, _DEFINE, _FORK, _IMPORT_NBSYNC, _IMPORT_ACCELERATE) as kernel:
        series = _take_turns(
            repeats,
            {
                NBSYNC: lambda: kernel.seconds(_BY_NBSYNC),
                ACCELERATE: lambda: kernel.seconds(_BY_ACCELERATE),
                FLOOR: lambda: kernel.seconds("fork_and_reduce()"),
            },
        )
    check = at_most_times("nbsync", series[NBSYNC], ACCELERATE, series[ACCELERATE], limit=1.0, aim=0.6)
    return Row("launch", "one-shot launch of 2 ranks, one all_reduce, back in the cell", series, [check])


def first_launch(repeats: int) -> Row:
    """The first launch of a kernel: what a launcher still has to load counts too."""

    def fresh(setup: str, code: str) -> float:
        with Kernel(_IMPORT_TORCH, _DEFINE, setup) as kernel:
            return kernel.seconds(code)

    series = _take_turns(
        min(repeats, _FRESH_KERNELS),
        {
            NBSYNC: lambda: fresh(_IMPORT_NBSYNC, _BY_NBSYNC),
            ACCELERATE: lambda: fresh(_IMPORT_ACCELERATE, _BY_ACCELERATE),
        },
        warm_up=0,
    )
    check = at_most_times("nbsync", series[NBSYNC], ACCELERATE, series[ACCELERATE], limit=1.0, aim=0.6)
    return Row("first-launch", "the same, as the first launch of a fresh kernel", series, [check])


def session(repeats: int) -> Row:
    """From `%nbsync start` until the first collective cell has run."""

    def start_and_reduce(kernel: Kernel) -> float:
        return kernel.seconds(_START) + kernel.seconds(_REDUCE)

    def fresh() -> float:
        with Kernel(_IMPORT_TORCH, "%load_ext nbsync") as kernel:
            return start_and_reduce(kernel)

    first = _take_turns(min(repeats, _FRESH_KERNELS), {"first of the kernel": fresh}, warm_up=0)
    with Kernel(_IMPORT_TORCH, "%load_ext nbsync") as kernel:

        def again() -> float:
            seconds = start_and_reduce(kernel)
            kernel.run(_STOP)
            return seconds

        later = _take_turns(repeats, {"later": again})
    series = first | later
    checks = [at_most(name, samples, 0.3) for name, samples in series.items()]
    return Row("session", "start 2 workers and run a first collective cell", series, checks)


def cell(repeats: int) -> Row:
    """The round trip of a cell."""
    with _session_kernel() as kernel:
        series = _take_turns(
            repeats * _CELLS_PER_REPEAT,
            {
                "%%distributed": lambda: kernel.seconds("%%distributed\nx = 1"),
                "plain kernel cell": lambda: kernel.seconds("x = 1"),
            },
            warm_up=10,
        )
    plain = series["plain kernel cell"]
    check = at_most_above("%%distributed", series["%%distributed"], "a plain cell", plain, limit=0.003)
    return Row("cell", "x = 1 on 2 ranks", series, [check])


def collectives(repeats: int) -> Row:
    """What nbsync adds to collectives of the user's code; timed inside the launched function, on rank 0."""
    with (
        Kernel(_IMPORT_TORCH, _DEFINE, _IMPORT_NBSYNC, _IMPORT_ACCELERATE) as kernel,
        tempfile.TemporaryDirectory() as folder,
    ):
        file = Path(folder, "seconds")

        def launched(code: str) -> float:
            kernel.run(code.replace("(reduce_once,", f"(reduce_often, ({COLLECTIVES}, {str(file)!r}),"))
            return float(file.read_text()) / COLLECTIVES

        series = _take_turns(
            max(1, repeats // 2),
            {NBSYNC: lambda: launched(_BY_NBSYNC), ACCELERATE: lambda: launched(_BY_ACCELERATE)},
            warm_up=1,
        )
    return Row("collectives", f"one all_reduce of one number, of {COLLECTIVES} in a row", series)


def lines(repeats: int) -> Row:
    """A flood of printed lines, which must all arrive."""
    loop = f"for i in range({LINES}): print("
    wrong: list[str] = []
    with _session_kernel() as kernel:

        def printed(code: str) -> float:
            result = kernel.run(f"%%distributed\n{loop}{code})")
            wrong.extend(_missing_lines(result))
            return result.seconds

        series = _take_turns(
            max(1, repeats // 2),
            {
                "equal lines": lambda: printed("'line', i"),
                "different lines": lambda: printed("'line', i, 'of', rank"),
                "plain kernel, one process": lambda: kernel.seconds(f"{loop}'line', i)"),
            },
        )
    found = f"{len(wrong)} missing or misplaced ({wrong[0]}, ...)" if wrong else "all there, in order"
    checks = [
        at_most("equal lines", series["equal lines"], 1.5),
        at_most("different lines", series["different lines"], 1.5),
        Check(f"no line lost: {found}", not wrong),
    ]
    return Row("lines", f"{LINES:,} lines printed by each of 2 ranks", series, checks)


def _missing_lines(result: Cell) -> list[str]:
    """What does not stand where it should, as "rank: line"."""
    numbers: dict[int, list[int]] = {0: [], 1: []}
    for label, number in re.findall(r"^\[(0|1|0-1)\] line (\d+)(?: of [01])?$", result.stdout, re.MULTILINE):
        for rank in (0, 1) if label == "0-1" else (int(label),):
            numbers[rank].append(int(number))
    expected = list(range(LINES))
    if all(found == expected for found in numbers.values()):
        return []
    missing = [f"{rank}: {i}" for rank, found in numbers.items() for i in sorted(set(expected) - set(found))]
    return missing or ["the order is wrong"]


def transfer(repeats: int) -> Row:
    """A large tensor to the ranks and back."""
    with _session_kernel("big = torch.ones(25_000_000)") as kernel:
        series = _take_turns(
            repeats,
            {
                "push": lambda: kernel.seconds("%nbsync push big"),
                "pull": lambda: _pull(kernel),
                "one copy in the kernel": lambda: kernel.seconds("copy = big.clone()"),
            },
        )
    return Row("transfer", "a tensor of 100 MB to 2 ranks, and from both back", series)


def _pull(kernel: Kernel) -> float:
    seconds = kernel.seconds("keep = big\n%nbsync pull big")
    kernel.run("assert len(big) == 2 and all(torch.equal(b, keep) for b in big)\nbig = keep")
    return seconds


def imports(repeats: int) -> Row:
    """What stands at the top of a notebook."""
    timed = "import sys, time\n{before}\nt = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)\n"
    no_torch = "assert 'torch' not in sys.modules"
    shell = "from IPython.core.interactiveshell import InteractiveShell as S\nshell = S.instance()"
    load = "shell.run_line_magic('load_ext', 'nbsync')"

    def fresh(before: str, code: str) -> float:
        script = timed.format(before=before, code=code) + no_torch
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CellFailed(done.stderr.strip().rpartition("\n")[2])
        return float(done.stdout)

    series = _take_turns(
        repeats,
        {
            "import nbsync": lambda: fresh("", "import nbsync"),
            "%load_ext nbsync": lambda: fresh(shell, load),
        },
    )
    checks = [at_most(name, samples, 0.05) for name, samples in series.items()]
    return Row("imports", "in a fresh process, without loading torch", series, checks)


def restart(repeats: int) -> Row:
    """Fresh workers in place of the old ones."""
    with _session_kernel() as kernel:

        def once() -> float:
            seconds = kernel.seconds("%nbsync restart")
            kernel.run(_REDUCE)
            return seconds

        series = _take_turns(repeats, {"%nbsync restart": once})
    return Row("restart", "fresh workers", series, [at_most("restart", series["%nbsync restart"], 1.0)])


def stop(repeats: int) -> Row:
    """The end of idle workers."""
    with _session_kernel() as kernel:

        def once() -> float:
            seconds = kernel.seconds(_STOP)
            kernel.run(_START)
            return seconds

        series = _take_turns(repeats, {_STOP: once})
    return Row("stop", "end 2 idle workers", series)


def failure(repeats: int) -> Row:
    """One rank raises, the other waits in a barrier: until the cell has failed and the group is whole."""
    fails = "%%distributed\nif rank == 1:\n    raise ValueError('on purpose')\ndist.barrier()"
    raises = "%%distributed\nraise ValueError('on purpose')"
    with _session_kernel() as kernel:

        def once(code: str) -> float:
            result = kernel.run(code, expected="error")
            if "ValueError" not in result.error:
                raise CellFailed(f"the error is not the rank's own: {result.error}")
            kernel.run(_REDUCE)  # the group works again
            return result.seconds

        series = _take_turns(
            repeats,
            {
                "rank 1 raises, rank 0 in barrier": lambda: once(fails),
                "both ranks raise, no barrier": lambda: once(raises),
            },
        )
    return Row("failure", "from the cell's request to its error reply", series)


ROWS: dict[str, Callable[[int], Row]] = {
    "imports": imports,
    "launch": launch,
    "first-launch": first_launch,
    "session": session,
    "cell": cell,
    "collectives": collectives,
    "training": training,
    "lines": lines,
    "transfer": transfer,
    "restart": restart,
    "stop": stop,
    "failure": failure,
    **ENDING,
    **VIEW,
}


def _session_kernel(*setup: str) -> Kernel:
    return Kernel(_IMPORT_TORCH, "%load_ext nbsync", *setup, _START, _REDUCE)


def _take_turns(repeats: int, tools: dict[str, Work], warm_up: int = 2) -> dict[str, list[float]]:
    """Let the tools work one after the other, again and again; the first rounds do not count."""
    samples: dict[str, list[float]] = {name: [] for name in tools}
    for number in range(warm_up + repeats):
        for name, work in tools.items():
            seconds = work()
            if number >= warm_up:
                samples[name].append(seconds)
    return samples
