"""How soon a fault shows in the cell, and how soon the next collective works: p50 and p99 beside the targets.

A rank writes the moment of its fault to a file (the clock is the host's); the cell's error arrives here, as at a front
end. Then a cell with an all_reduce follows, and where a rank died, `%nbsync restart --ranks` before it.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kernels import Cell, CellFailed, Kernel
from report import heading

_SETTLED = 0.15  # seconds after the fault's moment until an interrupt is sent
_PAUSE = 1.0  # seconds before the first fault, as a user makes them: idle ranks get ready for errors in it


@dataclass(frozen=True)
class Fault:
    """A row of the fault matrix.

    Attributes:
        code: what all ranks run; `hit` is the rank that is hit, `mark()` writes down the moment of the fault.
        target: seconds from the fault (or from the interrupt, where there is one) until the error is in the cell.
        interrupt: the cell is ended by Jupyter's interrupt.
        kills: the rank must be brought back before the next collective.
    """

    row: int
    title: str
    code: str
    target: float
    interrupt: bool = False
    kills: bool = False


# In the cell itself: for the first traceback through a file IPython parses all of it (30 ms for 300 lines).
_RAISE = "raise ValueError('injected')"
_ON_HIT = "if rank == hit:\n    mark()\n    {}\ndist.barrier()"
_EVERYWHERE = "if rank == hit: mark()\n{}"
_IN_A_MESSAGE = """import threading
if rank == hit: threading.Timer(0.2, lambda: (mark(), inject.kill())).start()
large = torch.ones(20_000_000)
while True: dist.broadcast(large, src=hit)
"""

FAULTS = (
    Fault(1, "one raises, others idle", f"if rank == hit:\n    mark()\n    {_RAISE}", 0.05),
    Fault(2, "one raises, others in a collective", _ON_HIT.format(_RAISE), 0.25),
    Fault(3, "all raise the same", _EVERYWHERE.format(_RAISE), 0.1),
    Fault(4, "os._exit", _ON_HIT.format("inject.exit_process()"), 0.1, kills=True),
    Fault(5, "segfault", _ON_HIT.format("inject.segfault()"), 0.15, kills=True),
    Fault(6, "SIGKILL", _ON_HIT.format("inject.kill()"), 0.1, kills=True),
    Fault(6, "SIGKILL in a large message", _IN_A_MESSAGE, 0.1, kills=True),
    Fault(10, "wrong shape", _EVERYWHERE.format("inject.mismatched_shapes(hit)"), 0.25),
    Fault(11, "missed collective", _EVERYWHERE.format("inject.miss_collective(hit)"), 2.0),
    Fault(13, "interrupt in a loop", _ON_HIT.format("inject.loop_forever()"), 0.2, interrupt=True),
    Fault(15, "interrupt in recv", _EVERYWHERE.format("inject.deadlock_in_recv()"), 0.5, interrupt=True),
    Fault(
        16,
        "interrupt in a collective",
        "if rank != hit:\n    mark()\n    dist.barrier()\nelse:\n    inject.sleep_forever()",
        0.5,
        interrupt=True,
    ),
    Fault(18, "interrupt in sleep", _EVERYWHERE.format("inject.sleep_forever()"), 0.2, interrupt=True),
)

_SETUP = """%%distributed
import time
from nbsync.testing import inject
def mark():
    with open({file!r}, "w") as out:
        out.write(repr(time.monotonic()))
"""
_REDUCE = "%%distributed\nt = torch.ones(1)\ndist.all_reduce(t)\nassert t.item() == world_size"


@dataclass
class Times:
    """The samples of one row, in seconds."""

    detection: list[float] = field(default_factory=list)
    recovery: list[float] = field(default_factory=list)


class FaultKernel(Kernel):
    """A kernel that can be interrupted while a cell runs."""

    def interrupt(self) -> None:
        """Jupyter's own interrupt."""
        self._manager.interrupt_kernel()

    def run_interrupted(self, code: str, when: Sequence[threading.Event | float]) -> tuple[Cell, float]:
        """Run a cell, which must fail, and interrupt it; returns it with the moment of the last interrupt.

        Args:
            when: for each interrupt the event that it follows, or the seconds to wait before it.
        """
        asked = [0.0]

        def press() -> None:
            for each in when:
                if isinstance(each, float):
                    time.sleep(each)
                elif not each.wait(30):
                    return
                asked[0] = time.monotonic()
                self.interrupt()

        presser = threading.Thread(target=press)
        presser.start()
        try:
            cell = self.run(code, expected="error")
        finally:
            presser.join()
        return cell, asked[0]


class Bench:
    """One kernel with a session of `size` ranks."""

    def __init__(self, kernel: FaultKernel, size: int, folder: Path, seed: int) -> None:
        self._kernel, self._size = kernel, size
        self._file = folder / "moment"
        self._draw = random.Random(seed)
        kernel.run(f"%nbsync start -n {size}")
        self._prepare("all")
        time.sleep(_PAUSE)

    def hit(self, fault: Fault, times: Times) -> None:
        """Inject the fault once, and add how long it took."""
        rank = self._draw.randrange(self._size)
        code = f"%%distributed\nhit = {rank}\n{fault.code}"
        self._file.unlink(missing_ok=True)
        if fault.interrupt:
            marked = threading.Event()
            threading.Thread(target=self._wait_for_mark, args=(marked,)).start()
            _, begin = self._kernel.run_interrupted(code, [marked])
        else:
            self._kernel.run(code, expected="error")
            begin = float(self._file.read_text())
        end = time.monotonic()
        if fault.kills:
            self._kernel.run(f"%nbsync restart --ranks {rank}")
        self._kernel.run(_REDUCE)
        times.detection.append(end - begin)
        times.recovery.append(time.monotonic() - end)
        if fault.kills:
            self._prepare(str(rank))

    def close(self) -> None:
        """End the ranks."""
        self._kernel.run("%nbsync stop")

    def _prepare(self, ranks: str) -> None:
        self._kernel.run(_SETUP.format(file=str(self._file)).replace("%%distributed", f"%%distributed --ranks {ranks}"))

    def _wait_for_mark(self, marked: threading.Event) -> None:
        deadline = time.monotonic() + 20
        while not self._file.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(_SETTLED)
        marked.set()


def main() -> None:
    """Measure the rows that were asked for, and print each as soon as it is there."""
    options = _options()
    print(heading().split("\n")[0])
    print(f"{options.repeats} repeats, seed {options.seed}; next: a restart of the rank that died, and an all_reduce\n")
    columns = "".join(f"{name:>10}" for name in ("p50", "p99", "target", "", "next p50", "next p99"))
    print(f"{'row':>3} {'fault':<36}{'ranks':>5}{columns}")
    missed = 0
    for size in options.ranks:
        for fault, times, trouble in _measure(size, options):
            missed += _show(fault, size, times, trouble)
    print(f"\n{missed} missed" if missed else "\nall targets met")


def _measure(size: int, options: argparse.Namespace) -> Iterator[tuple[Fault, Times, str]]:
    for fault in FAULTS:
        if fault.row not in options.rows:
            continue
        times, trouble = Times(), ""
        with tempfile.TemporaryDirectory() as folder, FaultKernel("import torch", "%load_ext nbsync") as kernel:
            try:
                bench = Bench(kernel, size, Path(folder), options.seed)
                for _ in range(options.repeats):
                    bench.hit(fault, times)
                bench.close()
            except CellFailed as error:  # this row stops here; the others go on
                trouble = str(error)
        yield fault, times, trouble


def _show(fault: Fault, size: int, times: Times, trouble: str) -> bool:
    """Print a row; returns whether its target was missed."""
    head = f"{fault.row:>3} {fault.title:<36}{size:>5}"
    if not times.detection:
        print(f"{head}  {trouble}", flush=True)
        return True
    p50, p99 = _percentile(times.detection, 0.5), _percentile(times.detection, 0.99)
    missed = p99 > fault.target or bool(trouble)
    after = [_ms(_percentile(times.recovery, share)) for share in (0.5, 0.99)]
    texts = [_ms(p50), _ms(p99), _ms(fault.target), "MISSED" if missed else "met", *after]
    print(head + "".join(f"{text:>10}" for text in texts), flush=True)
    if trouble:
        print(f"    after {len(times.detection)} repeats: {trouble}", flush=True)
    return missed


def _percentile(samples: Sequence[float], share: float) -> float:
    return sorted(samples)[math.ceil(share * len(samples)) - 1]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how soon faults are told, and the world works again.")
    rows = [fault.row for fault in FAULTS]
    parser.add_argument("--repeats", type=int, default=100, metavar="N", help="how often each; default: 100")
    parser.add_argument("--rows", type=_numbers, default=rows, metavar="N,...", help=f"of {rows}")
    parser.add_argument("--ranks", type=_numbers, default=[2, 4], metavar="N,...", help="world sizes; default: 2,4")
    parser.add_argument("--seed", type=int, default=0, help="of the ranks that are hit")
    return parser.parse_args()


if __name__ == "__main__":
    main()
